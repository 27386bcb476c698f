#include "gatedrnn/reference.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "gatedrnn/cells/scalar.h"
#include "gatedrnn/machine.h"

namespace gatedrnn {
namespace {

// One step of one row: what it started from, and its gates after their activations.
template <class T>
struct StepRecord {
  std::vector<T> h_before, c_before, h;
  std::vector<T> i, f, g, o, c;  // LSTM
  std::vector<T> r, z, n, n_h;   // GRU
};

template <class T>
class Reference {
  using S = cells::Scalar<T>;
  using Gru = cells::Gru<S>;
  using A = cells::Activations<S>;

 public:
  Reference(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence)
      : spec_(spec), parameters_(parameters), sequence_(sequence) {}

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
      const Index t = direction == 0 ? s : length - 1 - s;
      StepRecord<T>& record = records[{at, b, s}];
      record.h_before = h;
      record.c_before = c;
      h = next_h(weights, &input[(t * B + b) * I], I, h, c, record);
      record.h = h;
      std::copy(h.begin(), h.end(), output.begin() + (t * B + b) * spec_.output_size() + direction * P);
    }
    std::copy(h.begin(), h.end(), sequence_.h_n + (at * B + b) * P);
    if (is_lstm(spec_.cell)) std::copy(c.begin(), c.end(), sequence_.c_n + (at * B + b) * H);
  }

  // start + the sum over k of weights[k] * x[k], in order
  static T chain(T start, const T* weights, const T* x, Index count) {
    for (Index k = 0; k < count; ++k) start = S::madd(x[k], weights[k], start);
    return start;
  }

  static T input_part(const LayerParameters<T>& w, Index row, T bias, const T* x, Index I) {
    return chain(bias, w.weight_ih + row * I, x, I);
  }

  // Bias, inputs, recurrent operand: the whole pre-activation of one gate row.
  static T gate(const LayerParameters<T>& w, Index row, const T* x, Index I, const std::vector<T>& operand) {
    const Index P = static_cast<Index>(operand.size());
    return chain(input_part(w, row, bias_sum(w, row), x, I), w.weight_hh + row * P, operand.data(), P);
  }

  std::vector<T> next_h(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h, std::vector<T>& c,
                        StepRecord<T>& record) {
    switch (spec_.cell) {
      case Cell::lstm:
      case Cell::lstm_peephole: return lstm(w, x, I, h, c, record);
      case Cell::gru: return gru_reset_after(w, x, I, h, record);
      case Cell::gru_reset_before: return gru_reset_before(w, x, I, h, record);
      default: return rnn(w, x, I, h);
    }
  }

  std::vector<T> lstm(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h, std::vector<T>& c,
                      StepRecord<T>& record) {
    using Lstm = cells::Lstm<S>;
    const Index H = spec_.hidden_size;
    std::vector<T> next(H);
    for (Index u = 0; u < H; ++u) {
      T i = gate(w, u, x, I, h), f = gate(w, H + u, x, I, h), g = gate(w, 2 * H + u, x, I, h);
      T o = gate(w, 3 * H + u, x, I, h);
      if (w.peephole[0]) {
        i = S::madd(w.peephole[0][u], c[u], i);
        f = S::madd(w.peephole[1][u], c[u], f);
      }
      const auto cell = Lstm::next_cell(i, f, g, c[u]);
      c[u] = cell.c;
      if (w.peephole[2]) o = S::madd(w.peephole[2][u], c[u], o);
      const auto output = Lstm::output(o, c[u]);
      next[u] = output.h;
      record.i.push_back(cell.i);
      record.f.push_back(cell.f);
      record.g.push_back(cell.g);
      record.o.push_back(output.o);
      record.c.push_back(c[u]);
    }
    if (!w.weight_hr) return next;
    std::vector<T> projected(spec_.proj_size);
    for (Index p = 0; p < spec_.proj_size; ++p) projected[p] = chain(T(0), w.weight_hr + p * H, next.data(), H);
    return projected;
  }

