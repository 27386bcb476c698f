// The reference going forward, and what it leaves for going back.
#pragma once

#include <algorithm>
#include <map>
#include <tuple>
#include <vector>

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "gatedrnn/cells/scalar.h"
#include "gatedrnn/network.h"

namespace gatedrnn {

// One step of one row: what it started from, and its gates after their activations.
template <class T>
struct StepRecord {
  std::vector<T> h_before, c_before, h;
  std::vector<T> i, f, g, o, c;  // LSTM
  std::vector<T> r, z, n, n_h;   // GRU
};

template <class T>
class ReferenceForward {
  using S = cells::Scalar<T>;
  using Gru = cells::Gru<S>;
  using A = cells::Activations<S>;

 public:
  ReferenceForward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence)
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

}  // namespace gatedrnn
