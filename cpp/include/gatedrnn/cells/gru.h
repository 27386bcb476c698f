// The GRU's pointwise mathematics (Cho et al. 2014), in both forms. r, z are pre-activations of the reset and update gate.
//
//     reset after the product (cuDNN, PyTorch, Keras' default):   n = tanh(n_x + sigmoid(r) n_h)
//     reset before the product (the original):                    n = tanh(x W + (sigmoid(r) h) U + b)
//     both:                                                       h' = (1 - sigmoid(z)) n + sigmoid(z) h
//
// Backward, with the activated gates and d_ for the derivative of the loss (docs/gru-backward.md derives it):
//
//     d_n = d_h' (1 - z) (1 - n^2)           d_z = d_h' (h - n) z (1 - z)        d_h = d_h' z + (what comes through r, z, n)
//     reset after:    d_n_h = d_n r          d_r = d_n n_h r (1 - r)
//     reset before:   d_r = d_rh h r (1 - r) and d_h += d_rh r, where d_rh is what comes through the product (r h) U
#pragma once

#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

template <class S>
struct Gru {
  using V = typename S::V;
  using A = Activations<S>;

  static constexpr V candidate_reset_after(V n_x, V r, V n_h) { return S::madd(r, n_h, n_x); }

  // exp(-z), bounded so that blend()'s products stay finite
  static constexpr V update(V z) {
    const auto e = A::exp_negated(z, A::C::smallest_for_ratio);
    return S::mul(e.scale, e.value);
  }

  // The new h, and the activated update gate and candidate.
  struct Blend {
    V h, z, n;
  };
  // With e = exp(-z) and tanh(n) = p / q: h' = (e p + h q) / (q (1 + e)), one division for all.
  static constexpr Blend blend(V e, V n, V h) {
    const auto t = A::tanh_ratio(n);
    const V z_denominator = S::add(S::set(1), e);
    const V shared = A::reciprocal(S::mul(t.denominator, z_denominator));
    return {S::mul(S::madd(e, t.numerator, S::mul(h, t.denominator)), shared), S::mul(t.denominator, shared),
            S::mul(S::mul(t.numerator, z_denominator), shared)};
  }

  // Of the loss by the pre-activations of z and n, and by h directly; z and n are activated.
  struct BlendGradients {
    V z, n, h;
  };
  static constexpr BlendGradients blend_backward(V z, V n, V h, V d_h) {
    return {S::mul(S::mul(d_h, S::sub(h, n)), A::sigmoid_slope(z)),
            S::mul(S::mul(d_h, S::sub(S::set(1), z)), A::tanh_slope(n)), S::mul(d_h, z)};
  }

  // The pre-activation of r, which multiplied `value` into something whose derivative is d.
  static constexpr V reset_backward(V r, V value, V d) { return S::mul(S::mul(d, value), A::sigmoid_slope(r)); }
};

}  // namespace gatedrnn::cells
