// Lets other Python threads run while the engine works.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <optional>
#include <thread>

#include "gatedrnn/spec.h"

namespace gatedrnn::bindings {

// Unlike py::gil_scoped_release it survives the end of the interpreter: to a daemon thread that asks for the interpreter then,
// CPython (before 3.14, which lets it hang) answers with pthread_exit, whose unwinding would end the process in the destructor, or
// let go of Python objects without the interpreter. So the thread stays here, as in 3.14, until the process ends.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// For work on memory: does nothing where that is less than takes longer than handing the interpreter over.
class GilReleaseForBytes {
 public:
  explicit GilReleaseForBytes(Index bytes) {
    if (bytes >= (1 << 20)) release_.emplace();
  }

 private:
  std::optional<GilRelease> release_;
};

}  // namespace gatedrnn::bindings
