// gatedrnn._cuda: the engine on a device, for Python. The same classes as gatedrnn._core, for arrays in the host's memory, which
// are copied, and for those on the device, which are shared.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bound_network.h"
#include "bound_stream.h"

namespace gatedrnn::cuda {
namespace {

// One dictionary for each device; none where there is no driver, which is said.
py::dict devices() {
  py::dict d;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  d["error"] = status == cudaSuccess ? py::object(py::none()) : py::object(py::str(cudaGetErrorString(status)));
  py::list names;
  for (int i = 0; status == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "asking for a device");
    names.append(py::str(properties.name));
  }
  d["names"] = names;
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  d["runtime"] = runtime;
  d["driver"] = driver;
  return d;
}

}  // namespace
}  // namespace gatedrnn::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace gatedrnn::cuda;
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "not enough memory on the device");
    }
  });

  py::class_<Array, std::shared_ptr<Array>>(m, "Array")
      .def(py::init([](const py::array& array) { return Array::from_numpy(array, cudaStreamPerThread); }),
           py::arg("array"))
      .def("numpy", [](const Array& self) { return self.to_numpy(cudaStreamPerThread); })
      .def_property_readonly("shape", [](const Array& self) { return py::tuple(py::cast(self.view().shape)); })
      .def_property_readonly("dtype", [](const Array& self) { return name_of(self.view().storage); })
      .def(
          "__dlpack__",
          [](const std::shared_ptr<Array>& self, const py::object& stream, const py::kwargs&) {
            return to_dlpack(self, stream);
          },
          py::kw_only(), py::arg("stream") = py::none())
      .def("keep", &Array::keep, py::arg("stream_owner"))
      .def("__dlpack_device__", [](const Array& self) { return py::make_tuple(2, self.device()); })
      .def_property_readonly("__cuda_array_interface__", &Array::array_interface);

  py::class_<BoundTape>(m, "Tape")
      .def_property_readonly("nbytes", &BoundTape::bytes)
      .def(
          "keep", [](BoundTape& self, py::object owner) { self.stream_owner = std::move(owner); },
          py::arg("stream_owner"));

  py::class_<BoundStream>(m, "Stream")
      .def("step", &BoundStream::step, py::arg("x"), py::arg("out") = py::none(), py::arg("stream") = 0, py::kw_only(),
           py::arg("resets") = py::none(), py::arg("mask") = py::none())
      .def_property("state", &BoundStream::state, &BoundStream::set_state)
      .def("reset", &BoundStream::reset, py::arg("rows") = py::none())
      .def_property_readonly("batch_size", &BoundStream::batch_size);

  py::class_<BoundNetwork>(m, "Network")
      .def(py::init<const std::string&, const py::dict&, gatedrnn::Index, gatedrnn::Index, gatedrnn::Index, bool, bool,
                    gatedrnn::Index, const py::object&, const std::string&, bool, bool,
                    const gatedrnn::bindings::Functions&, std::optional<double>, std::optional<double>, double>(),
           py::arg("cell"), py::arg("parameters"), py::kw_only(), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("proj_size"), py::arg("dtype"),
           py::arg("precision"), py::arg("reverse") = false, py::arg("learn_state") = false,
           py::arg("activations") = py::tuple(), py::arg("clip") = py::none(), py::arg("cell_clip") = py::none(),
           py::arg("layer_norm_eps") = 0)
      .def("infer", &BoundNetwork::infer, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("out"),
           py::arg("batch_first"), py::arg("stream") = 0, py::arg("mask") = py::none(), py::arg("resets") = py::none(),
           py::arg("repeats") = false)
      .def("forward", &BoundNetwork::forward, py::arg("x"), py::arg("state"), py::arg("lengths"),
           py::arg("batch_first"), py::arg("dropout"), py::arg("dropout_seed"), py::arg("recompute"),
           py::arg("owner") = py::none(), py::arg("stream") = 0, py::arg("mask") = py::none(),
           py::arg("resets") = py::none(), py::arg("repeats") = false)
      .def("backward", &BoundNetwork::backward, py::arg("tape"), py::arg("d_output"), py::arg("d_state_n"),
           py::arg("gradients"), py::arg("accumulate"), py::arg("input_gradient"), py::arg("owner") = py::none(),
           py::arg("stream") = 0)
      .def("new_gradients", &BoundNetwork::new_gradients, py::arg("stream") = 0)
      .def("plan", &BoundNetwork::plan, py::arg("steps"), py::arg("batch"))
      .def(
          "stream",
          [](const BoundNetwork& self, gatedrnn::Index batch_size) {
            return std::make_unique<BoundStream>(self, batch_size);
          },
          py::arg("batch_size"));

  m.def("devices", &devices);
}
