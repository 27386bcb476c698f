// One stage of a cell for one row and unit, forward and backward: the mathematics of gatedrnn/cells between the arrays of a
// step. The matrix products are made by others, cuBLAS or the persistent kernel, and their results arrive as arguments.
#pragma once

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "gatedrnn/kernel_table.h"
#include "rows.cuh"

namespace gatedrnn::cuda {

// The first gate of a stage's recurrent product in the weights; stage_layout has their number.
constexpr int stage_first_gate(Stage stage) { return stage == Stage::gru_before_candidate ? 2 : 0; }

// What one step of a layer and direction reads and writes. Arrays by rank unless said otherwise.
template <class S>
struct Step {
  using A = Sum<S>;
  int rows, units, gates;
  const A* projected;  // [rank][gates * units] W_ih x
  const A* bias;       // [(gates + 1) * units]: what the gates start from, then b_hn of the reset-after GRU
  const A* peephole;   // [3][units]
  const S* h;          // h[t-1]
  S* h_next;           // h[t], or with a projection what is projected to it
  A* c;
  S* reset_h;  // reset-before GRU: r h
  A* update;   // reset-before GRU: z
  A* kept;     // [rank][kept slots * units], or null
  int kept_slots;
  // The layer's output, unless it comes from a projection: [time][row][D * units]
  Features<S> output;
  const int *output_rows, *output_lengths;  // by rank
  int step;
  bool reverse, has_output;

  __device__ A input(int rank, int unit, int gate) const {
    return projected[(static_cast<Index>(rank) * gates + gate) * units + unit] + bias[gate * units + unit];
  }
  __device__ Index at(int rank, int unit) const { return static_cast<Index>(rank) * units + unit; }
  __device__ void keep(int rank, int unit, int slot, A value) const {
    if (kept) kept[(static_cast<Index>(rank) * kept_slots + slot) * units + unit] = value;
  }
  __device__ void store_h(int rank, int unit, A value) const {
    const S stored = converted<S>(value);
    h_next[at(rank, unit)] = stored;
    if (!has_output) return;
    const int time = reverse ? output_lengths[rank] - 1 - step : step;
    output.at(time, output_rows[rank])[unit] = stored;
  }
};

template <class S, Stage stage>
struct Forward;

template <class S, bool peephole>
struct ForwardLstm {
  using A = Sum<S>;
  using Cell = cells::Lstm<Arithmetic<A>>;

  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[4]) {
    A i = s.input(rank, unit, 0) + product[0], f = s.input(rank, unit, 1) + product[1];
    const A g = s.input(rank, unit, 2) + product[2];
    A o = s.input(rank, unit, 3) + product[3];
    const A c = s.c[s.at(rank, unit)];
    if constexpr (peephole) {
      i += s.peephole[unit] * c;
      f += s.peephole[s.units + unit] * c;
    }
    const auto next = Cell::next_cell(i, f, g, c);
    if constexpr (peephole) o += s.peephole[2 * s.units + unit] * next.c;
    s.c[s.at(rank, unit)] = next.c;
    const auto output = Cell::output(o, next.c);
    s.store_h(rank, unit, output.h);
    if (!s.kept) return;
    s.keep(rank, unit, 0, next.i);
    s.keep(rank, unit, 1, next.f);
    s.keep(rank, unit, 2, next.g);
    s.keep(rank, unit, 3, output.o);
    s.keep(rank, unit, 4, next.c);
  }
};
template <class S>
struct Forward<S, Stage::lstm> : ForwardLstm<S, false> {};
template <class S>
struct Forward<S, Stage::lstm_peephole> : ForwardLstm<S, true> {};

template <class S>
struct Forward<S, Stage::gru> {
  using A = Sum<S>;
  using Cell = cells::Gru<Arithmetic<A>>;
  using Act = cells::Activations<Arithmetic<A>>;

  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[3]) {
    const A r = Act::sigmoid(s.input(rank, unit, 0) + product[0]);
    const A e = Cell::update(s.input(rank, unit, 1) + product[1]);
    const A n_h = product[2] + s.bias[3 * s.units + unit];
    const A h = converted<A>(load_from_others(s.h + s.at(rank, unit)));
    const auto blend = Cell::blend(e, Cell::candidate_reset_after(s.input(rank, unit, 2), r, n_h), h);
    s.store_h(rank, unit, blend.h);
    if (!s.kept) return;
    s.keep(rank, unit, 0, r);
    s.keep(rank, unit, 1, blend.z);
    s.keep(rank, unit, 2, blend.n);
    s.keep(rank, unit, 3, n_h);
  }
};

