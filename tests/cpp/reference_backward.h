// The reference going back: one row, one step, one unit at a time.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/sums.h"
#include "gatedrnn/tape.h"
#include "reference_forward.h"

namespace gatedrnn {

template <class T>
class ReferenceBackward {
  using S = cells::Scalar<T>;
  using Vector = std::vector<T>;

 public:
  ReferenceBackward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                    const BackwardCall<T>& call, const Arithmetic& arithmetic)
      : spec_(spec),
        options_(spec.options.as<T>()),
        parameters_(parameters),
        sequence_(sequence),
        call_(call),
        arithmetic_(arithmetic),
        forward_(spec, parameters, sequence, arithmetic) {}

  void run() {
    forward_.run();
    const Index T_ = sequence_.steps, B = sequence_.batch, width = spec_.output_size(), I = spec_.input_size;
    Vector d_output(T_ * B * width, T(0)), d_input;
    if (call_.d_y)
      for (Index t = 0; t < T_; ++t)
        for (Index b = 0; b < B; ++b)
          std::copy_n(call_.d_y + t * call_.d_y_step + b * call_.d_y_row, width, &d_output[(t * B + b) * width]);
    for (Index layer = spec_.num_layers - 1; layer >= 0; --layer) {
      d_input.assign(T_ * B * spec_.layer_input_size(layer), T(0));
      for (Index direction = 0; direction < spec_.directions; ++direction) {
        steps_.clear();
        for (Index b = 0; b < B; ++b) run_row(layer, direction, b, d_output, d_input);
        sum_up(layer, direction);
      }
      d_output = d_input;
    }
    if (!call_.d_x) return;
    for (Index t = 0; t < T_; ++t)
      for (Index b = 0; b < B; ++b)
        std::copy_n(&d_input[(t * B + b) * I], I, call_.d_x + t * call_.d_x_step + b * call_.d_x_row);
  }

 private:
  // A step's gradients of pre-activations, by slot, and the right sides of the products that give those of the weights.
  struct StepGradients {
    std::vector<Vector> slots;
    Vector d_h, operand;
    std::vector<Vector> pre_activations, weights;  // where slots are normalised
  };

  Index length(Index b) const { return sequence_.lengths ? sequence_.lengths[b] : sequence_.steps; }
  Index track(Index layer, Index direction) const { return layer * spec_.directions + direction; }
  Index time(Index direction, Index step, Index b) const {
    return spec_.backwards(direction) ? length(b) - 1 - step : step;
  }

  // The sum over the slots' units of d times weight[gate][unit][column], in that order.
  T column(const T* weights, Index width, const std::vector<const Vector*>& slots, const std::vector<Index>& gates,
           Index column) const {
    Vector d, w;
    for (std::size_t s = 0; s < slots.size(); ++s) {
      const Index H = static_cast<Index>(slots[s]->size());
      d.resize(s * arithmetic_.slot_stride(H));
      w.resize(d.size());
      for (Index u = 0; u < H; ++u) {
        d.push_back((*slots[s])[u]);
        w.push_back(weights[(gates[s] * H + u) * width + column]);
      }
    }
    return add_product(arithmetic_, T(0), d, w, T(0));
  }

  // For column(): gradients and gates of some slots that follow one another.
  std::pair<std::vector<const Vector*>, std::vector<Index>> some_slots(const StepGradients& d, int first,
                                                                       int count) const {
    std::vector<const Vector*> slots;
    for (int slot = first; slot < first + count; ++slot) slots.push_back(&d.slots[slot]);
    return {slots, {cell_.gate_of_slot + first, cell_.gate_of_slot + first + count}};
  }

  // Through W_hh to h[t-1].
  Vector through_recurrent(const LayerParameters<T>& w, const StepGradients& d) const {
    const auto [slots, gates] = some_slots(d, cell_.first_recurrent_slot(), cell_.recurrent_slots());
    Vector result(spec_.state_size());
    for (Index u = 0; u < spec_.state_size(); ++u) result[u] = column(w.weight_hh, spec_.state_size(), slots, gates, u);
    return result;
  }

  Vector initial(const T* from, Index at, Index b, Index width) const {
    Vector values(width, T(0));
    if (from) std::copy_n(from + (at * sequence_.batch + b) * width, width, values.begin());
    return values;
  }

