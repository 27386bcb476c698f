// One stage of a cell for one row and unit, forward and backward: the mathematics of gatedrnn/cells on values that a kernel has
// loaded, and kernels for stages whose matrix products cuBLAS made. The persistent kernel (recurrence.cuh) makes them itself.
#pragma once

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "gatedrnn/kernel_table.h"
#include "rows.cuh"

namespace gatedrnn::cuda {

// The first gate of a stage's recurrent product in the weights; stage_layout has their number.
constexpr int stage_first_gate(Stage stage) { return stage == Stage::gru_before_candidate ? 2 : 0; }

constexpr bool is_lstm(Stage stage) { return stage == Stage::lstm || stage == Stage::lstm_peephole; }
constexpr bool is_gru(Stage stage) {
  return stage == Stage::gru || stage == Stage::gru_before_gates || stage == Stage::gru_before_candidate;
}

// The slots of what is kept for backward that a stage fills.
struct KeptSlots {
  int first, count;
};
constexpr KeptSlots kept_by(Stage stage) {
  switch (stage) {
    case Stage::lstm:
    case Stage::lstm_peephole: return {0, 5};
    case Stage::gru: return {0, 4};
    case Stage::gru_before_gates: return {0, 1};
    case Stage::gru_before_candidate: return {1, 2};
    default: return {0, 0};
  }
}

// What a stage sees of one row and unit, and what it leaves.
template <class A>
struct Unit {
  A input[4];    // W_ih x and bias, by the stage's gates
  A product[4];  // W_hh h
  A b_hn;        // of the reset-after GRU
  A peephole[3];
  A c, update;  // update: the reset-before GRU's z, from the first stage to the second
  A h;          // h[t-1], then h[t]; of the reset-before GRU's first stage, r h
  A kept[5];    // by slot of kept_by(stage)
};

template <class A, Stage stage>
__device__ inline void go_forward(Unit<A>& u) {
  using V = Arithmetic<A>;
  using Gru = cells::Gru<V>;
  using Activations = cells::Activations<V>;
  if constexpr (is_lstm(stage)) {
    constexpr bool peephole = stage == Stage::lstm_peephole;
    A i = u.input[0] + u.product[0], f = u.input[1] + u.product[1], o = u.input[3] + u.product[3];
    if constexpr (peephole) {
      i += u.peephole[0] * u.c;
      f += u.peephole[1] * u.c;
    }
    const auto next = cells::Lstm<V>::next_cell(i, f, u.input[2] + u.product[2], u.c);
    if constexpr (peephole) o += u.peephole[2] * next.c;
    const auto output = cells::Lstm<V>::output(o, next.c);
    u.h = output.h;
    u.c = next.c;
    u.kept[0] = next.i;
    u.kept[1] = next.f;
    u.kept[2] = next.g;
    u.kept[3] = output.o;
    u.kept[4] = next.c;
  } else if constexpr (stage == Stage::gru) {
    const A r = Activations::sigmoid(u.input[0] + u.product[0]), n_h = u.product[2] + u.b_hn;
    const auto blend =
        Gru::blend(Gru::update(u.input[1] + u.product[1]), Gru::candidate_reset_after(u.input[2], r, n_h), u.h);
    u.h = blend.h;
    u.kept[0] = r;
    u.kept[1] = blend.z;
    u.kept[2] = blend.n;
    u.kept[3] = n_h;
  } else if constexpr (stage == Stage::gru_before_gates) {
    u.kept[0] = Activations::sigmoid(u.input[0] + u.product[0]);
    u.h = u.kept[0] * u.h;
  } else if constexpr (stage == Stage::gru_before_candidate) {
    const auto blend = Gru::blend(u.update, u.input[0] + u.product[0], u.h);
    u.h = blend.h;
    u.kept[0] = blend.z;
    u.kept[1] = blend.n;
  } else if constexpr (stage == Stage::rnn_tanh) {
    u.h = cells::Rnn<V>::tanh(u.input[0] + u.product[0]);
  } else if constexpr (stage == Stage::rnn_relu) {
    u.h = cells::Rnn<V>::relu(u.input[0] + u.product[0]);
  } else {  // the projection's result, which is h
    u.h = u.product[0];
  }
}

// What has time until others have h, or r h.
template <class A, Stage stage>
__device__ inline void go_on(Unit<A>& u) {
  if constexpr (stage == Stage::gru_before_gates)
    u.update = cells::Gru<Arithmetic<A>>::update(u.input[1] + u.product[1]);
}

// What a stage leaves for backward; `to` is the unit's first slot, and slots are `units` apart.
template <Stage stage, class A>
__device__ inline void keep(A* to, int units, const Unit<A>& u) {
  constexpr KeptSlots slots = kept_by(stage);
#pragma unroll
  for (int slot = 0; slot < slots.count; ++slot) to[(slots.first + slot) * units] = u.kept[slot];
}

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
  Order order;
  int step;
  bool reverse, has_output;

