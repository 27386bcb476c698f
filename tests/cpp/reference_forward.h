// The reference going forward, and what it leaves for going back.
#pragma once

#include <algorithm>
#include <map>
#include <tuple>
#include <type_traits>
#include <vector>

#include "gatedrnn/cells/scalar.h"
#include "gatedrnn/cells/unit.h"
#include "gatedrnn/network.h"
#include "reference_layer_norm.h"
#include "reference_products.h"

namespace gatedrnn {

// One step of one row: what it started from, and what it keeps, each of its values by unit.
template <class T>
struct StepRecord {
  std::vector<T> h_before, c_before, h;
  std::vector<std::vector<T>> kept;
};

template <class T>
class ReferenceForward {
  using S = cells::Scalar<T>;

 public:
  ReferenceForward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                   const Arithmetic& arithmetic)
      : spec_(spec),
        options_(spec.options.as<T>()),
        parameters_(parameters),
        sequence_(sequence),
        arithmetic_(arithmetic) {}

  void run() {
    const Index T_ = sequence_.steps, B = sequence_.batch, width = spec_.output_size();
    std::vector<T> input(T_ * B * spec_.input_size), output;
    for (Index t = 0; t < T_; ++t)
      for (Index b = 0; b < B; ++b)
        for (Index k = 0; k < spec_.input_size; ++k)
          input[(t * B + b) * spec_.input_size + k] = sequence_.x[t * sequence_.x_step + b * sequence_.x_row + k];
    for (Index layer = 0; layer < spec_.num_layers; ++layer) {
      inputs.push_back(input);
      output.assign(T_ * B * width, T(0));
      for (Index direction = 0; direction < spec_.directions; ++direction)
        for (Index b = 0; b < B; ++b) run_row(layer, direction, b, input, output);
      input = output;
    }
    for (Index t = 0; t < T_; ++t)
      for (Index b = 0; b < B; ++b)
        for (Index k = 0; k < width; ++k)
          sequence_.y[t * sequence_.y_step + b * sequence_.y_row + k] = input[(t * B + b) * width + k];
  }

  // What run() leaves for backward.
  std::vector<std::vector<T>> inputs;                                // by layer: [t][row][k]
  std::map<std::tuple<Index, Index, Index>, StepRecord<T>> records;  // by track, row and step

 private:
  void run_row(Index layer, Index direction, Index b, const std::vector<T>& input, std::vector<T>& output) {
    const Index P = spec_.state_size(), H = spec_.hidden_size, I = spec_.layer_input_size(layer), B = sequence_.batch;
    const Index at = layer * spec_.directions + direction;
    const LayerParameters<T>& weights = parameters_[at];
    std::vector<T> h(P, T(0)), c(H, T(0));
    if (sequence_.h_0) h.assign(sequence_.h_0 + (at * B + b) * P, sequence_.h_0 + (at * B + b + 1) * P);
    if (sequence_.c_0) c.assign(sequence_.c_0 + (at * B + b) * H, sequence_.c_0 + (at * B + b + 1) * H);
    const Index length = sequence_.lengths ? sequence_.lengths[b] : sequence_.steps;
    for (Index s = 0; s < length; ++s) {
      const Index t = spec_.backwards(direction) ? length - 1 - s : s;
      StepRecord<T>& record = records[{at, b, s}];
      record.h_before = h;
      record.c_before = c;
      with_cell(spec_.cell, [&](auto cell) {
        h = next_h<decltype(cell)::value>(weights, &input[(t * B + b) * I], I, h, c, record);
      });
      record.h = h;
      std::copy(h.begin(), h.end(), output.begin() + (t * B + b) * spec_.output_size() + direction * P);
    }
    std::copy(h.begin(), h.end(), sequence_.h_n + (at * B + b) * P);
    if (spec_.description().has_c) std::copy(c.begin(), c.end(), sequence_.c_n + (at * B + b) * H);
  }

