// The cells with functions and clips that are data (cell_options.h). Each goes with the products of the cell without (`Plain`), after
// which its mathematics is a kernel of its own. With a function's letter for the gate that it makes, and no clip:
//
//     LSTM      c' = f c + i g              h' = o h(c')           with f = 1 - i where they are coupled
//     GRU       h' = (1 - z) n + z h        n = n(n_x + r n_h), or with the reset before the product
//     RNN       h' = h(x W + h U + b)
//
// `clip` holds pre-activations within its bounds, after what peepholes add; h(c') is not clipped. `cell_clip` holds c' so.
//
// They keep pre-activations, and compute functions again going back: a value alone does not always tell the slope.
#pragma once

#include "gatedrnn/cells/coupled_lstm.h"
#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"

namespace gatedrnn::cells {

// A gate going back: its value, and the gradient of its pre-activation where that of the value is d.
template <class P>
struct Gate {
  using S = typename P::S;
  using V = typename P::V;

  V a, y;
  P& p;
  int function;

  GATEDRNN_CELL Gate of(P& p, int function, V a) {
    return {a, p.apply(function, Activations<S>::clipped(a, p.options().clip)), p, function};
  }
  constexpr __attribute__((always_inline)) V d(V d_y) const {
    const auto clip = p.options().clip;
    const V d_a = S::mul(d_y, p.slope(function, Activations<S>::clipped(a, clip), y));
    return Activations<S>::clipped_slope(a, clip, d_a);
  }
};

template <class P>
GATEDRNN_CELL auto activated(P& p, int function, typename P::V a) {
  return p.apply(function, Activations<typename P::S>::clipped(a, p.options().clip));
}

// ---- LSTM --------------------------------------------------------------------------------------------------------------

constexpr CellDescription describe_general_lstm(bool coupled, bool peephole) {
  CellDescription cell = coupled ? describe_coupled_lstm(peephole) : describe_lstm(peephole);
  cell.add(CellActivation{"i", ActivationKind::sigmoid});
  if (!coupled) cell.add(CellActivation{"f", ActivationKind::sigmoid});
  cell.add(CellActivation{"g", ActivationKind::tanh});
  cell.add(CellActivation{"o", ActivationKind::sigmoid});
  cell.add(CellActivation{"h", ActivationKind::tanh});
  return cell;
}

// A step's two halves: up to c', and from there on. They keep the pre-activations i, f, g, o and c'.
template <bool coupled>
struct GeneralLstmHalves {
  // Slots, and functions, of gates.
  static constexpr int f = 1, g = coupled ? 1 : 2, o = g + 1, h = o + 1;
  static constexpr int c = o + 1;  // among what is kept

  // c', from pre-activations. There is no f where the gates are coupled.
  template <class P, class V = typename P::V>
  GATEDRNN_CELL V next_c(P& p, V a_i, V a_f, V a_g) {
    using S = typename P::S;
    p.keep(0, a_i);
    p.keep(g, a_g);
    const V i = activated(p, 0, a_i);
    const V product = S::mul(i, activated(p, g, a_g));
    V forget = S::sub(S::set(1), i);
    if constexpr (!coupled) {
      p.keep(f, a_f);
      forget = activated(p, f, a_f);
    }
    const V next = Activations<S>::clipped(S::madd(forget, p.c(), product), p.options().cell_clip);
    p.keep(c, next);
    p.set_c(next);
    return next;
  }

  template <class P, class V = typename P::V>
  GATEDRNN_CELL void deliver(P& p, V a_o, V next) {
    p.keep(o, a_o);
    p.deliver(P::S::mul(activated(p, o, a_o), p.apply(h, next)));
  }

