// One stage of a cell for one row and unit, forward and backward: the mathematics of gatedrnn/cells on values that a kernel has
// loaded, and kernels for stages whose matrix products cuBLAS made. The persistent kernel (recurrence.cuh) makes them itself.
#pragma once

#include "gatedrnn/cells/unit.h"
#include "gatedrnn/kernel_table.h"
#include "rows.cuh"

namespace gatedrnn::cuda {

template <class A>
using Unit = cells::Unit<Arithmetic<A>>;
template <class A>
using BackUnit = cells::BackUnit<Arithmetic<A>>;

// A cell's description as numbers: kernels cannot read an object of the host's.
template <Cell cell>
struct About {
  static constexpr CellDescription description = Mathematics<cell>::description;
  static constexpr int gates = description.gates, slots = description.slots, kept = description.kept;
  static constexpr int peepholes = description.peephole_count, late_slots = description.late_slots;
  static constexpr bool has_c = description.has_c, two_stages = description.two_stages(),
                        reads_h = description.reads_h(), backward_reads_h = description.h_read != HRead::none,
                        backward_reads_h_before = description.h_read == HRead::before;
  static constexpr int first_gates = description.stages[0].gates, second_gates = description.stages[1].gates;
  static constexpr int first_recurrent_slot = description.first_recurrent_slot();
  static constexpr int second_slot = description.stages[1].first_slot;
  static constexpr int second_gate = two_stages ? description.first_gate(1) : 0;
};

template <Cell cell, int stage>
constexpr int gates_of = Mathematics<cell>::description.stages[stage].gates;
template <Cell cell, int stage>
constexpr bool is_last_stage = stage + 1 == Mathematics<cell>::description.stage_count;

// The stage's pre-activations, from `bias(slot)` and `input(gate)` of the cell's, and the products of the stage's own gates.
template <Cell cell, int stage, class A, class Bias, class Input>
__device__ inline void begin_stage(Unit<A>& u, const A* products, Bias&& bias, Input&& input) {
  constexpr CellDescription about = Mathematics<cell>::description;
  constexpr StageDescription of = about.stages[stage];
#pragma unroll
  for (int slot = 0; slot < of.slots; ++slot) {
    A a = bias(of.first_slot + slot);
    if (slot < of.gates) a = input(about.gate_of_slot[of.first_slot + slot]) + a;
    if (slot >= of.slots - of.gates) a += products[slot - (of.slots - of.gates)];
    u.gates[slot] = a;
  }
}

// Returns what others wait for: h[t], or the second stage's operand.
template <Cell cell, int stage, class A>
__device__ inline A go_forward(Unit<A>& u) {
  Mathematics<cell>::template first<stage>(u);
  if constexpr (is_last_stage<cell, stage>) {
    Mathematics<cell>::template second<stage>(u);
    return u.h_next;
  } else {
    return u.operand;
  }
}

// What has time until others have that.
template <Cell cell, int stage, class A>
__device__ inline void go_on(Unit<A>& u) {
  if constexpr (!is_last_stage<cell, stage>) Mathematics<cell>::template second<stage>(u);
}

// What a stage leaves for backward; `to` is the unit's first slot, and slots are `units` apart.
template <Cell cell, int stage, class A>
__device__ inline void keep(A* to, int units, const Unit<A>& u) {
  constexpr StageDescription of = Mathematics<cell>::description.stages[stage];
#pragma unroll
  for (int slot = of.first_kept; slot < of.first_kept + of.kept; ++slot) to[slot * units] = u.kept[slot];
}

// What one step of a layer and direction reads and writes. Arrays by rank unless said otherwise.
template <class S>
struct Step {
  using A = Sum<S>;
  int rows, units, gates;
  const A* projected;  // [rank][gates * units] W_ih x
  const A* bias;       // [slots * units]
  const A* peephole;   // [peephole][units]
  const S* h;          // h[t-1]
  S* h_next;           // h[t], or with a projection what is projected to it
  A* c;
  S* second_operand;  // of a cell of two stages
  A* carried;         // what its first stage passes to the second
  A* kept;            // [rank][kept slots * units], or null
  int kept_slots;
  // The layer's output, unless it comes from a projection: [time][row][D * units]
  Features<S> output;
  Order order;
  int step;
  bool reverse, has_output;
  CellOptions<A> options;  // of a general cell
  const A* norm;           // of a normalised one: [slots' weights, then pre-activations' biases][units]