  __device__ Index at(int rank, int unit) const { return static_cast<Index>(rank) * units + unit; }
  __device__ void put_out(int rank, int unit, S h) const {
    if (!has_output) return;
    output.at(time_of(order, reverse, step, rank), order.row(rank))[unit] = h;
  }
};

// A stage whose products cuBLAS made: [rank][gates of the stage * units].
template <class S, Stage stage>
__global__ void forward_stage(Step<S> s, const Sum<S>* products) {
  using A = Sum<S>;
  constexpr int gates = stage_layout(stage).gates;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    Unit<A> u;
#pragma unroll
    for (int i = 0; i < gates; ++i) {
      const int gate = stage_first_gate(stage) + i;
      u.product[i] = products[(row * gates + i) * s.units + unit];
      if constexpr (stage != Stage::linear)
        u.input[i] = s.projected[(row * s.gates + gate) * s.units + unit] + s.bias[gate * s.units + unit];
    }
    if constexpr (is_lstm(stage)) u.c = s.c[at];
    if constexpr (is_gru(stage)) u.h = converted<A>(s.h[at]);
    if constexpr (stage == Stage::gru) u.b_hn = s.bias[3 * s.units + unit];
    if constexpr (stage == Stage::gru_before_candidate) u.update = s.update[at];
    if constexpr (stage == Stage::lstm_peephole)
      for (int i = 0; i < 3; ++i) u.peephole[i] = s.peephole[i * s.units + unit];
    go_forward<A, stage>(u);
    go_on<A, stage>(u);
    if (s.kept) keep<stage>(s.kept + row * s.kept_slots * s.units + unit, s.units, u);
    if constexpr (is_lstm(stage)) s.c[at] = u.c;
    if constexpr (stage == Stage::gru_before_gates) {
      s.reset_h[at] = converted<S>(u.h);
      s.update[at] = u.update;
    } else {
      s.h_next[at] = converted<S>(u.h);
      s.put_out(rank, unit, converted<S>(u.h));
    }
  });
}

// ---- Backward -----------------------------------------------------------------------------------------------------------
//
// d_h holds the gradient of h[t] that comes from the steps after. A stage turns it, with that of the output, into the
// gradients of the pre-activations, and leaves in it what reaches h[t-1] without a product, to which the products are added.

// What a stage sees of one row and unit, and what it leaves.
template <class A>
struct BackUnit {
  A kept[5];
  A c_before, h_before, h;  // c[t-1] of the LSTM, h[t-1] of the GRU, h[t] of the plain RNN
  A peephole[3];
  A d_h, d_c;  // of h[t] and c[t], then of h[t-1] and c[t-1]
  A d_a[4];    // by slot
  A operand;   // what the projection's weights were multiplied with
};

// What the stage's steps kept; see kept_by.
constexpr int kept_for(BackStage stage) {
  switch (stage) {
    case BackStage::lstm:
    case BackStage::lstm_peephole: return 5;
    case BackStage::gru: return 4;
    case BackStage::gru_before_candidate: return 3;
    default: return 0;
  }
}

// The reset-before GRU's r comes after the product with the candidate's weights: go_back_through_reset.
template <class A, BackStage stage>
__device__ inline void go_back(BackUnit<A>& u) {
  using V = Arithmetic<A>;
  using Gru = cells::Gru<V>;
  if constexpr (stage == BackStage::lstm || stage == BackStage::lstm_peephole) {
    using Lstm = cells::Lstm<V>;
    const typename Lstm::Kept kept{u.kept[0], u.kept[1], u.kept[2], u.kept[3], u.kept[4]};
    const typename Lstm::Peephole peephole{u.peephole[0], u.peephole[1], u.peephole[2]};
    const auto d =
        Lstm::backward(kept, u.c_before, u.d_h, u.d_c, stage == BackStage::lstm_peephole ? &peephole : nullptr);
    u.d_a[0] = d.i;
    u.d_a[1] = d.f;
    u.d_a[2] = d.g;
    u.d_a[3] = d.o;
    u.d_c = d.c;
    u.d_h = 0;
    u.operand = u.kept[3] * cells::Activations<V>::tanh(u.kept[4]);
  } else if constexpr (stage == BackStage::gru) {
    const A r = u.kept[0];
    const auto d = Gru::blend_backward(u.kept[1], u.kept[2], u.h_before, u.d_h);
    u.d_a[0] = d.n;
    u.d_a[1] = Gru::reset_backward(r, u.kept[3], d.n);
    u.d_a[2] = d.z;
    u.d_a[3] = d.n * r;
    u.d_h = d.h;
  } else if constexpr (stage == BackStage::gru_before_candidate) {
    const auto d = Gru::blend_backward(u.kept[1], u.kept[2], u.h_before, u.d_h);
    u.d_a[1] = d.z;
    u.d_a[2] = d.n;
    u.d_h = d.h;
  } else if constexpr (stage == BackStage::rnn_tanh) {
    u.d_a[0] = cells::Rnn<V>::tanh_backward(u.h, u.d_h);
    u.d_h = 0;
  } else {
    u.d_a[0] = cells::Rnn<V>::relu_backward(u.h, u.d_h);
    u.d_h = 0;
  }
}

