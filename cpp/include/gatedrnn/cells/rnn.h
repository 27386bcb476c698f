// The plain recurrent network's pointwise mathematics (Elman 1990): h' = tanh(a) or relu(a).
#pragma once

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Rnn {
  using V = typename S::V;

  static inline V tanh(V a) { return Activations<S>::tanh(a); }
  static inline V relu(V a) { return S::max(a, S::set(0)); }  // NaN stays NaN
};

}  // namespace gatedrnn::cells