  void run_row(Index layer, Index direction, Index b, const Vector& d_output, Vector& d_input) {
    const Index P = spec_.state_size(), H = spec_.hidden_size, B = sequence_.batch, at = track(layer, direction);
    const LayerParameters<T>& w = parameters_[at];
    Vector carry = initial(call_.d_h_n, at, b, P), d_c = initial(call_.d_c_n, at, b, H);
    const StepGradients* after = nullptr;
    const auto arriving = [&] {
      Vector d_h = after ? through_recurrent(w, *after) : Vector(P, T(0));
      if (!after || cell_.passes_h)
        for (Index u = 0; u < P; ++u) d_h[u] += carry[u];
      return d_h;
    };
    for (Index step = length(b) - 1; step >= 0; --step) {
      const Index t = time(direction, step, b);
      Vector d_h = arriving();
      if (call_.d_y || layer + 1 < spec_.num_layers)
        for (Index u = 0; u < P; ++u) d_h[u] += d_output[(t * B + b) * spec_.output_size() + direction * P + u];
      StepGradients& d = steps_[{step, b}];
      step_back(w, forward_.records.at({at, b, step}), d_h, carry, d_c, d);
      to_input(layer, direction, w, d, &d_input[(t * B + b) * spec_.layer_input_size(layer)]);
      after = &d;
    }
    const Vector d_h = arriving();
    std::copy(d_h.begin(), d_h.end(), call_.d_h_0 + (at * B + b) * P);
    if (cell_.has_c) std::copy(d_c.begin(), d_c.end(), call_.d_c_0 + (at * B + b) * H);
  }

  template <Cell cell>
  using UnitOf =
      std::conditional_t<description(cell).is_normalized(), cells::NormalizedBackUnit<S, cell>, cells::BackUnit<S>>;

  void step_back(const LayerParameters<T>& w, const StepRecord<T>& record, Vector d_h, Vector& carry, Vector& d_c,
                 StepGradients& d) const {
    const Index H = spec_.hidden_size;
    d.slots.assign(cell_.slots, Vector(H));
    d.d_h = d_h;
    if (w.weight_hr) {
      Vector unprojected(H);
      for (Index u = 0; u < H; ++u) unprojected[u] = column(w.weight_hr, H, {&d_h}, {0}, u);
      d_h = unprojected;
    }
    with_cell(spec_.cell, [&](auto cell) { through_cell<decltype(cell)::value>(w, record, d_h, carry, d_c, d); });
  }

  template <Cell cell>
  void through_cell(const LayerParameters<T>& w, const StepRecord<T>& record, const Vector& d_h, Vector& carry,
                    Vector& d_c, StepGradients& d) const {
    constexpr CellDescription about = description(cell);
    const Index H = spec_.hidden_size;
    std::vector<UnitOf<cell>> units(H);
    for (Index u = 0; u < H; ++u) {
      UnitOf<cell>& unit = units[u];
      unit.cell_options = &options_;
      for (int i = 0; i < about.kept; ++i) unit.kept_values[i] = record.kept[i][u];
      for (int i = 0; i < about.peephole_count; ++i) unit.peepholes[i] = w.peephole[i][u];
      unit.c_read = record.c_before[u];
      if (about.h_read != HRead::none) unit.h_read = (about.h_read == HRead::after ? record.h : record.h_before)[u];
      unit.d_h_now = d_h[u];
      unit.d_c_now = d_c[u];
      if constexpr (about.is_normalized())
        take_norm_parameters(unit, w, about, H, u);
      else
        Mathematics<cell>::template backward<0>(unit);
    }
    if constexpr (about.is_normalized()) {
      run_normalized_step_back<cell>(options_.layer_norm_eps, units);
      deliver_normalized(about, units, d);
    }
    const auto deliver = [&] {
      for (Index u = 0; u < H; ++u)
        for (int slot = 0; slot < about.slots; ++slot) d.slots[slot][u] = units[u].d_a[slot];
    };
    deliver();
    if constexpr (about.two_stages()) {
      const auto [slots, gates] = some_slots(d, about.stages[1].first_slot, about.stages[1].gates);
      for (Index u = 0; u < H; ++u) {
        units[u].products = column(w.weight_hh, H, slots, gates, u);
        Mathematics<cell>::template backward<1>(units[u]);
      }
      deliver();
    }
    for (Index u = 0; u < H; ++u) {
      d_c[u] = units[u].d_c_now;
      if (about.passes_h) carry[u] = units[u].carried;
      d.operand.push_back(units[u].operand);
    }
  }