  std::vector<T> gru_reset_after(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h,
                                 StepRecord<T>& record) {
    const Index H = spec_.hidden_size;
    std::vector<T> next(H);
    for (Index u = 0; u < H; ++u) {
      const Index n = 2 * H + u;
      const T n_x = input_part(w, n, w.bias_ih ? w.bias_ih[n] : T(0), x, I);
      const T n_h = chain(w.bias_hh ? w.bias_hh[n] : T(0), w.weight_hh + n * H, h.data(), H);
      const T r = A::sigmoid(gate(w, u, x, I, h)), e = Gru::update(gate(w, H + u, x, I, h));
      const auto blend = Gru::blend(e, Gru::candidate_reset_after(n_x, r, n_h), h[u]);
      next[u] = blend.h;
      record.r.push_back(r);
      record.z.push_back(blend.z);
      record.n.push_back(blend.n);
      record.n_h.push_back(n_h);
    }
    return next;
  }

  std::vector<T> gru_reset_before(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h,
                                  StepRecord<T>& record) {
    const Index H = spec_.hidden_size;
    std::vector<T> reset_h(H), next(H);
    for (Index u = 0; u < H; ++u) {
      const T r = A::sigmoid(gate(w, u, x, I, h));
      reset_h[u] = r * h[u];
      record.r.push_back(r);
    }
    for (Index u = 0; u < H; ++u) {
      const T e = Gru::update(gate(w, H + u, x, I, h)), candidate = gate(w, 2 * H + u, x, I, reset_h);
      const auto blend = Gru::blend(e, candidate, h[u]);
      next[u] = blend.h;
      record.z.push_back(blend.z);
      record.n.push_back(blend.n);
    }
    return next;
  }

  std::vector<T> rnn(const LayerParameters<T>& w, const T* x, Index I, const std::vector<T>& h) {
    std::vector<T> next(spec_.hidden_size);
    for (Index u = 0; u < spec_.hidden_size; ++u) {
      const T a = gate(w, u, x, I, h);
      next[u] = spec_.cell == Cell::rnn_relu ? cells::Rnn<S>::relu(a) : cells::Rnn<S>::tanh(a);
    }
    return next;
  }

