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
};

// By layer, and within it by direction.
template <class T>
using Parameters = std::vector<LayerParameters<T>>;

// What a slot's pre-activation starts from: the two biases added once, or of a slot that has but one of the products its own.
template <class T>
T slot_bias(const LayerParameters<T>& layer, const CellDescription& cell, Index slot, Index hidden_size, Index unit) {
  if (!layer.bias_ih) return T(0);
  const Index row = cell.gate_of_slot[slot] * hidden_size + unit;
  const StageDescription& stage = cell.stage_of_slot(static_cast<int>(slot));
  const int number = static_cast<int>(slot) - stage.first_slot;
  if (!stage.has_operand(number)) return layer.bias_ih[row];
  if (!stage.has_input(number)) return layer.bias_hh[row];
  return layer.bias_ih[row] + layer.bias_hh[row];
}

}  // namespace gatedrnn
