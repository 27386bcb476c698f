// A tape for Python, whatever its type.
#pragma once

#include <pybind11/pybind11.h>

#include "gatedrnn/tape.h"

namespace gatedrnn::bindings {

class BoundTape {
 public:
  virtual ~BoundTape() = default;
  virtual Index bytes() const = 0;
  pybind11::object owner;                      // whose forward made it
  pybind11::object merged = pybind11::none();  // what Python keeps of an output that it merged
};

}  // namespace gatedrnn::bindings
