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

// What LSTMs have in common.
template <class S>
struct LstmGates {
  using V = typename S::V;
  using A = Activations<S>;

  // The activated gate and candidate, and their product, with one division for the two; and 1 - i, right where that is small.
  struct Input {
    V i, g, product, rest;
  };
  GATEDRNN_CELL Input input(V i, V g) {
    const auto e = A::exp_negated(i, A::C::smallest_for_ratio);
    const V i_denominator = S::madd(e.scale, e.value, S::set(1));
    const auto candidate = A::tanh_ratio(g);
    const V shared = A::reciprocal(S::mul(i_denominator, candidate.denominator));
    const V product = S::mul(candidate.numerator, shared);
    const V activated = S::mul(candidate.denominator, shared);
    return {activated, S::mul(i_denominator, product), product, S::mul(S::mul(e.scale, e.value), activated)};
  }

  // h = sigmoid(o) tanh(c), likewise. Keeps the activated gate.
  template <class P>
  GATEDRNN_CELL void deliver(P& p, V o, V c, int kept) {
    const V o_denominator = A::sigmoid_denominator(o, A::C::smallest_for_ratio);
    const auto squashed = A::tanh_ratio(c);
    const V shared = A::reciprocal(S::mul(o_denominator, squashed.denominator));
    p.deliver(S::mul(squashed.numerator, shared));
    p.keep(kept, S::mul(squashed.denominator, shared));
  }

  // Of the loss by o's pre-activation, and by c' as far as h' brings it.
  struct Gradients {
    V o, c;
  };
  template <class P>
  GATEDRNN_CELL Gradients backward(P& p, V o, V c) {
    const V squashed = A::tanh(c), d_h = p.d_h();
    p.set_operand_of_weights(S::mul(o, squashed));
    return {S::mul(S::mul(d_h, squashed), A::sigmoid_slope(o)),
            S::madd(S::mul(d_h, o), A::tanh_slope(squashed), p.d_c())};
  }
};

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
    const auto c = p.c();
    auto i = p.gate(0), f = p.gate(1);
    if constexpr (peephole) {
      i = S::madd(p.peephole(0), c, i);
      f = S::madd(p.peephole(1), c, f);
    }
    f = Activations<S>::sigmoid(f);
    const auto input = LstmGates<S>::input(i, p.gate(2));
    const auto next = S::madd(f, c, input.product);
    if constexpr (peephole) p.leave(3, S::madd(p.peephole(2), next, p.gate(3)));
    p.set_c(next);
    p.keep(0, input.i);
    p.keep(1, f);
    p.keep(2, input.g);
    p.keep(4, next);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P& p) {
    LstmGates<typename P::S>::deliver(p, p.gate(3), p.c(), 3);
  }

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    using A = Activations<S>;
    const auto i = p.kept(0), f = p.kept(1), g = p.kept(2);
    const auto d = LstmGates<S>::backward(p, p.kept(3), p.kept(4));
    auto d_c = d.c;
    if constexpr (peephole) d_c = S::madd(d.o, p.peephole(2), d_c);
    const auto d_i = S::mul(S::mul(d_c, g), A::sigmoid_slope(i));
    const auto d_f = S::mul(S::mul(d_c, p.c_before()), A::sigmoid_slope(f));
    p.set_d_a(0, d_i);
    p.set_d_a(1, d_f);
    p.set_d_a(2, S::mul(S::mul(d_c, i), A::tanh_slope(g)));
    p.set_d_a(3, d.o);
    d_c = S::mul(d_c, f);
    if constexpr (peephole) d_c = S::madd(d_f, p.peephole(1), S::madd(d_i, p.peephole(0), d_c));
    p.set_d_c(d_c);
  }
};

}  // namespace gatedrnn::cells
