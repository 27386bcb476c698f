// The plain recurrent network (Elman 1990): h' = tanh(a) or relu(a). Backward: d_a = d_h' (1 - h'^2), or d_h' where h' > 0.
#pragma once

#include "gatedrnn/cell.h"
#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

constexpr CellDescription describe_rnn() {
  CellDescription cell;
  cell.gates = 1;
  cell.h_read = HRead::after;
  cell.add(StageDescription{1, 1, 0, false});  // keeps nothing but h
  return cell;
}

template <bool relu>
struct Rnn {
  static constexpr CellDescription description = describe_rnn();

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    if constexpr (relu)
      p.deliver(S::max(p.gate(0), S::set(0)));  // NaN stays NaN
    else
      p.deliver(Activations<S>::tanh(p.gate(0)));
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P&) {}

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    if constexpr (relu)
      p.set_d_a(0, S::where_positive(p.h_after(), p.d_h()));
    else
      p.set_d_a(0, S::mul(p.d_h(), Activations<S>::tanh_slope(p.h_after())));
  }
};

}  // namespace gatedrnn::cells
