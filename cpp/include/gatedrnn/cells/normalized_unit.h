// Places of layer-normalised cells (layer_norm.h) that are one unit of one row: for the reference, and for devices. Whoever has them
// sets their values, and normalises these over all units of the row.
#pragma once

#include "gatedrnn/cells.h"
#include "gatedrnn/cells/unit.h"

namespace gatedrnn::cells {

// What is normalised: the slots, and c'. The weights and biases that follow.
template <class S, Cell cell>
struct NormalizedValues {
  using V = typename S::V;
  static constexpr int slots = Mathematics<cell>::description.slots;

  V values[kMostSlots + 1] = {}, normalized[kMostSlots + 1] = {}, weights[kMostSlots + 1] = {}, biases[kMostSlots] = {};

  constexpr V pre_activation(int i) const {
    constexpr CellDescription about = Mathematics<cell>::description;
    V sum = biases[i];
    for (int slot = 0; slot < about.normalized_slots(); ++slot)
      if (about.pre_activation_of_slot[slot] == i) sum = S::madd(normalized[slot], weights[slot], sum);
    return sum;
  }
};

template <class S, Cell cell>
struct NormalizedUnit : Unit<S>, NormalizedValues<S, cell> {
  using V = typename S::V;

  constexpr V gate(int i) const { return this->pre_activation(i); }
  constexpr void add_product(int slot, V a, V b) { this->values[slot] = S::madd(a, b, this->values[slot]); }
  constexpr void keep(int i, V value) {
    if (i == Mathematics<cell>::own_kept) Unit<S>::keep(this->slots, value);
  }
};

template <class S, Cell cell>
struct NormalizedBackUnit : BackUnit<S>, NormalizedValues<S, cell> {
  using V = typename S::V;

  V d_pre_activations[kMostSlots] = {}, d_values[kMostSlots + 1] = {}, d_weights[kMostSlots + 1] = {};

  constexpr V gate(int i) const { return this->pre_activation(i); }
  constexpr V kept(int i) const {
    using M = Mathematics<cell>;
    return i == M::own_kept ? BackUnit<S>::kept(this->slots) : gate(M::pre_activation(i));
  }
  constexpr V d_sum(int slot) const { return d_values[slot]; }
  constexpr void set_d_a(int i, V value) { d_pre_activations[i] = value; }

  // Of a slot's normalised value: of the loss by it weighted, and by itself.
  constexpr V d_weighted(int slot) const {
    constexpr CellDescription about = Mathematics<cell>::description;
    return d_pre_activations[about.pre_activation_of_slot[slot]];
  }
  constexpr V d_normalized(int slot) const { return S::mul(this->weights[slot], d_weighted(slot)); }
};

}  // namespace gatedrnn::cells
