// The LSTM whose input and forget gates are coupled (Greff et al. 2015; ONNX' input_forget):
//
//     c' = (1 - sigmoid(i)) c + sigmoid(i) tanh(g)          h = sigmoid(o) tanh(c')
//
// With peepholes i also sees c, and o sees c'.
//
// Backward, as in lstm.h but for
//
//     d_i = d_c' (g - c) i (1 - i)           d_c = d_c' (1 - i) [+ d_i w_ci]
#pragma once

#include "gatedrnn/cells/lstm.h"

namespace gatedrnn::cells {

constexpr CellDescription describe_coupled_lstm(bool peephole) {
  CellDescription cell;
  cell.gates = 3;  // i, g, o
  cell.has_c = true;
  cell.add(StageDescription{3, 3, 4, true});  // keeps i, g, o and c'
  if (peephole) {
    cell.add(PeepholeDescription{"weight_ci", 0, false});
    cell.add(PeepholeDescription{"weight_co", 2, true});
  }
  return cell;
}

template <bool peephole>
struct CoupledLstm {
  static constexpr CellDescription description = describe_coupled_lstm(peephole);

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    const auto c = p.c();
    auto i = p.gate(0);
    if constexpr (peephole) i = S::madd(p.peephole(0), c, i);
    const auto input = LstmGates<S>::input(i, p.gate(1));
    const auto next = S::madd(input.rest, c, input.product);
    if constexpr (peephole) p.leave(2, S::madd(p.peephole(1), next, p.gate(2)));
    p.set_c(next);
    p.keep(0, input.i);
    p.keep(1, input.g);
    p.keep(3, next);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P& p) {
    LstmGates<typename P::S>::deliver(p, p.gate(2), p.c(), 2);
  }

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    using A = Activations<S>;
    const auto i = p.kept(0), g = p.kept(1);
    const auto d = LstmGates<S>::backward(p, p.kept(2), p.kept(3));
    auto d_c = d.c;
    if constexpr (peephole) d_c = S::madd(d.o, p.peephole(1), d_c);
    const auto d_i = S::mul(S::mul(d_c, S::sub(g, p.c_before())), A::sigmoid_slope(i));
    p.set_d_a(0, d_i);
    p.set_d_a(1, S::mul(S::mul(d_c, i), A::tanh_slope(g)));
    p.set_d_a(2, d.o);
    d_c = S::mul(d_c, S::sub(S::set(1), i));
    if constexpr (peephole) d_c = S::madd(d_i, p.peephole(0), d_c);
    p.set_d_c(d_c);
  }
};

}  // namespace gatedrnn::cells
