#include "thread_limit.h"

#include <atomic>

#include "gatedrnn/threads.h"

namespace gatedrnn::bindings {
namespace {

// Null as long as no block has asked for it: until then calls need not look.
std::atomic<PyObject*> variable{nullptr};

}  // namespace

pybind11::object thread_limit_variable() {
  PyObject* current = variable.load();
  if (!current) {
    PyObject* const made = PyContextVar_New("gatedrnn.num_threads", nullptr);
    if (!made) throw pybind11::error_already_set();
    if (variable.compare_exchange_strong(current, made)) return pybind11::reinterpret_borrow<pybind11::object>(made);
    Py_DECREF(made);
  }
  return pybind11::reinterpret_borrow<pybind11::object>(current);
}

void apply_thread_limit() {
  PyObject* const of_blocks = variable.load(std::memory_order_relaxed);
  if (!of_blocks) return;
  PyObject* value = nullptr;
  if (PyContextVar_Get(of_blocks, nullptr, &value) < 0) throw pybind11::error_already_set();
  const auto limit = pybind11::reinterpret_steal<pybind11::object>(value);
  limit_this_thread(limit ? static_cast<int>(PyLong_AsLong(limit.ptr())) : 0);
}

}  // namespace gatedrnn::bindings
