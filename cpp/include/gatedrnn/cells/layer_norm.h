// Layer-normalised cells. With LN(a) = w (a - mean(a)) / sqrt(variance(a) + eps), the moments being those of a row's values:
//
//     products (Ba, Kiros and Hinton 2016)   LSTM   (i, f, g, o) = LN(x W) + LN(h U) + b          h' = o h(LN(c'))
//                                            GRU    (r, z) = LN(x W) + LN(h U) + b                n = n(LN(x W_n) + b + r (LN(h U_n) + b))
//     gates (TensorFlow Lite)                LSTM   each of i, f, g, o = LN(x W + h U [+ peephole]) + b
//
// The rest is as in general cells (cells/general.h). In brackets stand values with one mean and one variance; the GRU has its own for
// the candidate. What is kept of c is c' as it is.
//
// A step goes over a row's units in three passes, and backward in the same ones from the last. Before the second one, what is not
// late is normalised; before the third one the rest, c' or, where a peephole may add to it, o. A place has, beside what general cells
// need:
//
//     gate(i)                           a finished pre-activation, also going back; c normalised follows those of gates
//     add_product(slot, a, b)           of what is not normalised yet: adds a b
//     d_sum(slot)                       going back: the gradient of that
//     set_d_a(i, v)                     likewise, of a finished pre-activation
//
// What is kept are the slots, and one value more, which `own_kept` names by its number among what general cells keep: their
// pre-activations are computed again from the slots. `last_pass` delivers h, and going back takes its gradient.
#pragma once

#include "gatedrnn/cells/general.h"

namespace gatedrnn::cells {

// One stage, whose slots are pre-activations or, for products, those of the inputs and then those of the operand. It keeps the
// slots and one more value.
constexpr CellDescription normalized(CellDescription cell, LayerNorm layer_norm, int slots) {
  cell.layer_norm = layer_norm;
  cell.slots = cell.kept = cell.stage_count = 0;
  cell.add(StageDescription{slots, cell.gates, slots + 1, false});
  return cell;
}

constexpr CellDescription describe_lstm_norm_products() {
  CellDescription cell = normalized(describe_general_lstm(false, false), LayerNorm::products, 8);
  for (int slot = 0; slot < 8; ++slot) cell.gate_of_slot[slot] = cell.pre_activation_of_slot[slot] = slot % 4;
  cell.pre_activation_of_slot[8] = 4;  // c
  cell.pre_activations = 5;
  cell.add(NormDescription{0, 4, false});
  cell.add(NormDescription{4, 4, false});
  cell.add(NormDescription{8, 1, true});
  return cell;
}

constexpr CellDescription describe_lstm_norm_gates(bool coupled, bool peephole) {
  const CellDescription plain = describe_general_lstm(coupled, peephole);
  CellDescription cell = normalized(plain, LayerNorm::gates, plain.gates);
  cell.pre_activations = cell.gates;
  for (int gate = 0; gate < cell.gates; ++gate) {
    cell.pre_activation_of_slot[gate] = gate;
    cell.add(NormDescription{gate, 1, gate + 1 == cell.gates});
  }
  return cell;
}

// Pre-activations are those of the GRU: n_x, r, z, n_h.
constexpr CellDescription describe_gru_norm_products() {
  CellDescription cell =
      normalized(described_with_gru_activations(describe_gru()), LayerNorm::products, 6);  // n, r, z and r, z, n
  for (int slot = 0; slot < 6; ++slot) {
    cell.pre_activation_of_slot[slot] = slot < 3 ? slot : slot - 2;
    cell.gate_of_slot[slot] = slot < 3 ? (slot + 2) % 3 : slot - 3;
  }
  cell.pre_activations = 4;
  cell.add(NormDescription{0, 1, false});
  cell.add(NormDescription{1, 2, false});
  cell.add(NormDescription{3, 2, false});
  cell.add(NormDescription{5, 1, false});
  return cell;
}

template <LayerNorm form, bool coupled, bool peephole>
struct LayerNormLstm {
  using Halves = GeneralLstmHalves<coupled>;
  static constexpr bool products = form == LayerNorm::products;
  static constexpr CellDescription description =
      products ? describe_lstm_norm_products() : describe_lstm_norm_gates(coupled, peephole);
  static constexpr int o_peephole = coupled ? 1 : 2, normalized_c = Halves::o + 1;
  static constexpr int own_kept = Halves::c, last_pass = 2;

  // Of what is kept, in the order of general cells.
  GATEDRNN_CELL int pre_activation(int kept) { return kept; }

  template <int pass, class P>
  GATEDRNN_CELL void forward(P& p) {
    if constexpr (pass == 0 && peephole) {
      p.add_product(0, p.peephole(0), p.c());
      if constexpr (!coupled) p.add_product(Halves::f, p.peephole(1), p.c());
    }
    if constexpr (pass == 1) {
      const auto next = Halves::next_c(p, p.gate(0), p.gate(Halves::f), p.gate(Halves::g));
      if constexpr (peephole) p.add_product(Halves::o, p.peephole(o_peephole), next);
    }
    if constexpr (pass == 2) {
      const auto c = products ? p.gate(normalized_c) : p.c();
      Halves::deliver(p, p.gate(Halves::o), c);
    }
  }

  template <int pass, class P>
  GATEDRNN_CELL void backward(P& p) {
    using S = typename P::S;
    if constexpr (pass == 2) {
      const auto d_c = products ? S::set(0) : p.d_c();
      const auto c = products ? p.gate(normalized_c) : p.kept(Halves::c);
      const auto late = Halves::deliver_backward(p, p.gate(Halves::o), c, d_c);
      p.set_d_a(Halves::o, late.o);
      if constexpr (products)
        p.set_d_a(normalized_c, late.c);
      else
        p.set_d_c(late.c);
    }
    if constexpr (pass == 1) {
      auto d_c = p.d_c();
      if constexpr (peephole) d_c = S::madd(p.d_sum(Halves::o), p.peephole(o_peephole), d_c);
      p.set_d_c(Halves::next_c_backward(p, d_c).c);
    }
    if constexpr (pass == 0 && peephole) {
      auto d_c = p.d_c();
      if constexpr (!coupled) d_c = S::madd(p.d_sum(Halves::f), p.peephole(1), d_c);
      p.set_d_c(S::madd(p.d_sum(0), p.peephole(0), d_c));
    }
  }
};

template <bool coupled, bool peephole>
struct GateNormLstm : LayerNormLstm<LayerNorm::gates, coupled, peephole> {
  using Plain = typename GeneralLstm<coupled, peephole>::Plain;
};
using ProductNormLstm = LayerNormLstm<LayerNorm::products, false, false>;

struct ProductNormGru {
  static constexpr CellDescription description = describe_gru_norm_products();
  static constexpr int own_kept = 2, last_pass = 1;  // the pre-activation of n, which r has a part in

  GATEDRNN_CELL int pre_activation(int kept) { return kept == 3 ? 3 : kept + 1; }

  template <int pass, class P>
  GATEDRNN_CELL void forward(P& p) {
    if constexpr (pass == 1) GeneralGru::first<0>(p);
  }
  template <int pass, class P>
  GATEDRNN_CELL void backward(P& p) {
    if constexpr (pass == 1) GeneralGru::backward<0>(p);
  }
};

}  // namespace gatedrnn::cells
