// What a cell is, as data: its gates, the products that make them, and what its step keeps. Packing, plans, time loops, bindings,
// the reference and the device backend read it; only the mathematics is code (cells/).
#pragma once

#include <cstddef>

#include "gatedrnn/cell_options.h"

// The mathematics of a cell is inlined into the loops over its units, and constexpr so that a compiler for devices takes it too.
#define GATEDRNN_CELL static constexpr __attribute__((always_inline))

namespace gatedrnn {

using Index = std::ptrdiff_t;

constexpr int kMostStages = 2, kMostSlots = 8, kMostKept = 9, kMostPeepholes = 3, kMostNorms = 4;

// Unit vectors of the widest panel.
constexpr int kMostUnitVectors = 4;

// A stage of a step: a product of the inputs, a product of a recurrent operand, and the cell's mathematics on their sums. Its slots
// are finished pre-activations. The first `gates` of them have a part of the inputs, the last `gates` a part of the operand: the
// reset-after GRU, which multiplies one part of its candidate by r, has slots n_x, r, z, n_h.
struct StageDescription {
  int slots = 0, gates = 0;
  int kept = 0;                        // values that it keeps for backward
  bool two_passes = false;             // of its mathematics, see cells.h
  int first_slot = 0, first_kept = 0;  // of the cell's

  // In a panel, which has at least three vectors.
  constexpr int unit_vectors() const { return gates > 2 ? 1 : kMostUnitVectors / gates; }
  constexpr int vectors() const { return gates * unit_vectors(); }
  constexpr int first_operand_slot() const { return slots - gates; }
  constexpr bool has_input(int slot) const { return slot < gates; }
  constexpr bool has_operand(int slot) const { return slot >= first_operand_slot(); }
};

// The product of an LSTM's projection: one slot, no inputs, no mathematics. It follows the cell's own stages under this number.
constexpr int kLinear = kMostStages;
constexpr StageDescription kLinearStage = {1, 1, 0, false};

// A vector of weights by which a gate sees c: c[t-1], or c[t].
struct PeepholeDescription {
  const char* name = nullptr;
  int slot = 0;
  bool sees_next = false;
};

// Layer normalisation (Ba, Kiros and Hinton 2016) of a step's products, each for itself, and of c as h sees it; or of the gates'
// pre-activations, their sums. Its values are normalised over the units of a row: x to (x - mean) / sqrt(variance + eps).
enum class LayerNorm { none, products, gates };

// What is normalised together: some slots that follow one another. The slot after a cell's last one is c. A late one is normalised
// when c[t] is known.
struct NormDescription {
  int first_slot = 0, slots = 0;
  bool late = false;
};

// What of h a step's backward reads.
enum class HRead { none, before, after };

// A function of a general cell: what Python calls it (the letter in the docstrings' equations), and which one it is by default.
struct CellActivation {
  const char* name = nullptr;
  ActivationKind usual = ActivationKind::sigmoid;
};

struct CellDescription {
  int gates = 0;          // of the weights, in torch.nn's order
  bool has_c = false;     // whether the state is (h, c)
  bool passes_h = false;  // whether h[t-1] also reaches h[t] without a product
  HRead h_read = HRead::none;
  int gate_of_slot[kMostSlots] = {0, 1, 2, 3};
  // Where slots are normalised: a pre-activation is a bias and the sum of its slots, normalised and weighted.
  LayerNorm layer_norm = LayerNorm::none;
  int norm_count = 0, pre_activations = 0;
  NormDescription norms[kMostNorms] = {};
  int pre_activation_of_slot[kMostSlots + 1] = {};
  int peephole_count = 0;
  PeepholeDescription peepholes[kMostPeepholes] = {};
  int activation_count = 0;  // of a general cell; 0 where functions stand in the mathematics
  CellActivation activations[kMostActivations] = {};
  // Of all stages. Gradients of pre-activations have the same slots. Where there is c, c[t] is kept last.
  int slots = 0, kept = 0;
  int stage_count = 0;
  int late_slots = 0;  // so many of the first slots get their gradients from that of the second stage's operand
  StageDescription stages[kMostStages] = {};  // the second one's operand is what the first one makes of h[t-1]

  constexpr void add(StageDescription stage) {
    stage.first_slot = slots;
    stage.first_kept = kept;
    slots += stage.slots;
    kept += stage.kept;
    stages[stage_count++] = stage;
  }
  constexpr void add(const NormDescription& norm) { norms[norm_count++] = norm; }
  constexpr void add(const PeepholeDescription& peephole) { peepholes[peephole_count++] = peephole; }
  constexpr void add(const CellActivation& activation) { activations[activation_count++] = activation; }

  // Whether its mathematics is a kernel of its own, which follows the products of the cell without options.
  constexpr bool is_general() const { return activation_count > 0; }

  constexpr bool is_normalized() const { return layer_norm != LayerNorm::none; }
  constexpr bool normalizes_c() const { return layer_norm == LayerNorm::products && has_c; }
  constexpr int norm_of_slot(int slot) const {
    int i = 0;
    while (slot >= norms[i].first_slot + norms[i].slots) ++i;
    return i;
  }
  constexpr int normalized_slots() const { return is_normalized() ? slots + normalizes_c() : 0; }

  // A step's gradients are those of its slots and, where these are normalised, of the pre-activations and of the slots' weights.
  constexpr int gradient_slots() const { return slots + pre_activations + normalized_slots(); }
  // From here on their sums over steps and rows are gradients of parameters.
  constexpr int first_summed_slot() const { return is_normalized() ? slots : 0; }

  // The slots of W_ih are the first `gates`; those of W_hh as it multiplies h[t-1] are the first stage's.
  constexpr int first_recurrent_slot() const { return stages[0].first_operand_slot(); }
  constexpr int recurrent_slots() const { return stages[0].gates; }
  constexpr bool two_stages() const { return stage_count == 2; }
  constexpr bool reads_h() const { return passes_h || two_stages(); }
  constexpr const StageDescription& last_stage() const { return stages[stage_count - 1]; }
  constexpr const StageDescription& stage_of_slot(int slot) const {
    return stages[two_stages() && slot >= stages[1].first_slot ? 1 : 0];
  }
  // The first gate of a stage's operand product; its others follow.
  constexpr int first_gate(int stage) const {
    return gate_of_slot[stages[stage].first_slot + stages[stage].first_operand_slot()];
  }
};

}  // namespace gatedrnn