// `product`: the gradient of r h.
template <class A>
__device__ inline void go_back_through_reset(BackUnit<A>& u, A product) {
  const A r = u.kept[0];
  u.d_a[0] = cells::Gru<Arithmetic<A>>::reset_backward(r, u.h_before, product);
  u.d_h += product * r;
  u.operand = r * u.h_before;
}

constexpr bool is_lstm(BackStage stage) { return stage == BackStage::lstm || stage == BackStage::lstm_peephole; }
constexpr bool is_gru(BackStage stage) { return stage == BackStage::gru || stage == BackStage::gru_before_candidate; }

// The gradients that a stage makes of pre-activations.
constexpr KeptSlots d_a_by(BackStage stage) {
  switch (stage) {
    case BackStage::lstm:
    case BackStage::lstm_peephole:
    case BackStage::gru: return {0, 4};
    case BackStage::gru_before_candidate: return {1, 2};
    default: return {0, 1};
  }
}

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
  Order order;
  int step;
  bool reverse, has_output;

  __device__ Index at(int rank, int unit) const { return static_cast<Index>(rank) * units + unit; }
  __device__ const A* kept_at(int rank, int unit, int slot) const {
    return kept + (static_cast<Index>(rank) * kept_slots + slot) * units + unit;
  }
  __device__ S* d_a_at(int rank, int unit, int slot) const {
    return d_a + (static_cast<Index>(rank) * slots + slot) * units + unit;
  }
  __device__ const A* c_before_at(int rank, int unit) const { return c_before + rank * c_before_stride + unit; }
  __device__ const A* d_output_at(int rank, int unit) const {
    return d_output.at(time_of(order, reverse, step, rank), order.row(rank)) + unit;
  }
  __device__ A whole_d_h(int rank, int unit) const {
    const A d = d_h[at(rank, unit)];
    return has_output ? d + *d_output_at(rank, unit) : d;
  }
};

template <class S, BackStage stage>
__global__ void backward_stage(BackStep<S> s) {
  using A = Sum<S>;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    BackUnit<A> u;
#pragma unroll
    for (int slot = 0; slot < kept_for(stage); ++slot) u.kept[slot] = *s.kept_at(rank, unit, slot);
    if constexpr (is_lstm(stage)) {
      u.c_before = *s.c_before_at(rank, unit);
      u.d_c = s.d_c[at];
    } else if constexpr (is_gru(stage)) {
      u.h_before = converted<A>(s.h_before[at]);
    } else {
      u.h = converted<A>(s.h[at]);
    }
    if constexpr (stage == BackStage::lstm_peephole)
      for (int i = 0; i < 3; ++i) u.peephole[i] = s.peephole[i * s.units + unit];
    u.d_h = s.whole_d_h(rank, unit);
    go_back<A, stage>(u);
    constexpr KeptSlots made = d_a_by(stage);
#pragma unroll
    for (int slot = made.first; slot < made.first + made.count; ++slot)
      *s.d_a_at(rank, unit, slot) = converted<S>(u.d_a[slot]);
    s.d_h[at] = u.d_h;
    if constexpr (is_lstm(stage)) {
      s.d_c[at] = u.d_c;
      if (s.operand) s.operand[at] = converted<S>(u.operand);
    }
  });
}

// After the product with the candidate's weights.
template <class S>
__global__ void reset_stage(BackStep<S> s, const Sum<S>* products) {
  using A = Sum<S>;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    BackUnit<A> u;
    u.kept[0] = *s.kept_at(rank, unit, 0);
    u.h_before = converted<A>(s.h_before[at]);
    u.d_h = s.d_h[at];
    go_back_through_reset(u, products[at]);
    *s.d_a_at(rank, unit, 0) = converted<S>(u.d_a[0]);
    s.d_h[at] = u.d_h;
    s.operand[at] = converted<S>(u.operand);
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
