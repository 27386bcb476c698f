// The reference of layer-normalised cells: all units of one row, one value at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "gatedrnn/cells/normalized_unit.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn {

// A unit's weights and biases.
template <class Unit, class T>
void take_norm_parameters(Unit& unit, const LayerParameters<T>& w, const CellDescription& cell, Index hidden_size,
                          Index u) {
  for (int slot = 0; slot < cell.normalized_slots(); ++slot)
    unit.weights[slot] = slot_weights(w, cell, slot, hidden_size)[u];
  for (int i = 0; i < cell.pre_activations; ++i)
    visit_biases(w, cell, i, hidden_size, [&](const T* values) { unit.biases[i] += values[u]; });
}

// The mean of value(slot, u) over what a norm normalises together. Each slot has 16 chains, by unit; those of slots are added up, and
// then the 16 in pairs.
template <class T, class Value>
T mean_of(const NormDescription& norm, Index units, Value&& value) {
  std::vector<T> chains(16, T(0));
  for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot) {
    std::vector<T> own(16, T(0));
    for (Index u = 0; u < units; ++u) own[u % 16] += value(slot, u);
    for (int i = 0; i < 16; ++i) chains[i] += own[i];
  }
  for (; chains.size() > 1; chains.resize(chains.size() / 2))
    for (std::size_t i = 0; i < chains.size() / 2; ++i) chains[i] += chains[i + chains.size() / 2];
  return chains[0] / static_cast<T>(norm.slots * units);
}

template <class T, class Units>
T mean_of_values(const NormDescription& norm, const Units& units) {
  return mean_of<T>(norm, units.size(), [&](int slot, Index u) { return units[u].values[slot]; });
}

// What a value's distance from the mean is multiplied with.
template <class T, class Units>
T scale_of_values(const NormDescription& norm, const Units& units, T mean, T eps) {
  const T variance = mean_of<T>(norm, units.size(), [&](int slot, Index u) {
    const T from_mean = units[u].values[slot] - mean;
    return from_mean * from_mean;
  });
  return T(1) / std::sqrt(variance + eps);
}

template <class T, class Units>
void normalize(const NormDescription& norm, T eps, Units& units) {
  const T mean = mean_of_values<T>(norm, units), scale = scale_of_values<T>(norm, units, mean, eps);
  for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot)
    for (auto& unit : units) unit.normalized[slot] = (unit.values[slot] - mean) * scale;
}

// d_values from d_pre_activations.
template <class T, class Units>
void through_norm(const NormDescription& norm, T eps, Units& units) {
  const T scale = scale_of_values<T>(norm, units, mean_of_values<T>(norm, units), eps);
  const auto d = [&](int slot, Index u) { return units[u].d_normalized(slot); };
  const T d_mean = mean_of<T>(norm, units.size(), d);
  const T d_scale =
      mean_of<T>(norm, units.size(), [&](int slot, Index u) { return d(slot, u) * units[u].normalized[slot]; });
  for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot)
    for (Index u = 0; u < static_cast<Index>(units.size()); ++u) {
      const T x = units[u].normalized[slot];
      units[u].d_weights[slot] = units[u].d_weighted(slot) * x;
      units[u].d_values[slot] = ((d(slot, u) - d_mean) - x * d_scale) * scale;
    }
}

template <Cell cell, int pass, class Units>
void run_pass(Units& units) {
  for (auto& unit : units) Mathematics<cell>::template forward<pass>(unit);
}

// A step, from the sums in `values`.
template <Cell cell, class T, class Units>
void run_normalized_step(T eps, Units& units) {
  constexpr CellDescription about = description(cell);
  const auto normalize_some = [&](bool late) {
    for (int i = 0; i < about.norm_count; ++i)
      if (about.norms[i].late == late) normalize(about.norms[i], eps, units);
  };
  run_pass<cell, 0>(units);
  normalize_some(false);
  run_pass<cell, 1>(units);
  if (about.normalizes_c())
    for (auto& unit : units) unit.values[about.slots] = unit.c_now;
  normalize_some(true);
  run_pass<cell, 2>(units);
  for (auto& unit : units) std::copy_n(unit.values, about.slots, unit.kept);
}

template <Cell cell, int pass, class Units>
void run_pass_back(Units& units) {
  for (auto& unit : units) Mathematics<cell>::template backward<pass>(unit);
}

template <Cell cell, class T, class Units>
void run_normalized_step_back(T eps, Units& units) {
  constexpr CellDescription about = description(cell);
  for (auto& unit : units) std::copy_n(unit.kept_values, about.normalized_slots(), unit.values);
  for (int i = 0; i < about.norm_count; ++i) normalize(about.norms[i], eps, units);
  const auto go_through_some = [&](bool late) {
    for (int i = 0; i < about.norm_count; ++i)
      if (about.norms[i].late == late) through_norm(about.norms[i], eps, units);
  };
  run_pass_back<cell, 2>(units);
  go_through_some(true);
  if (about.normalizes_c())
    for (auto& unit : units) unit.d_c_now += unit.d_values[about.slots];
  run_pass_back<cell, 1>(units);
  go_through_some(false);
  run_pass_back<cell, 0>(units);
}

}  // namespace gatedrnn
