// How many threads a call may use, as far as a block of Python says so. Such a block belongs to its own thread of control.
#pragma once

#include <pybind11/pybind11.h>

namespace gatedrnn::bindings {

// The context variable that a block sets: an integer, 0 for none.
pybind11::object thread_limit_variable();

// At the begin of what may use several threads: the engine takes over what the context says.
void apply_thread_limit();

}  // namespace gatedrnn::bindings
