// The reference going back: one row, one step, one unit at a time.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/tape.h"
#include "reference_forward.h"

namespace gatedrnn {

template <class T>
class ReferenceBackward {
  using S = cells::Scalar<T>;
  using Gru = cells::Gru<S>;
  using Lstm = cells::Lstm<S>;
  using Vector = std::vector<T>;

 public:
  ReferenceBackward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                    const BackwardCall<T>& call)
      : spec_(spec), parameters_(parameters), sequence_(sequence), call_(call), forward_(spec, parameters, sequence) {}

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
    Vector d_h, unprojected, reset_h;
  };

  Index length(Index b) const { return sequence_.lengths ? sequence_.lengths[b] : sequence_.steps; }
  Index track(Index layer, Index direction) const { return layer * spec_.directions + direction; }
  Index time(Index direction, Index step, Index b) const { return direction == 0 ? step : length(b) - 1 - step; }

  // The sum over the slots' units of d times weight[gate][unit][column], in that order.
  static T column(const T* weights, Index width, const std::vector<const Vector*>& slots,
                  const std::vector<Index>& gates, Index column) {
    T sum = 0;
    for (std::size_t s = 0; s < slots.size(); ++s) {
      const Index H = static_cast<Index>(slots[s]->size());
      for (Index u = 0; u < H; ++u) sum = S::madd((*slots[s])[u], weights[(gates[s] * H + u) * width + column], sum);
    }
    return sum;
  }

  // Through W_hh to h[t-1].
  Vector through_recurrent(const LayerParameters<T>& w, const StepGradients& d) const {
    std::vector<const Vector*> slots;
    std::vector<Index> gates;
    const Index first = spec_.cell == Cell::gru ? 1 : 0;
    const Index count = spec_.cell == Cell::gru_reset_before ? 2 : gate_count(spec_.cell);
    for (Index gate = 0; gate < count; ++gate) {
      slots.push_back(&d.slots[first + gate]);
      gates.push_back(gate);
    }
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
      if (!after || is_gru(spec_.cell))
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
    if (is_lstm(spec_.cell)) std::copy(d_c.begin(), d_c.end(), call_.d_c_0 + (at * B + b) * H);
  }

  void step_back(const LayerParameters<T>& w, const StepRecord<T>& record, Vector d_h, Vector& carry, Vector& d_c,
                 StepGradients& d) const {
    const Index H = spec_.hidden_size;
    d.slots.assign(gradient_slots(spec_.cell), Vector(H));
    d.d_h = d_h;
    if (w.weight_hr) {
      Vector unprojected(H);
      for (Index u = 0; u < H; ++u) unprojected[u] = column(w.weight_hr, H, {&d_h}, {0}, u);
      d_h = unprojected;
    }
    switch (spec_.cell) {
      case Cell::lstm:
      case Cell::lstm_peephole: lstm_back(w, record, d_h, d_c, d); break;
      case Cell::gru: gru_reset_after_back(record, d_h, carry, d); break;
      case Cell::gru_reset_before: gru_reset_before_back(w, record, d_h, carry, d); break;
      case Cell::rnn_tanh:
        for (Index u = 0; u < H; ++u) d.slots[0][u] = cells::Rnn<S>::tanh_backward(record.h[u], d_h[u]);
        break;
      case Cell::rnn_relu:
        for (Index u = 0; u < H; ++u) d.slots[0][u] = cells::Rnn<S>::relu_backward(record.h[u], d_h[u]);
        break;
    }
  }

  void lstm_back(const LayerParameters<T>& w, const StepRecord<T>& record, const Vector& d_h, Vector& d_c,
                 StepGradients& d) const {
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      const typename Lstm::Kept kept{record.i[u], record.f[u], record.g[u], record.o[u], record.c[u]};
      typename Lstm::Peephole weights{};
      if (w.peephole[0]) weights = {w.peephole[0][u], w.peephole[1][u], w.peephole[2][u]};
      const auto g = Lstm::backward(kept, record.c_before[u], d_h[u], d_c[u], w.peephole[0] ? &weights : nullptr);
      d.slots[0][u] = g.i;
      d.slots[1][u] = g.f;
      d.slots[2][u] = g.g;
      d.slots[3][u] = g.o;
      d_c[u] = g.c;
      d.unprojected.push_back(kept.o * cells::Activations<S>::tanh(kept.c));
    }
  }

  // Slots n_x, r, z, n_h.
  void gru_reset_after_back(const StepRecord<T>& record, const Vector& d_h, Vector& carry, StepGradients& d) const {
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      const auto g = Gru::blend_backward(record.z[u], record.n[u], record.h_before[u], d_h[u]);
      d.slots[0][u] = g.n;
      d.slots[1][u] = Gru::reset_backward(record.r[u], record.n_h[u], g.n);
      d.slots[2][u] = g.z;
      d.slots[3][u] = g.n * record.r[u];
      carry[u] = g.h;
    }
  }

  // Slots r, z, n.
  void gru_reset_before_back(const LayerParameters<T>& w, const StepRecord<T>& record, const Vector& d_h, Vector& carry,
                             StepGradients& d) const {
    const Index H = spec_.hidden_size;
    for (Index u = 0; u < H; ++u) {
      const auto g = Gru::blend_backward(record.z[u], record.n[u], record.h_before[u], d_h[u]);
      d.slots[1][u] = g.z;
      d.slots[2][u] = g.n;
      carry[u] = g.h;
    }
    for (Index u = 0; u < H; ++u) {
      const T d_reset_h = column(w.weight_hh, H, {&d.slots[2]}, {2}, u);
      d.slots[0][u] = Gru::reset_backward(record.r[u], record.h_before[u], d_reset_h);
      carry[u] = S::madd(d_reset_h, record.r[u], carry[u]);
      d.reset_h.push_back(record.r[u] * record.h_before[u]);
    }
  }

  void to_input(Index layer, Index direction, const LayerParameters<T>& w, const StepGradients& d, T* d_x) const {
    const Index I = spec_.layer_input_size(layer);
    std::vector<const Vector*> slots;
    for (Index slot = 0; slot < gate_count(spec_.cell); ++slot) slots.push_back(&d.slots[slot]);
    const std::vector<Index> gates =
        spec_.cell == Cell::gru ? std::vector<Index>{2, 0, 1} : std::vector<Index>{0, 1, 2, 3};
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
  };

  // In the order of the sums: over the steps from the last, and in each over the rows from the longest.
  std::vector<Pair> pairs_in_order(Index layer, Index direction) const {
    const Index B = sequence_.batch, I = spec_.layer_input_size(layer);
    std::vector<Index> rows(B);
    std::iota(rows.begin(), rows.end(), Index(0));
    std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return length(a) > length(b); });
    std::vector<Pair> pairs;
    for (Index step = sequence_.steps - 1; step >= 0; --step)
      for (const Index b : rows)
        if (step < length(b))
          pairs.push_back({steps_.at({step, b}), forward_.records.at({track(layer, direction), b, step}),
                           &forward_.inputs[layer][(time(direction, step, b) * B + b) * I]});
    return pairs;
  }

  // start, then `term(pair, sum)` of each pair in turn.
  template <class Term>
  static T sum(const std::vector<Pair>& pairs, T start, Term&& term) {
    for (const Pair& pair : pairs) start = term(pair, start);
    return start;
  }

  void sum_up(Index layer, Index direction) const {
    const std::vector<Pair> pairs = pairs_in_order(layer, direction);
    const LayerGradients<T>& to = call_.gradients[track(layer, direction)];
    const bool reset_after = spec_.cell == Cell::gru;
    for (Index gate = 0; gate < gate_count(spec_.cell); ++gate)
      sum_up_gate(pairs, layer, to, gate, reset_after ? (gate + 1) % 3 : gate, reset_after ? gate + 1 : gate);
    for (Index p = 0; p < spec_.proj_size; ++p)
      for (Index u = 0; u < spec_.hidden_size; ++u)
        go_on(to.weight_hr[p * spec_.hidden_size + u], pairs,
              [&](const Pair& pair, T s) { return S::madd(pair.d.d_h[p], pair.d.unprojected[u], s); });
    if (spec_.cell == Cell::lstm_peephole) sum_up_peepholes(pairs, to);
  }

  void sum_up_gate(const std::vector<Pair>& pairs, Index layer, const LayerGradients<T>& to, Index gate,
                   Index input_slot, Index recurrent_slot) const {
    const Index H = spec_.hidden_size, P = spec_.state_size(), I = spec_.layer_input_size(layer);
    const bool of_reset_h = spec_.cell == Cell::gru_reset_before && gate == 2;
    for (Index u = 0; u < H; ++u) {
      const Index row = gate * H + u;
      for (Index k = 0; k < I; ++k)
        go_on(to.weight_ih[row * I + k], pairs,
              [&](const Pair& pair, T s) { return S::madd(pair.d.slots[input_slot][u], pair.x[k], s); });
      for (Index k = 0; k < P; ++k)
        go_on(to.weight_hh[row * P + k], pairs, [&](const Pair& pair, T s) {
          const T h = of_reset_h ? pair.d.reset_h[k] : pair.record.h_before[k];
          return S::madd(pair.d.slots[recurrent_slot][u], h, s);
        });
      add(to.bias_ih, row, pairs, [&](const Pair& pair, T s) { return s + pair.d.slots[input_slot][u]; });
      add(to.bias_hh, row, pairs, [&](const Pair& pair, T s) { return s + pair.d.slots[recurrent_slot][u]; });
    }
  }

  // i and f see c before the step, o sees it after.
  void sum_up_peepholes(const std::vector<Pair>& pairs, const LayerGradients<T>& to) const {
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      add(to.peephole[0], u, pairs,
          [&](const Pair& pair, T s) { return S::madd(pair.d.slots[0][u], pair.record.c_before[u], s); });
      add(to.peephole[1], u, pairs,
          [&](const Pair& pair, T s) { return S::madd(pair.d.slots[1][u], pair.record.c_before[u], s); });
      add(to.peephole[2], u, pairs,
          [&](const Pair& pair, T s) { return S::madd(pair.d.slots[3][u], pair.record.c[u], s); });
    }
  }

  // Matrices go on from what is there, where gradients accumulate.
  template <class Term>
  void go_on(T& gradient, const std::vector<Pair>& pairs, Term&& term) const {
    gradient = sum(pairs, call_.accumulate ? gradient : T(0), term);
  }

  // The sums of the others are added to it.
  template <class Term>
  void add(T* gradient, Index index, const std::vector<Pair>& pairs, Term&& term) const {
    if (!gradient) return;
    const T total = sum(pairs, T(0), term);
    gradient[index] = call_.accumulate ? gradient[index] + total : total;
  }

  const Spec& spec_;
  const Parameters<T>& parameters_;
  const Sequence<T>& sequence_;
  const BackwardCall<T>& call_;
  ReferenceForward<T> forward_;
  std::map<std::pair<Index, Index>, StepGradients> steps_;  // of one track, by step and row
};

}  // namespace gatedrnn