  template <class Units>
  void deliver_normalized(const CellDescription& about, Units& units, StepGradients& d) const {
    d.pre_activations.assign(about.pre_activations, Vector());
    d.weights.assign(about.normalized_slots(), Vector());
    for (auto& unit : units) {
      for (int i = 0; i < about.pre_activations; ++i) d.pre_activations[i].push_back(unit.d_pre_activations[i]);
      for (int slot = 0; slot < about.normalized_slots(); ++slot) d.weights[slot].push_back(unit.d_weights[slot]);
      std::copy_n(unit.d_values, about.slots, unit.d_a);
    }
  }

  void to_input(Index layer, Index direction, const LayerParameters<T>& w, const StepGradients& d, T* d_x) const {
    const Index I = spec_.layer_input_size(layer);
    const auto [slots, gates] = some_slots(d, 0, cell_.gates);
    for (Index k = 0; k < I; ++k) {
      const T sum = column(w.weight_ih, I, slots, gates, k);
      d_x[k] = direction == 0 ? sum : d_x[k] + sum;
    }
  }

  // What one step of one row adds to the parameters' gradients.
  struct Pair {
    const StepGradients& d;
    const StepRecord<T>& record;
    const T* x;
    bool begins_block;
  };

  // In the order of the sums: over the steps from the last, and in each over the rows from the longest.
  std::vector<Pair> pairs_in_order(Index layer, Index direction) const {
    const Index B = sequence_.batch, I = spec_.layer_input_size(layer);
    std::vector<Index> rows(B);
    std::iota(rows.begin(), rows.end(), Index(0));
    std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return length(a) > length(b); });
    std::vector<Pair> pairs;
    Index of_block = 0;  // pairs that stand in the last block
    for (Index step = sequence_.steps - 1; step >= 0; --step) {
      const Index running = std::count_if(rows.begin(), rows.end(), [&](Index b) { return step < length(b); });
      if (of_block + running > kBlockPairs) of_block = 0;
      for (const Index b : rows) {
        if (step >= length(b)) continue;
        if (of_block == kBlockPairs) of_block = 0;
        pairs.push_back({steps_.at({step, b}), forward_.records.at({track(layer, direction), b, step}),
                         &forward_.inputs[layer][(time(direction, step, b) * B + b) * I], of_block++ == 0});
      }
    }
    return pairs;
  }

  void sum_up(Index layer, Index direction) const {
    const std::vector<Pair> pairs = pairs_in_order(layer, direction);
    const LayerGradients<T>& to = call_.gradients[track(layer, direction)];
    for (int slot = 0; slot < cell_.slots; ++slot) sum_up_slot(pairs, layer, to, slot);
    for (Index p = 0; p < spec_.proj_size; ++p)
      for (Index u = 0; u < spec_.hidden_size; ++u)
        add_products(
            to.weight_hr, p * spec_.hidden_size + u, pairs, [&](const Pair& pair) { return pair.d.d_h[p]; },
            [&](const Pair& pair) { return pair.d.operand[u]; });
    for (int i = 0; i < cell_.peephole_count; ++i) sum_up_peephole(pairs, cell_.peepholes[i], to.peephole[i]);
    if (cell_.is_normalized()) sum_up_norms(pairs, to);
  }

  void sum_up_norms(const std::vector<Pair>& pairs, const LayerGradients<T>& to) const {
    const Index H = spec_.hidden_size;
    const auto sum_up = [&](std::vector<Vector> StepGradients::* values, int i, T* gradient) {
      for (Index u = 0; u < H; ++u)
        add(gradient, u, pairs, [&](const Pair& pair, T s) { return s + (pair.d.*values)[i][u]; });
    };
    for (int i = 0; i < cell_.pre_activations; ++i)
      visit_biases(to, cell_, i, H, [&](T* gradient) { sum_up(&StepGradients::pre_activations, i, gradient); });
    for (int slot = 0; slot < cell_.normalized_slots(); ++slot)
      sum_up(&StepGradients::weights, slot, slot_weights(to, cell_, slot, H));
  }

  void sum_up_slot(const std::vector<Pair>& pairs, Index layer, const LayerGradients<T>& to, int slot) const {
    const Index H = spec_.hidden_size, P = spec_.state_size(), I = spec_.layer_input_size(layer);
    const bool of_second = cell_.two_stages() && slot >= cell_.stages[1].first_slot;
    for (Index u = 0; u < H; ++u) {
      const Index row = cell_.gate_of_slot[slot] * H + u;
      const auto d = [slot, u](const Pair& pair) { return pair.d.slots[slot][u]; };
      if (slot < cell_.gates) {
        for (Index k = 0; k < I; ++k)
          add_products(to.weight_ih, row * I + k, pairs, d, [&](const Pair& pair) { return pair.x[k]; });
        if (!cell_.is_normalized()) add(to.bias_ih, row, pairs, [&](const Pair& pair, T s) { return s + d(pair); });
      }
      if (slot < cell_.first_recurrent_slot()) continue;
      for (Index k = 0; k < P; ++k)
        add_products(to.weight_hh, row * P + k, pairs, d,
                     [&](const Pair& pair) { return (of_second ? pair.d.operand : pair.record.h_before)[k]; });
      if (!cell_.is_normalized()) add(to.bias_hh, row, pairs, [&](const Pair& pair, T s) { return s + d(pair); });
    }
  }

  void sum_up_peephole(const std::vector<Pair>& pairs, const PeepholeDescription& peephole, T* gradient) const {
    for (Index u = 0; u < spec_.hidden_size; ++u)
      add(gradient, u, pairs, [&](const Pair& pair, T s) {
        const Vector& c = peephole.sees_next ? pair.record.kept.back() : pair.record.c_before;
        return S::madd(pair.d.slots[peephole.slot][u], c[u], s);
      });
  }

  // The sum of d(pair) x(pair). Where these are rounded, each block is filled up with zeros, and a group is one product.
  template <class D, class X>
  void add_products(T* gradient, Index index, const std::vector<Pair>& pairs, D&& d, X&& x) const {
    if (!arithmetic_.rounds())
      return add(gradient, index, pairs, [&](const Pair& pair, T s) { return S::madd(d(pair), x(pair), s); });
    if (!gradient) return;
    bool starts = !call_.accumulate;
    if (starts) gradient[index] = 0;
    Vector left, right;
    Index blocks = 0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      left.push_back(d(pairs[i]));
      right.push_back(x(pairs[i]));
      const bool last = i + 1 == pairs.size();
      if (!last && !pairs[i + 1].begins_block) continue;
      left.resize(round_up(static_cast<Index>(left.size()), kRoundedPart));
      right.resize(left.size());
      if (++blocks % kGroupBlocks != 0 && !last) continue;
      const T group = add_pairs(arithmetic_, T(0), left, right);
      gradient[index] = starts ? group : gradient[index] + group;
      starts = false;
      left.clear();
      right.clear();
    }
  }

  // `term(pair, sum)` goes on with the sum of the pair's block. Blocks are added up in groups, and groups in the gradient.
  template <class Term>
  void add(T* gradient, Index index, const std::vector<Pair>& pairs, Term&& term) const {
    if (!gradient) return;
    bool starts = !call_.accumulate;
    T group = 0, block = 0;
    Index blocks = 0;
    if (starts) gradient[index] = 0;
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      const bool last = i + 1 == pairs.size();
      block = term(pairs[i], block);
      if (!last && !pairs[i + 1].begins_block) continue;
      group += block;
      block = 0;
      if (++blocks % kGroupBlocks != 0 && !last) continue;
      gradient[index] = starts ? group : gradient[index] + group;
      starts = false;
      group = 0;
    }
  }

  const Spec& spec_;
  const CellOptions<T> options_;
  const CellDescription& cell_ = spec_.description();
  const Parameters<T>& parameters_;
  const Sequence<T>& sequence_;
  const BackwardCall<T>& call_;
  const Arithmetic arithmetic_;
  ReferenceForward<T> forward_;
  std::map<std::pair<Index, Index>, StepGradients> steps_;  // of one track, by step and row
};

}  // namespace gatedrnn