  __device__ Index at(int rank, int unit) const { return static_cast<Index>(rank) * units + unit; }
  __device__ void put_out(int rank, int unit, S h) const {
    if (!has_output) return;
    output.at(time_of(order, reverse, step, rank), order.row(rank))[unit] = h;
  }
};

// A stage whose products cuBLAS made: [rank][gates of the stage * units].
template <class S, Cell cell, int stage>
__global__ void forward_stage(Step<S> s, const Sum<S>* products) {
  using A = Sum<S>;
  using Facts = About<cell>;
  constexpr int gates = gates_of<cell, stage>;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    Unit<A> u;
    u.cell_options = &s.options;
    A product[gates];
#pragma unroll
    for (int i = 0; i < gates; ++i) product[i] = products[(row * gates + i) * s.units + unit];
    begin_stage<cell, stage>(
        u, product, [&](int slot) { return s.bias[slot * s.units + unit]; },
        [&](int gate) { return s.projected[(row * s.gates + gate) * s.units + unit]; });
    if constexpr (Facts::has_c) u.c_now = s.c[at];
    if constexpr (Facts::reads_h) u.h_before = converted<A>(s.h[at]);
    if constexpr (stage > 0) u.carried = s.carried[at];
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = s.peephole[i * s.units + unit];
    const S result = converted<S>(go_forward<cell, stage>(u));
    go_on<cell, stage>(u);
    if (s.kept) keep<cell, stage>(s.kept + row * s.kept_slots * s.units + unit, s.units, u);
    if constexpr (Facts::has_c) s.c[at] = u.c_now;
    if constexpr (is_last_stage<cell, stage>) {
      s.h_next[at] = result;
      s.put_out(rank, unit, result);
    } else {
      s.second_operand[at] = result;
      s.carried[at] = u.carried;
    }
  });
}

// The projection's result, which is h.
template <class S>
__global__ void deliver_projected(Step<S> s, const Sum<S>* products) {
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    const S h = converted<S>(products[at]);
    s.h_next[at] = h;
    s.put_out(rank, unit, h);
  });
}

// ---- Backward -----------------------------------------------------------------------------------------------------------
//
// d_h holds the gradient of h[t] that comes from the steps after. A stage turns it, with that of the output, into the
// gradients of the pre-activations, and leaves in it what reaches h[t-1] without a product, to which the products are added.

// The cell's mathematics; what passes by the products is left in u.carried.
template <Cell cell, class A>
__device__ inline void go_back(BackUnit<A>& u) {
  u.carried = 0;
  Mathematics<cell>::template backward<0>(u);
}

template <class S>
struct BackStep {
  using A = Sum<S>;
  int rows, units, slots;
  const A* kept;  // [rank][kept slots * units]
  int kept_slots;
  const A* c_before;  // of rank 0
  Index c_before_stride;
  const S* h_before;  // [rank][units]: h[t-1]
  const S* h;         // [rank][units]: h[t], of cells that read it
  const A* peephole;  // [peephole][units]
  A *d_h, *d_c;       // [rank][units]
  S* d_a;             // [rank][slots * units]
  S* operand;  // [rank][units]: what the second stage's or the projection's weights were multiplied with, or null
  // The gradient of the layer's output, where that is h: [time][row][D * units]
  Features<const A> d_output;
  Order order;
  int step;
  bool reverse, has_output;
  CellOptions<A> options;  // of a general cell
  const A* norm;           // as forward has it

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

template <class S, Cell cell>
__global__ void backward_stage(BackStep<S> s) {
  using A = Sum<S>;
  using Facts = About<cell>;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    BackUnit<A> u;
    u.cell_options = &s.options;
#pragma unroll
    for (int slot = 0; slot < Facts::kept; ++slot) u.kept_values[slot] = *s.kept_at(rank, unit, slot);
    if constexpr (Facts::has_c) {
      u.c_read = *s.c_before_at(rank, unit);
      u.d_c_now = s.d_c[at];
    }
    if constexpr (Facts::backward_reads_h)
      u.h_read = converted<A>((Facts::backward_reads_h_before ? s.h_before : s.h)[at]);
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = s.peephole[i * s.units + unit];
    u.d_h_now = s.whole_d_h(rank, unit);
    go_back<cell>(u);
#pragma unroll
    for (int slot = Facts::late_slots; slot < Facts::slots; ++slot)
      *s.d_a_at(rank, unit, slot) = converted<S>(u.d_a[slot]);
    s.d_h[at] = u.carried;
    if constexpr (Facts::has_c) {
      s.d_c[at] = u.d_c_now;
      if (s.operand) s.operand[at] = converted<S>(u.operand);
    }
  });
}

// After the product with the second stage's weights.
template <class S, Cell cell>
__global__ void late_backward_stage(BackStep<S> s, const Sum<S>* products) {
  using A = Sum<S>;
  using Facts = About<cell>;
  for_own(s.rows, s.units, [&](Index row, int unit) {
    const int rank = static_cast<int>(row);
    const Index at = s.at(rank, unit);
    BackUnit<A> u;
    u.cell_options = &s.options;
#pragma unroll
    for (int slot = 0; slot < Facts::kept; ++slot) u.kept_values[slot] = *s.kept_at(rank, unit, slot);
    u.h_read = converted<A>(s.h_before[at]);
    u.carried = s.d_h[at];
    u.products = products[at];
    Mathematics<cell>::template backward<1>(u);
#pragma unroll
    for (int slot = 0; slot < Facts::late_slots; ++slot) *s.d_a_at(rank, unit, slot) = converted<S>(u.d_a[slot]);
    s.d_h[at] = u.carried;
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