template <class S>
struct Forward<S, Stage::gru_before_gates> {
  using A = Sum<S>;
  using Cell = cells::Gru<Arithmetic<A>>;

  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[2]) {
    const A r = cells::Activations<Arithmetic<A>>::sigmoid(s.input(rank, unit, 0) + product[0]);
    const A h = converted<A>(load_from_others(s.h + s.at(rank, unit)));
    s.reset_h[s.at(rank, unit)] = converted<S>(r * h);
    s.update[s.at(rank, unit)] = Cell::update(s.input(rank, unit, 1) + product[1]);
    s.keep(rank, unit, 0, r);
  }
};

template <class S>
struct Forward<S, Stage::gru_before_candidate> {
  using A = Sum<S>;
  using Cell = cells::Gru<Arithmetic<A>>;

  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[1]) {
    const A n = s.input(rank, unit, 2) + product[0];
    const A h = converted<A>(load_from_others(s.h + s.at(rank, unit)));
    const auto blend = Cell::blend(s.update[s.at(rank, unit)], n, h);
    s.store_h(rank, unit, blend.h);
    s.keep(rank, unit, 1, blend.z);
    s.keep(rank, unit, 2, blend.n);
  }
};

template <class S>
struct Forward<S, Stage::rnn_tanh> {
  using A = Sum<S>;
  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[1]) {
    s.store_h(rank, unit, cells::Rnn<Arithmetic<A>>::tanh(s.input(rank, unit, 0) + product[0]));
  }
};

template <class S>
struct Forward<S, Stage::rnn_relu> {
  using A = Sum<S>;
  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[1]) {
    s.store_h(rank, unit, cells::Rnn<Arithmetic<A>>::relu(s.input(rank, unit, 0) + product[0]));
  }
};

// The projection's result, which is h.
template <class S>
struct Forward<S, Stage::linear> {
  using A = Sum<S>;
  __device__ static void apply(const Step<S>& s, int rank, int unit, const A (&product)[1]) {
    s.store_h(rank, unit, product[0]);
  }
};

// A stage whose products cuBLAS made: [rank][gates of the stage * units].
template <class S, Stage stage>
__global__ void forward_stage(Step<S> step, const Sum<S>* products) {
  constexpr int gates = stage_layout(stage).gates;
  for_own(step.rows, step.units, [&](Index rank, int unit) {
    Sum<S> product[gates];
    for (int gate = 0; gate < gates; ++gate) product[gate] = products[(rank * gates + gate) * step.units + unit];
    Forward<S, stage>::apply(step, static_cast<int>(rank), unit, product);
  });
}

// ---- Backward -----------------------------------------------------------------------------------------------------------
//
// d_h holds the gradient of h[t] that comes from the steps after. A stage turns it, with that of the output, into the
// gradients of the pre-activations, and leaves in it what reaches h[t-1] without a product, to which the products are added.

template <class S>
struct BackStep {
  using A = Sum<S>;
  int rows, units, slots;
  const A* kept;  // [rank][kept slots * units]
  int kept_slots;
  const A* c_before;  // of rank 0
  Index c_before_stride;
  const S* h_before;  // [rank][units]: h[t-1], of the GRU
  const S* h;         // [rank][units]: h[t], of the plain RNN
  const A* peephole;  // [3][units]
  A *d_h, *d_c;       // [rank][units]
  S* d_a;             // [rank][slots * units]
  S* operand;         // [rank][units]: what the candidate's or the projection's weights were multiplied with, or null
  // The gradient of the layer's output, where that is h: [time][row][D * units]
  Features<const A> d_output;
  const int *output_rows, *output_lengths;
  int step;
  bool reverse, has_output;

  __device__ Index at(int rank, int unit) const { return static_cast<Index>(rank) * units + unit; }
  __device__ A load(int rank, int unit, int slot) const {
    return kept[(static_cast<Index>(rank) * kept_slots + slot) * units + unit];
  }
  __device__ void store(int rank, int unit, int slot, A value) const {
    d_a[(static_cast<Index>(rank) * slots + slot) * units + unit] = converted<S>(value);
  }
  __device__ A whole_d_h(int rank, int unit) const {
    A d = d_h[at(rank, unit)];
    if (has_output) {
      const int time = reverse ? output_lengths[rank] - 1 - step : step;
      d += d_output.at(time, output_rows[rank])[unit];
    }
    return d;
  }
};

template <class S, BackStage stage>
struct Backward;

template <class S, bool peephole>
struct BackwardLstm {
  using A = Sum<S>;
  using Cell = cells::Lstm<Arithmetic<A>>;