  // Of the loss by o's pre-activation, and by c': what comes through h', added to d_c.
  template <class V>
  struct Late {
    V o, c;
  };
  template <class P, class V = typename P::V>
  GATEDRNN_CELL Late<V> deliver_backward(P& p, V a_o, V next, V d_c) {
    using S = typename P::S;
    const V d_h = p.d_h();
    const auto out = Gate<P>::of(p, o, a_o);
    const V squashed = p.apply(h, next);
    p.set_operand_of_weights(S::mul(out.y, squashed));
    return {out.d(S::mul(d_h, squashed)), S::madd(S::mul(d_h, out.y), p.slope(h, next, squashed), d_c)};
  }

  // By the pre-activations of i and f, and by c as far as c' brings it; d_c is that by c'.
  template <class V>
  struct Early {
    V i, f, c;
  };
  template <class P, class V = typename P::V>
  GATEDRNN_CELL Early<V> next_c_backward(P& p, V d_c) {
    using S = typename P::S;
    const V before = p.c_before();
    d_c = Activations<S>::clipped_slope(p.kept(c), p.options().cell_clip, d_c);
    const auto input = Gate<P>::of(p, 0, p.kept(0)), candidate = Gate<P>::of(p, g, p.kept(g));
    const V d_i = input.d(S::mul(d_c, coupled ? S::sub(candidate.y, before) : candidate.y));
    p.set_d_a(0, d_i);
    p.set_d_a(g, candidate.d(S::mul(d_c, input.y)));
    if constexpr (coupled) {
      return {d_i, d_i, S::mul(d_c, S::sub(S::set(1), input.y))};
    } else {
      const auto forget = Gate<P>::of(p, f, p.kept(f));
      const V d_f = forget.d(S::mul(d_c, before));
      p.set_d_a(f, d_f);
      return {d_i, d_f, S::mul(d_c, forget.y)};
    }
  }
};

template <bool coupled, bool peephole>
struct GeneralLstm {
  using Plain = std::conditional_t<coupled, CoupledLstm<peephole>, Lstm<peephole>>;
  using Halves = GeneralLstmHalves<coupled>;
  static constexpr CellDescription description = describe_general_lstm(coupled, peephole);
  static constexpr int o_peephole = coupled ? 1 : 2;

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    const auto before = p.c();
    auto a_i = p.gate(0), a_f = p.gate(Halves::f), a_o = p.gate(Halves::o);
    if constexpr (peephole) a_i = S::madd(p.peephole(0), before, a_i);
    if constexpr (peephole && !coupled) a_f = S::madd(p.peephole(1), before, a_f);
    const auto next = Halves::next_c(p, a_i, a_f, p.gate(Halves::g));
    if constexpr (peephole) a_o = S::madd(p.peephole(o_peephole), next, a_o);
    Halves::deliver(p, a_o, next);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P&) {}

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    const auto late = Halves::deliver_backward(p, p.kept(Halves::o), p.kept(Halves::c), p.d_c());
    p.set_d_a(Halves::o, late.o);
    auto d_c = late.c;
    if constexpr (peephole) d_c = S::madd(late.o, p.peephole(o_peephole), d_c);
    const auto early = Halves::next_c_backward(p, d_c);
    d_c = early.c;
    if constexpr (peephole && !coupled) d_c = S::madd(early.f, p.peephole(1), d_c);
    if constexpr (peephole) d_c = S::madd(early.i, p.peephole(0), d_c);
    p.set_d_c(d_c);
  }
};

// ---- GRU ---------------------------------------------------------------------------------------------------------------

constexpr CellDescription described_with_gru_activations(CellDescription cell) {
  cell.add(CellActivation{"r", ActivationKind::sigmoid});
  cell.add(CellActivation{"z", ActivationKind::sigmoid});
  cell.add(CellActivation{"n", ActivationKind::tanh});
  return cell;
}

// What both forms have in common.
template <class P>
struct GeneralGruBlend {
  using S = typename P::S;
  using V = typename P::V;
  static constexpr int r = 0, z = 1, n = 2;  // functions

  GATEDRNN_CELL void deliver(P& p, V z, V a_n) {
    const V candidate = activated(p, n, a_n);
    p.deliver(S::madd(z, S::sub(p.h(), candidate), candidate));
    p.keep(2, a_n);
  }

