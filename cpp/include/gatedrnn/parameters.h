// Where a module's parameters are, in torch.nn's layout, for one layer and direction.
#pragma once

#include <vector>

#include "gatedrnn/spec.h"

namespace gatedrnn {

template <class T>
struct LayerParameters {
  const T* weight_ih = nullptr;            // [G * H][I]
  const T* weight_hh = nullptr;            // [G * H][P or H]
  const T* bias_ih = nullptr;              // [G * H], or null
  const T* bias_hh = nullptr;              // [G * H], or null
  const T* weight_hr = nullptr;            // [P][H], with a projection
  const T* peephole[kMostPeepholes] = {};  // [H] each, as the cell has them
  // Layer normalisation's (see visit_norm_parameters), or null.
  const T *weight_ln = nullptr, *weight_ln_hh = nullptr, *weight_ln_c = nullptr, *bias_ln_c = nullptr;
};

// Where the gradients of one layer's and direction's parameters go, in the layout of the parameters.
template <class T>
struct LayerGradients {
  T* weight_ih = nullptr;
  T* weight_hh = nullptr;
  T* bias_ih = nullptr;
  T* bias_hh = nullptr;
  T* weight_hr = nullptr;
  T* peephole[kMostPeepholes] = {};
  T *weight_ln = nullptr, *weight_ln_hh = nullptr, *weight_ln_c = nullptr, *bias_ln_c = nullptr;
};

// By layer, and within it by direction.
template <class T>
using Parameters = std::vector<LayerParameters<T>>;

// What layer normalisation multiplies what it has normalised with: `visit(name, blocks, place)` for each vector of so many times H
// values, by gate where it has one of each; and what it adds to c.
template <class Layer, class Visit>
void visit_norm_parameters(const CellDescription& cell, bool bias, Layer& layer, Visit&& visit) {
  if (cell.layer_norm == LayerNorm::gates) visit("weight_ln", cell.gates, layer.weight_ln);
  if (cell.layer_norm != LayerNorm::products) return;
  visit("weight_ln_ih", cell.gates, layer.weight_ln);
  visit("weight_ln_hh", cell.gates, layer.weight_ln_hh);
  if (cell.normalizes_c()) visit("weight_ln_c", 1, layer.weight_ln_c);
  if (cell.normalizes_c() && bias) visit("bias_ln_c", 1, layer.bias_ln_c);
}

// Of these, the H values of a slot.
template <class Layer>
auto slot_weights(const Layer& layer, const CellDescription& cell, int slot, Index hidden_size) {
  if (slot == cell.slots) return layer.weight_ln_c;
  const auto weights = cell.stages[0].has_input(slot) ? layer.weight_ln : layer.weight_ln_hh;
  return weights + cell.gate_of_slot[slot] * hidden_size;
}

// `visit(place)` for each bias that a pre-activation of normalised slots has, of H values.
template <class Layer, class Visit>
void visit_biases(const Layer& layer, const CellDescription& cell, int pre_activation, Index hidden_size,
                  Visit&& visit) {
  for (int slot = 0; slot < cell.normalized_slots(); ++slot) {
    if (cell.pre_activation_of_slot[slot] != pre_activation || !layer.bias_ih) continue;
    const Index at = cell.gate_of_slot[slot % cell.slots] * hidden_size;
    if (slot == cell.slots) visit(layer.bias_ln_c);
    if (cell.stages[0].has_input(slot)) visit(layer.bias_ih + at);
    if (slot < cell.slots && cell.stages[0].has_operand(slot)) visit(layer.bias_hh + at);
  }
}

// What step kernels read of these: the weights of slots, and then the biases of pre-activations.
inline int norm_vectors(const CellDescription& cell) { return cell.normalized_slots() + cell.pre_activations; }
template <class T>
T norm_value(const LayerParameters<T>& from, const CellDescription& cell, Index i, Index hidden_size, Index unit) {
  const int vector = static_cast<int>(i), slots = cell.normalized_slots();
  if (vector < slots) return slot_weights(from, cell, vector, hidden_size)[unit];
  T bias = 0;
  visit_biases(from, cell, vector - slots, hidden_size, [&](const T* values) { bias += values[unit]; });
  return bias;
}

// What a slot's pre-activation starts from: the two biases added once, or of a slot that has but one of the products its own. What is
// normalised starts from 0.
template <class T>
T slot_bias(const LayerParameters<T>& layer, const CellDescription& cell, Index slot, Index hidden_size, Index unit) {
  if (!layer.bias_ih || cell.is_normalized()) return T(0);
  const Index row = cell.gate_of_slot[slot] * hidden_size + unit;
  const StageDescription& stage = cell.stage_of_slot(static_cast<int>(slot));
  const int number = static_cast<int>(slot) - stage.first_slot;
  if (!stage.has_operand(number)) return layer.bias_ih[row];
  if (!stage.has_input(number)) return layer.bias_hh[row];
  return layer.bias_ih[row] + layer.bias_hh[row];
}

}  // namespace gatedrnn
