// A tape for Python, whatever its type.
#pragma once

#include "gatedrnn/tape.h"

namespace gatedrnn::bindings {

class BoundTape {
 public:
  virtual ~BoundTape() = default;
  virtual Index bytes() const = 0;
};

}  // namespace gatedrnn::bindings
