// Compiled without exceptions, where a clean-up handler is entered by a jump; with them glibc makes it a destructor.
#include "restore_thread.h"

#include <chrono>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace gatedrnn::bindings {
namespace {

[[maybe_unused]] void stay(void*) {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace

void restore_thread(PyThreadState* state) noexcept {
#if defined(__unix__) || defined(__APPLE__)
  pthread_cleanup_push(stay, nullptr);
  PyEval_RestoreThread(state);
  pthread_cleanup_pop(0);
#else
  PyEval_RestoreThread(state);  // the system unwinds nothing
#endif
}

}  // namespace gatedrnn::bindings
