// The LSTM's pointwise mathematics (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000):
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

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Lstm {
  using V = typename S::V;
  using A = Activations<S>;

  // The new cell state, and the activated gates that made it.
  struct NextCell {
    V c, i, f, g;
  };
  static constexpr NextCell next_cell(V i, V f, V g, V c) {
    const V kept = A::sigmoid(f);
    // sigmoid(i) and tanh(g) have one division for the two
    const V i_denominator = A::sigmoid_denominator(i, A::C::smallest_for_ratio);
    const auto candidate = A::tanh_ratio(g);
    const V shared = A::reciprocal(S::mul(i_denominator, candidate.denominator));
    const V added = S::mul(candidate.numerator, shared);
    return {S::madd(kept, c, added), S::mul(candidate.denominator, shared), kept, S::mul(i_denominator, added)};
  }

  // The new h, and the activated gate.
  struct Output {
    V h, o;
  };
  static constexpr Output output(V o, V c) {
    const V o_denominator = A::sigmoid_denominator(o, A::C::smallest_for_ratio);
    const auto squashed = A::tanh_ratio(c);
    const V shared = A::reciprocal(S::mul(o_denominator, squashed.denominator));
    return {S::mul(squashed.numerator, shared), S::mul(squashed.denominator, shared)};
  }

  // The activated gates and c': what a step keeps for its backward.
  struct Kept {
    V i, f, g, o, c;
  };

  // Weights by which i and f see c, and o sees c'.
  struct Peephole {
    V i, f, o;
  };

  // Of the loss by the pre-activations, and by c.
  struct Gradients {
    V i, f, g, o, c;
  };

  // d_h and d_c are those of h' and c'; `peephole` is null without.
  static constexpr Gradients backward(const Kept& kept, V c, V d_h, V d_c, const Peephole* peephole) {
    const V squashed = A::tanh(kept.c);
    const V d_o = S::mul(S::mul(d_h, squashed), A::sigmoid_slope(kept.o));
    d_c = S::madd(S::mul(d_h, kept.o), A::tanh_slope(squashed), d_c);
    if (peephole) d_c = S::madd(d_o, peephole->o, d_c);
    const V d_i = S::mul(S::mul(d_c, kept.g), A::sigmoid_slope(kept.i));
    const V d_f = S::mul(S::mul(d_c, c), A::sigmoid_slope(kept.f));
    const V d_g = S::mul(S::mul(d_c, kept.i), A::tanh_slope(kept.g));
    V d_c_before = S::mul(d_c, kept.f);
    if (peephole) d_c_before = S::madd(d_f, peephole->f, S::madd(d_i, peephole->i, d_c_before));
    return {d_i, d_f, d_g, d_o, d_c_before};
  }
};

}  // namespace gatedrnn::cells
