// The plain recurrent network's pointwise mathematics (Elman 1990): h' = tanh(a) or relu(a). Backward: d_a = d_h' (1 - h'^2),
// or d_h' where h' > 0.
#pragma once

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Rnn {
  using V = typename S::V;

  static constexpr V tanh(V a) { return Activations<S>::tanh(a); }
  static constexpr V relu(V a) { return S::max(a, S::set(0)); }  // NaN stays NaN

  static constexpr V tanh_backward(V h, V d_h) { return S::mul(d_h, Activations<S>::tanh_slope(h)); }
  static constexpr V relu_backward(V h, V d_h) { return S::where_positive(h, d_h); }
};

}  // namespace gatedrnn::cells