  const Spec& spec_;
  const Parameters<T>& parameters_;
  const Sequence<T>& sequence_;
};

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
    for (Index u = 0; u < H; ++u) {
      const T h = record.h_before.size() == std::size_t(H) ? record.h_before[u] : T(0);
      switch (spec_.cell) {
        case Cell::lstm:
        case Cell::lstm_peephole: {
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
          break;
        }
        case Cell::gru:
        case Cell::gru_reset_before: {
          const auto g = Gru::blend_backward(record.z[u], record.n[u], h, d_h[u]);
          const bool reset_after = spec_.cell == Cell::gru;
          d.slots[reset_after ? 2 : 1][u] = g.z;
          d.slots[reset_after ? 0 : 2][u] = g.n;
          carry[u] = g.h;
          if (reset_after) d.slots[1][u] = Gru::reset_backward(record.r[u], record.n_h[u], g.n);
          if (reset_after) d.slots[3][u] = g.n * record.r[u];
          break;
        }
        case Cell::rnn_tanh: d.slots[0][u] = cells::Rnn<S>::tanh_backward(record.h[u], d_h[u]); break;
        case Cell::rnn_relu: d.slots[0][u] = cells::Rnn<S>::relu_backward(record.h[u], d_h[u]); break;
      }
    }
    if (spec_.cell != Cell::gru_reset_before) return;
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

  // The gradients of the parameters: over the steps from the last, and in each over the rows from the longest.
  void sum_up(Index layer, Index direction) const {
    const Index B = sequence_.batch, H = spec_.hidden_size, P = spec_.state_size(), at = track(layer, direction);
    std::vector<Index> rows(B);
    std::iota(rows.begin(), rows.end(), Index(0));
    std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return length(a) > length(b); });
    const LayerGradients<T>& to = call_.gradients[at];
    struct Pair {
      const StepGradients& d;
      const StepRecord<T>& record;
      const T* x;
    };
    std::vector<Pair> pairs;
    for (Index step = sequence_.steps - 1; step >= 0; --step)
      for (const Index b : rows)
        if (step < length(b))
          pairs.push_back(
              {steps_.at({step, b}), forward_.records.at({at, b, step}),
               &forward_.inputs[layer][(time(direction, step, b) * B + b) * spec_.layer_input_size(layer)]});
    const auto sum = [&](auto&& term, T total = 0) {  // term(d, record, input row, sum) -> sum
      for (const Pair& pair : pairs) total = term(pair.d, pair.record, pair.x, total);
      return total;
    };
    // Matrices go on from what is there, the others are added to it.
    const auto sum_up_from = [&](T& gradient, auto&& term) {
      gradient = sum(term, call_.accumulate ? gradient : T(0));
    };
    const auto give = [&](T* gradient, Index index, T value) {
      if (gradient) gradient[index] = call_.accumulate ? gradient[index] + value : value;
    };
    using D = StepGradients;
    using R = StepRecord<T>;
    const bool reset_after = spec_.cell == Cell::gru, reset_before = spec_.cell == Cell::gru_reset_before;
    for (Index gate = 0; gate < gate_count(spec_.cell); ++gate) {
      const Index input_slot = reset_after ? (gate + 1) % 3 : gate, recurrent_slot = reset_after ? gate + 1 : gate;
      for (Index u = 0; u < H; ++u) {
        for (Index k = 0; k < spec_.layer_input_size(layer); ++k)
          sum_up_from(to.weight_ih[(gate * H + u) * spec_.layer_input_size(layer) + k],
                      [&](const D& d, const R&, const T* x, T s) { return S::madd(d.slots[input_slot][u], x[k], s); });
        for (Index k = 0; k < P; ++k)
          sum_up_from(to.weight_hh[(gate * H + u) * P + k], [&](const D& d, const R& r, const T*, T s) {
            const T h = reset_before && gate == 2 ? d.reset_h[k] : r.h_before[k];
            return S::madd(d.slots[recurrent_slot][u], h, s);
          });
        give(to.bias_ih, gate * H + u,
             sum([&](const D& d, const R&, const T*, T s) { return s + d.slots[input_slot][u]; }));
        give(to.bias_hh, gate * H + u,
             sum([&](const D& d, const R&, const T*, T s) { return s + d.slots[recurrent_slot][u]; }));
      }
    }
    for (Index p = 0; p < spec_.proj_size; ++p)
      for (Index u = 0; u < H; ++u)
        sum_up_from(to.weight_hr[p * H + u],
                    [&](const D& d, const R&, const T*, T s) { return S::madd(d.d_h[p], d.unprojected[u], s); });
    for (Index u = 0; u < H; ++u) {
      if (spec_.cell != Cell::lstm_peephole) break;
      give(to.peephole[0], u,
           sum([&](const D& d, const R& r, const T*, T s) { return S::madd(d.slots[0][u], r.c_before[u], s); }));
      give(to.peephole[1], u,
           sum([&](const D& d, const R& r, const T*, T s) { return S::madd(d.slots[1][u], r.c_before[u], s); }));
      give(to.peephole[2], u,
           sum([&](const D& d, const R& r, const T*, T s) { return S::madd(d.slots[3][u], r.c[u], s); }));
    }
  }

  const Spec& spec_;
  const Parameters<T>& parameters_;
  const Sequence<T>& sequence_;
  const BackwardCall<T>& call_;
  Reference<T> forward_;
  std::map<std::pair<Index, Index>, StepGradients> steps_;  // of one track, by step and row
};

}  // namespace

template <class T>
void run_reference(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence) {
  const FlushDenormals flush;
  Reference<T>(spec, parameters, sequence).run();
}

template <class T>
void run_reference_backward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                            const BackwardCall<T>& call) {
  const FlushDenormals flush;
  ReferenceBackward<T>(spec, parameters, sequence, call).run();
}

template void run_reference_backward(const Spec&, const Parameters<float>&, const Sequence<float>&,
                                     const BackwardCall<float>&);
template void run_reference_backward(const Spec&, const Parameters<double>&, const Sequence<double>&,
                                     const BackwardCall<double>&);
template void run_reference(const Spec&, const Parameters<float>&, const Sequence<float>&);
template void run_reference(const Spec&, const Parameters<double>&, const Sequence<double>&);

}  // namespace gatedrnn
