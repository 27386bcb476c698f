// What is decided before the device gets work.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn::cuda {

struct Problem {
  Spec spec;
  Index steps = 0, batch = 0;
  Index value_bytes = 4, sum_bytes = 4;  // of a stored value, and of a sum
};

// What of the device decides.
struct DeviceLimits {
  int processors = 0;        // streaming multiprocessors
  Index shared_bytes = 0;    // that a block of the grid may have
  bool cooperative = false;  // whether blocks may wait for each other
};

struct Plan {
  bool persistent = false;  // one kernel for a block of steps, instead of cuBLAS and a kernel for each step
  int grid = 0;             // its blocks, all of them at once
  int units_per_block = 0;
  Index forward_shared_bytes = 0, backward_shared_bytes = 0;
  int forward_staged = 0, backward_staged = 0;  // values of a row of the operand in shared memory at a time
  Index most_pairs = 0;                         // (step, row) pairs of a block of steps
};

Plan make_plan(const Problem& problem, const DeviceLimits& device);

}  // namespace gatedrnn::cuda
