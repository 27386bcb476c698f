// PyEval_RestoreThread for threads that may outlive the interpreter.
#pragma once

#include <Python.h>

namespace gatedrnn::bindings {

// To a daemon thread that asks for the interpreter after its end, CPython before 3.14 answers with pthread_exit: glibc would unwind the
// frames of C++ above, which end the process in a destructor, let go of Python objects without the interpreter, or (a compiler that
// brings an unwinder of its own) crash. So the thread stays here until the process ends, as it does from 3.14 on.
void restore_thread(PyThreadState* state) noexcept;

}  // namespace gatedrnn::bindings
