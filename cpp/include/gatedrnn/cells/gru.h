// The GRU (Cho et al. 2014), in both forms. r, z are pre-activations of the reset and update gate.
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

#include "gatedrnn/cell.h"
#include "gatedrnn/cells/activations.h"

namespace gatedrnn::cells {

// What both forms have in common.
template <class S>
struct GruBlend {
  using V = typename S::V;
  using A = Activations<S>;

  // exp(-z), bounded so that deliver()'s products stay finite
  GATEDRNN_CELL V update(V z) {
    const auto e = A::exp_negated(z, A::C::smallest_for_ratio);
    return S::mul(e.scale, e.value);
  }

  // With e = exp(-z) and tanh(n) = p / q: h' = (e p + h q) / (q (1 + e)), one division for all. Keeps z and n, activated.
  template <class P>
  GATEDRNN_CELL void deliver(P& p, V e, V n) {
    const auto t = A::tanh_ratio(n);
    const V z_denominator = S::add(S::set(1), e);
    const V shared = A::reciprocal(S::mul(t.denominator, z_denominator));
    p.deliver(S::mul(S::madd(e, t.numerator, S::mul(p.h(), t.denominator)), shared));
    p.keep(1, S::mul(t.denominator, shared));
    p.keep(2, S::mul(S::mul(t.numerator, z_denominator), shared));
  }

  // Of the loss by the pre-activations of z and n. What goes to h directly is carried.
  struct Gradients {
    V z, n;
  };
  template <class P>
  GATEDRNN_CELL Gradients backward(P& p) {
    const V z = p.kept(1), n = p.kept(2), d_h = p.d_h();
    p.set_carry(S::mul(d_h, z));
    return {S::mul(S::mul(d_h, S::sub(p.h_before(), n)), A::sigmoid_slope(z)),
            S::mul(S::mul(d_h, S::sub(S::set(1), z)), A::tanh_slope(n))};
  }

  // The pre-activation of r, which multiplied `value` into something whose derivative is d.
  GATEDRNN_CELL V reset_backward(V r, V value, V d) { return S::mul(S::mul(d, value), A::sigmoid_slope(r)); }
};

constexpr CellDescription describe_gru() {
  CellDescription cell;
  cell.gates = 3;  // r, z, n
  cell.passes_h = true;
  cell.h_read = HRead::before;
  cell.add(StageDescription{4, 3, 4, true});  // slots n_x, r, z, n_h; keeps r, z, n, n_h
  for (int slot = 0; slot < 4; ++slot) cell.gate_of_slot[slot] = (slot + 2) % 3;
  return cell;
}

struct Gru {
  static constexpr CellDescription description = describe_gru();

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    const auto r = Activations<S>::sigmoid(p.gate(1)), n_h = p.gate(3);
    p.leave(3, S::madd(r, n_h, p.gate(0)));
    p.leave(2, GruBlend<S>::update(p.gate(2)));
    p.keep(0, r);
    p.keep(3, n_h);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P& p) {
    GruBlend<typename P::S>::deliver(p, p.gate(2), p.gate(3));
  }

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    const auto r = p.kept(0);
    const auto d = GruBlend<S>::backward(p);
    p.set_d_a(0, d.n);
    p.set_d_a(1, GruBlend<S>::reset_backward(r, p.kept(3), d.n));
    p.set_d_a(2, d.z);
    p.set_d_a(3, S::mul(d.n, r));
  }
};

constexpr CellDescription describe_gru_reset_before() {
  CellDescription cell;
  cell.gates = 3;  // r, z, n
  cell.passes_h = true;
  cell.h_read = HRead::before;
  cell.add(StageDescription{2, 2, 1, false});  // slots r, z; keeps r
  cell.add(StageDescription{1, 1, 2, false});  // slot n; keeps z, n
  cell.late_slots = 1;                         // r
  return cell;
}

struct GruResetBefore {
  static constexpr CellDescription description = describe_gru_reset_before();

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    if constexpr (stage == 0) {
      const auto r = Activations<S>::sigmoid(p.gate(0));
      p.set_operand(S::mul(r, p.h()));
      p.keep(0, r);
    } else {
      GruBlend<S>::deliver(p, p.carried_over(), p.gate(0));
    }
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P& p) {
    if constexpr (stage == 0) p.carry_over(GruBlend<typename P::S>::update(p.gate(1)));
  }

  // First z and n, then r, from the gradient of r h.
  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    if constexpr (stage == 0) {
      const auto d = GruBlend<S>::backward(p);
      p.set_d_a(2, d.n);
      p.set_d_a(1, d.z);
    } else {
      const auto r = p.kept(0), h = p.h_before(), d_reset_h = p.product();
      p.set_d_a(0, GruBlend<S>::reset_backward(r, h, d_reset_h));
      p.set_carry(S::madd(d_reset_h, r, p.carry()));
      p.set_operand_of_weights(S::mul(r, h));
    }
  }
};

}  // namespace gatedrnn::cells
