// The LSTM's pointwise mathematics (Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000):
//
//     c' = sigmoid(f) c + sigmoid(i) tanh(g)          h = sigmoid(o) tanh(c')
//
// i, f, g, o are the four pre-activations. With peepholes (Gers and Schmidhuber 2000) i and f also see c, and o sees c'.
#pragma once

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Lstm {
  using V = typename S::V;
  using A = Activations<S>;

  static inline V next_cell(V i, V f, V g, V c) {
    const V kept = S::div(c, A::sigmoid_denominator(f));
    const auto candidate = A::tanh_ratio(g);
    // sigmoid(i) * tanh(g) with one division for the two
    const V added = S::div(candidate.numerator, S::mul(A::sigmoid_denominator(i), candidate.denominator));
    return S::add(kept, added);
  }

  static inline V output(V o, V c) {
    const auto squashed = A::tanh_ratio(c);
    return S::div(squashed.numerator, S::mul(A::sigmoid_denominator(o), squashed.denominator));
  }
};

}  // namespace gatedrnn::cells