  // start + the sum over k of weights[k] * x[k]
  static T product(const Arithmetic& how, T start, const T* weights, const T* x, Index count, T least) {
    return add_product(how, start, std::vector<T>(x, x + count), std::vector<T>(weights, weights + count), least);
  }

  // A pre-activation: bias, inputs, recurrent operand, as far as the slot has them.
  T gate(const LayerParameters<T>& w, int stage, int slot, Index u, const T* x, Index I,
         const std::vector<T>& operand) const {
    const CellDescription& cell = spec_.description();
    const StageDescription& of = cell.stages[stage];
    const Index P = static_cast<Index>(operand.size()), H = spec_.hidden_size;
    const Index row = cell.gate_of_slot[of.first_slot + slot] * H + u;
    T a = slot_bias(w, cell, of.first_slot + slot, H, u);
    if (of.has_input(slot)) a = product(arithmetic_.of_inputs(I), a, w.weight_ih + row * I, x, I, T(0));
    if (of.has_operand(slot)) a = product(arithmetic_, a, w.weight_hh + row * P, operand.data(), P, T(1));
    return a;
  }

  template <Cell cell>
  using UnitOf = std::conditional_t<description(cell).is_normalized(), cells::NormalizedUnit<S, cell>, cells::Unit<S>>;

  template <Cell cell, int stage, class Units>
  void run_stage(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& operand, Units& units) const {
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      for (int slot = 0; slot < description(cell).stages[stage].slots; ++slot)
        units[u].gates[slot] = gate(w, stage, slot, u, x, I, operand);
      Mathematics<cell>::template first<stage>(units[u]);
      Mathematics<cell>::template second<stage>(units[u]);
    }
  }

  template <Cell cell, class Units>
  void run_normalized(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h, Units& units) const {
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      for (int slot = 0; slot < description(cell).slots; ++slot) units[u].values[slot] = gate(w, 0, slot, u, x, I, h);
      take_norm_parameters(units[u], w, description(cell), spec_.hidden_size, u);
    }
    run_normalized_step<cell>(options_.layer_norm_eps, units);
  }

  template <class Units, class Value>
  static std::vector<T> of_each(const Units& units, Value&& value) {
    std::vector<T> values;
    for (const auto& unit : units) values.push_back(value(unit));
    return values;
  }

  template <Cell cell>
  std::vector<T> next_h(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h, std::vector<T>& c,
                        StepRecord<T>& record) const {
    constexpr CellDescription about = description(cell);
    const Index H = spec_.hidden_size;
    std::vector<UnitOf<cell>> units(H);
    for (Index u = 0; u < H; ++u) {
      units[u].cell_options = &options_;
      if (about.reads_h()) units[u].h_before = h[u];
      units[u].c_now = c[u];
      for (int i = 0; i < about.peephole_count; ++i) units[u].peepholes[i] = w.peephole[i][u];
    }
    if constexpr (about.is_normalized())
      run_normalized<cell>(w, x, I, h, units);
    else
      run_stage<cell, 0>(w, x, I, h, units);
    if constexpr (about.two_stages())
      run_stage<cell, 1>(w, x, I, of_each(units, [](const auto& unit) { return unit.operand; }), units);
    for (int i = 0; i < about.kept; ++i)
      record.kept.push_back(of_each(units, [i](const auto& unit) { return unit.kept[i]; }));
    c = of_each(units, [](const auto& unit) { return unit.c_now; });
    const std::vector<T> next = of_each(units, [](const auto& unit) { return unit.h_next; });
    if (!w.weight_hr) return next;
    std::vector<T> projected(spec_.proj_size);
    for (Index p = 0; p < spec_.proj_size; ++p)
      projected[p] = product(arithmetic_, T(0), w.weight_hr + p * H, next.data(), H, T(1));
    return projected;
  }

  const Spec& spec_;
  const CellOptions<T> options_;
  const Parameters<T>& parameters_;
  const Sequence<T>& sequence_;
  const Arithmetic arithmetic_;
};

}  // namespace gatedrnn