  // Of the loss by the pre-activations of z and n. What goes to h directly is carried.
  struct Gradients {
    V z, n;
  };
  GATEDRNN_CELL Gradients backward(P& p) {
    const auto update = Gate<P>::of(p, z, p.kept(1)), candidate = Gate<P>::of(p, n, p.kept(2));
    const V d_h = p.d_h();
    p.set_carry(S::mul(d_h, update.y));
    return {update.d(S::mul(d_h, S::sub(p.h_before(), candidate.y))),
            candidate.d(S::mul(d_h, S::sub(S::set(1), update.y)))};
  }
};

// Keeps the pre-activations r, z, n, and n_h.
struct GeneralGru {
  using Plain = Gru;
  static constexpr CellDescription description = described_with_gru_activations(describe_gru());

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    using Blend = GeneralGruBlend<P>;
    const auto n_h = p.gate(3);
    p.keep(0, p.gate(1));
    p.keep(1, p.gate(2));
    p.keep(3, n_h);
    const auto a_n = S::madd(activated(p, Blend::r, p.gate(1)), n_h, p.gate(0));
    Blend::deliver(p, activated(p, Blend::z, p.gate(2)), a_n);
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P&) {}

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    using Blend = GeneralGruBlend<P>;
    const auto reset = Gate<P>::of(p, Blend::r, p.kept(0));
    const auto d = Blend::backward(p);
    p.set_d_a(0, d.n);
    p.set_d_a(1, reset.d(S::mul(d.n, p.kept(3))));
    p.set_d_a(2, d.z);
    p.set_d_a(3, S::mul(d.n, reset.y));
  }
};

// Keeps the pre-activations r, then z and n.
struct GeneralGruResetBefore {
  using Plain = GruResetBefore;
  static constexpr CellDescription description = described_with_gru_activations(describe_gru_reset_before());

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    using S = typename P::S;
    using Blend = GeneralGruBlend<P>;
    if constexpr (stage == 0) {
      p.keep(0, p.gate(0));
      p.set_operand(S::mul(activated(p, Blend::r, p.gate(0)), p.h()));
      p.carry_over(p.gate(1));
    } else {
      const auto a_z = p.carried_over();
      p.keep(1, a_z);
      Blend::deliver(p, activated(p, Blend::z, a_z), p.gate(0));
    }
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P&) {}

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    using Blend = GeneralGruBlend<P>;
    if constexpr (stage == 0) {
      const auto d = Blend::backward(p);
      p.set_d_a(2, d.n);
      p.set_d_a(1, d.z);
    } else {
      const auto reset = Gate<P>::of(p, Blend::r, p.kept(0));
      const auto h = p.h_before(), d_reset_h = p.product();
      p.set_d_a(0, reset.d(S::mul(d_reset_h, h)));
      p.set_carry(S::madd(d_reset_h, reset.y, p.carry()));
      p.set_operand_of_weights(S::mul(reset.y, h));
    }
  }
};

// ---- RNN ---------------------------------------------------------------------------------------------------------------

constexpr CellDescription describe_general_rnn() {
  CellDescription cell;
  cell.gates = 1;
  cell.add(StageDescription{1, 1, 1, false});
  cell.add(CellActivation{"h", ActivationKind::tanh});
  return cell;
}

// Keeps the pre-activation.
struct GeneralRnn {
  using Plain = Rnn<false>;
  static constexpr CellDescription description = describe_general_rnn();

  template <int stage, class P>
  GATEDRNN_CELL void first(P& p) {
    p.keep(0, p.gate(0));
    p.deliver(activated(p, 0, p.gate(0)));
  }

  template <int stage, class P>
  GATEDRNN_CELL void second(P&) {}

  template <int stage, class P>
  GATEDRNN_CELL void backward(P& p) {
    p.set_d_a(0, Gate<P>::of(p, 0, p.kept(0)).d(p.d_h()));
  }
};

}  // namespace gatedrnn::cells
