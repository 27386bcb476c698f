// The GRU's pointwise mathematics (Cho et al. 2014), in both forms. r, z are pre-activations of the reset and update gate.
//
//     reset after the product (cuDNN, PyTorch, Keras' default):   n = tanh(n_x + sigmoid(r) n_h)
//     reset before the product (the original):                    n = tanh(x W + (sigmoid(r) h) U + b)
//     both:                                                       h' = (1 - sigmoid(z)) n + sigmoid(z) h
#pragma once

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Gru {
  using V = typename S::V;
  using A = Activations<S>;

  static inline V reset(V r, V value) { return S::div(value, A::sigmoid_denominator(r)); }

  static inline V candidate_reset_after(V n_x, V r, V n_h) { return S::add(n_x, reset(r, n_h)); }

  // exp(-z), bounded so that blend()'s products stay finite
  static inline V update(V z) { return A::exp_negated(z, A::C::largest_for_ratio); }

  // With e = exp(-z) and tanh(n) = p / q: h' = (e p + h q) / (q (1 + e)), one division for the update gate and the candidate.
  static inline V blend(V e, V n, V h) {
    const auto t = A::tanh_ratio(n);
    const V numerator = S::madd(e, t.numerator, S::mul(h, t.denominator));
    return S::div(numerator, S::mul(t.denominator, S::add(S::set(1), e)));
  }
};

}  // namespace gatedrnn::cells
