// The LSTM (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000):
//
//     c' = sigmoid(f) c + sigmoid(i) tanh(g)          h = sigmoid(o) tanh(c')
//
// i, f, g, o are the four pre-activations. With peepholes (Gers and Schmidhuber 2000) i and f also see c, and o sees c'.
//
// Backward, with the activated gates and d_ for the derivative of the loss (docs/lstm-backward.md derives it):
//
//     d_o = d_h tanh(c') o (1 - o)           d_c' += d_h o (1 - tanh(c')^2) [+ d_o w_co]
//     d_i = d_c' g i (1 - i)                 d_f = d_c' c f (1 - f)              d_g = d_c' i (1 - g^2)
//     d_c = d_c' f [+ d_i w_ci + d_f w_cf]
#pragma once

#include "gatedrnn/cell.h"
#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

// h = sigmoid(o) tanh(c), with one division for the two; keeps the activated gate.
template <class P>
GATEDRNN_CELL void deliver_gated(P& p, typename P::S::V o, typename P::S::V c, int kept) {
  using S = typename P::S;
  using A = Activations<S>;
  const auto o_denominator = A::sigmoid_denominator(o, A::C::smallest_for_ratio);
  const auto squashed = A::tanh_ratio(c);
  const auto shared = A::reciprocal(S::mul(o_denominator, squashed.denominator));
  p.deliver(S::mul(squashed.numerator, shared));
  p.keep(kept, S::mul(squashed.denominator, shared));
}

constexpr CellDescription describe_lstm(bool peephole) {
  CellDescription cell;
  cell.gates = 4;  // i, f, g, o
  cell.has_c = true;
  cell.add(StageDescription{4, 4, 5, true});  // keeps i, f, g, o and c'
  if (peephole) {
    cell.add(PeepholeDescription{"weight_ci", 0, false});
    cell.add(PeepholeDescription{"weight_cf", 1, false});
    cell.add(PeepholeDescription{"weight_co", 3, true});
  }
  return cell;
}

template <bool peephole>
struct Lstm {
  static constexpr CellDescription description = describe_lstm(peephole);

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    using A = Activations<S>;
    const auto c = p.c();
    auto i = p.gate(0), f = p.gate(1);
    if constexpr (peephole) {
      i = S::madd(p.peephole(0), c, i);
      f = S::madd(p.peephole(1), c, f);
    }
    f = A::sigmoid(f);
    // sigmoid(i) and tanh(g) have one division for the two
    const auto i_denominator = A::sigmoid_denominator(i, A::C::smallest_for_ratio);
    const auto candidate = A::tanh_ratio(p.gate(2));
    const auto shared = A::reciprocal(S::mul(i_denominator, candidate.denominator));
    const auto added = S::mul(candidate.numerator, shared);
    const auto next = S::madd(f, c, added);
    if constexpr (peephole) p.leave(3, S::madd(p.peephole(2), next, p.gate(3)));
    p.set_c(next);
    p.keep(0, S::mul(candidate.denominator, shared));
    p.keep(1, f);
    p.keep(2, S::mul(i_denominator, added));
    p.keep(4, next);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P& p) {
    deliver_gated(p, p.gate(3), p.c(), 3);
  }

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    using A = Activations<S>;
    const auto i = p.kept(0), f = p.kept(1), g = p.kept(2), o = p.kept(3), d_h = p.d_h();
    const auto squashed = A::tanh(p.kept(4));
    const auto d_o = S::mul(S::mul(d_h, squashed), A::sigmoid_slope(o));
    auto d_c = S::madd(S::mul(d_h, o), A::tanh_slope(squashed), p.d_c());
    if constexpr (peephole) d_c = S::madd(d_o, p.peephole(2), d_c);
    const auto d_i = S::mul(S::mul(d_c, g), A::sigmoid_slope(i));
    const auto d_f = S::mul(S::mul(d_c, p.c_before()), A::sigmoid_slope(f));
    p.set_d_a(0, d_i);
    p.set_d_a(1, d_f);
    p.set_d_a(2, S::mul(S::mul(d_c, i), A::tanh_slope(g)));
    p.set_d_a(3, d_o);
    d_c = S::mul(d_c, f);
    if constexpr (peephole) d_c = S::madd(d_f, p.peephole(1), S::madd(d_i, p.peephole(0), d_c));
    p.set_d_c(d_c);
    p.set_operand_of_weights(S::mul(o, squashed));
  }
};

}  // namespace gatedrnn::cells
