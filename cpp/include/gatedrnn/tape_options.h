// What a caller decides about a tape.
#pragma once

#include "gatedrnn/dropout.h"

namespace gatedrnn {

struct TapeOptions {
  Dropout dropout;
  // Keep what a step computed only while its block is worked on backwards, and compute it again then.
  bool recompute = false;
};

}  // namespace gatedrnn