  __device__ static void apply(const BackStep<S>& s, int rank, int unit) {
    const typename Cell::Kept kept{s.load(rank, unit, 0), s.load(rank, unit, 1), s.load(rank, unit, 2),
                                   s.load(rank, unit, 3), s.load(rank, unit, 4)};
    const A c = s.c_before[rank * s.c_before_stride + unit];
    const A d_h = s.whole_d_h(rank, unit), d_c = s.d_c[s.at(rank, unit)];
    typename Cell::Gradients d;
    if constexpr (peephole) {
      const typename Cell::Peephole weights{s.peephole[unit], s.peephole[s.units + unit],
                                            s.peephole[2 * s.units + unit]};
      d = Cell::backward(kept, c, d_h, d_c, &weights);
    } else {
      d = Cell::backward(kept, c, d_h, d_c, nullptr);
    }
    s.store(rank, unit, 0, d.i);
    s.store(rank, unit, 1, d.f);
    s.store(rank, unit, 2, d.g);
    s.store(rank, unit, 3, d.o);
    s.d_c[s.at(rank, unit)] = d.c;
    s.d_h[s.at(rank, unit)] = 0;
    if (s.operand) s.operand[s.at(rank, unit)] = converted<S>(kept.o * cells::Activations<Arithmetic<A>>::tanh(kept.c));
  }
};
template <class S>
struct Backward<S, BackStage::lstm> : BackwardLstm<S, false> {};
template <class S>
struct Backward<S, BackStage::lstm_peephole> : BackwardLstm<S, true> {};

template <class S>
struct Backward<S, BackStage::gru> {
  using A = Sum<S>;
  using Cell = cells::Gru<Arithmetic<A>>;

  __device__ static void apply(const BackStep<S>& s, int rank, int unit) {
    const A r = s.load(rank, unit, 0), h = converted<A>(s.h_before[s.at(rank, unit)]);
    const auto d = Cell::blend_backward(s.load(rank, unit, 1), s.load(rank, unit, 2), h, s.whole_d_h(rank, unit));
    s.store(rank, unit, 0, d.n);
    s.store(rank, unit, 1, Cell::reset_backward(r, s.load(rank, unit, 3), d.n));
    s.store(rank, unit, 2, d.z);
    s.store(rank, unit, 3, d.n * r);
    s.d_h[s.at(rank, unit)] = d.h;
  }
};

template <class S>
struct Backward<S, BackStage::gru_before_candidate> {
  using A = Sum<S>;
  __device__ static void apply(const BackStep<S>& s, int rank, int unit) {
    const A h = converted<A>(s.h_before[s.at(rank, unit)]);
    const auto d = cells::Gru<Arithmetic<A>>::blend_backward(s.load(rank, unit, 1), s.load(rank, unit, 2), h,
                                                             s.whole_d_h(rank, unit));
    s.store(rank, unit, 1, d.z);
    s.store(rank, unit, 2, d.n);
    s.d_h[s.at(rank, unit)] = d.h;
  }
};

// `product`: the gradient of r h.
template <class S>
__device__ inline void reset_backward(const BackStep<S>& s, int rank, int unit, Sum<S> product) {
  using A = Sum<S>;
  const A r = s.load(rank, unit, 0), h = converted<A>(s.h_before[s.at(rank, unit)]);
  s.store(rank, unit, 0, cells::Gru<Arithmetic<A>>::reset_backward(r, h, product));
  s.d_h[s.at(rank, unit)] += product * r;
  s.operand[s.at(rank, unit)] = converted<S>(r * h);
}

template <class S, bool tanh>
struct BackwardRnn {
  using A = Sum<S>;
  using Cell = cells::Rnn<Arithmetic<A>>;
  __device__ static void apply(const BackStep<S>& s, int rank, int unit) {
    const A h = converted<A>(s.h[s.at(rank, unit)]), d_h = s.whole_d_h(rank, unit);
    s.store(rank, unit, 0, tanh ? Cell::tanh_backward(h, d_h) : Cell::relu_backward(h, d_h));
    s.d_h[s.at(rank, unit)] = 0;
  }
};
template <class S>
struct Backward<S, BackStage::rnn_tanh> : BackwardRnn<S, true> {};
template <class S>
struct Backward<S, BackStage::rnn_relu> : BackwardRnn<S, false> {};

template <class S, BackStage stage>
__global__ void backward_stage(BackStep<S> step) {
  for_own(step.rows, step.units,
          [&](Index rank, int unit) { Backward<S, stage>::apply(step, static_cast<int>(rank), unit); });
}

template <class S>
__global__ void reset_stage(BackStep<S> step, const Sum<S>* products) {
  for_own(step.rows, step.units, [&](Index rank, int unit) {
    reset_backward(step, static_cast<int>(rank), unit, products[rank * step.units + unit]);
  });
}

// With a projection: all of the gradient of h, for the product with its weights; nothing of it passes by.
template <class S>
__global__ void collect_d_h(BackStep<S> step, S* collected) {
  for_own(step.rows, step.units, [&](Index rank, int unit) {
    const Index i = rank * step.units + unit;
    collected[i] = converted<S>(step.whole_d_h(static_cast<int>(rank), unit));
    step.d_h[i] = 0;
  });
}

}  // namespace gatedrnn::cuda
