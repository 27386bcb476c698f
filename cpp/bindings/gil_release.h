// Lets other Python threads run while the engine works, and signals be answered.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

#include "gatedrnn/network.h"
#include "restore_thread.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace gatedrnn::bindings {

// A signal's handler has raised an exception, which Python has.
struct SignalRaised {};

// Unlike py::gil_scoped_release it survives the end of the interpreter.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() { restore_thread(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  // Python answers signals in its main thread only.
  Poll poll() {
    if (!on_main_thread()) return {};
    return {[](void* self) { static_cast<GilRelease*>(self)->answer_signals(); }, this};
  }

 private:
  void answer_signals() {
    restore_thread(state_);
    const bool raised = PyErr_CheckSignals() != 0;
    state_ = PyEval_SaveThread();
    if (raised) throw SignalRaised();
  }

  // Where the system does not tell, Python finds out.
  static bool on_main_thread() {
#if defined(__linux__)
    return getpid() == syscall(SYS_gettid);
#else
    return true;
#endif
  }

  PyThreadState* state_;
};

// Runs `work(poll)` without the interpreter. The exception of a signal's handler comes out of here.
template <class Work>
void without_gil(Work&& work) {
  try {
    GilRelease release;
    work(release.poll());
  } catch (const SignalRaised&) {
    throw pybind11::error_already_set();
  }
}

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
