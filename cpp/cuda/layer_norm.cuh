// A step of layer-normalised cells (gatedrnn/cells/layer_norm.h) after its products, forward and backward: a block of threads for each
// row, whose units they take in turns. Sums over units are made in an order that nothing changes.
#pragma once

#include "cell_kernels.cuh"
#include "gatedrnn/cells/normalized_unit.h"

namespace gatedrnn::cuda {

template <class A>
struct Moments {
  A mean, scale;  // of the values' distances from the mean
};

// `visit(unit)` for what is this thread's of a row. No other thread reads what it leaves for a unit.
template <class Visit>
__device__ inline void for_own_units(int units, Visit&& visit) {
  for (int unit = static_cast<int>(threadIdx.x); unit < units; unit += static_cast<int>(blockDim.x)) visit(unit);
}

// All threads get the sum.
template <class A>
__device__ inline A sum_of_block(A own) {
  auto* shared = reinterpret_cast<A*>(shared_memory());  // [kThreads]
  __syncthreads();                                       // after the reads of the sum before
  shared[threadIdx.x] = own;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
  }
  __syncthreads();
  return shared[0];
}

// The mean of value(slot, unit) over what is normalised together.
template <class A, class Value>
__device__ inline A mean_over_row(const NormDescription& norm, int units, Value&& value) {
  A sum = 0;
  for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot)
    for_own_units(units, [&](int unit) { sum += value(slot, unit); });
  return sum_of_block(sum) / static_cast<A>(norm.slots * units);
}

template <class A, class Value>
__device__ inline Moments<A> moments_over_row(const NormDescription& norm, int units, A eps, Value&& value) {
  const A mean = mean_over_row<A>(norm, units, value);
  const A variance = mean_over_row<A>(norm, units, [&](int slot, int unit) {
    const A from_mean = value(slot, unit) - mean;
    return from_mean * from_mean;
  });
  return {mean, A(1) / ::sqrt(variance + eps)};
}

// A unit's values, normalised, and its parameters.
template <Cell cell, class A, class Unit, class Value>
__device__ inline void take_values(Unit& u, const Moments<A>* moments, const A* norm, int units, int unit,
                                   Value&& value) {
  constexpr CellDescription about = Mathematics<cell>::description;
  constexpr int all = about.normalized_slots();
#pragma unroll
  for (int slot = 0; slot < all; ++slot) {
    const Moments<A>& m = moments[about.norm_of_slot(slot)];
    u.values[slot] = value(slot);
    u.normalized[slot] = (u.values[slot] - m.mean) * m.scale;
    u.weights[slot] = norm[slot * units + unit];
  }
#pragma unroll
  for (int i = 0; i < about.pre_activations; ++i) u.biases[i] = norm[(all + i) * units + unit];
}

// ---- Forward -----------------------------------------------------------------------------------------------------------

// One row of a step. `values` are its slots and c', [slot][units].
template <class S, Cell cell>
struct NormalizedRow {
  using A = Sum<S>;
  using Unit = cells::NormalizedUnit<Arithmetic<A>, cell>;

  const Step<S>& s;
  const A* products;
  Index row;
  A* values;
  Moments<A> moments[kMostNorms] = {};

  __device__ int rank() const { return static_cast<int>(row); }
  __device__ void take_sums() {
    constexpr CellDescription about = Mathematics<cell>::description;
    constexpr StageDescription of = about.stages[0];
    for_own_units(s.units, [&](int unit) {
#pragma unroll
      for (int slot = 0; slot < of.slots; ++slot) {
        A sum = 0;
        if (of.has_input(slot)) sum = s.projected[(row * s.gates + about.gate_of_slot[slot]) * s.units + unit];
        if (of.has_operand(slot)) sum += products[(row * of.gates + slot - of.first_operand_slot()) * s.units + unit];
        values[slot * s.units + unit] = sum;
      }
    });
  }
  __device__ void normalize(bool late) {
    constexpr CellDescription about = Mathematics<cell>::description;
    for (int i = 0; i < about.norm_count; ++i)
      if (about.norms[i].late == late)
        moments[i] = moments_over_row<A>(about.norms[i], s.units, s.options.layer_norm_eps,
                                         [&](int slot, int unit) { return values[slot * s.units + unit]; });
  }
  __device__ Unit at(int unit) const {
    using Facts = About<cell>;
    Unit u;
    u.cell_options = &s.options;
    take_values<cell>(u, moments, s.norm, s.units, unit, [&](int slot) { return values[slot * s.units + unit]; });
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = s.peephole[i * s.units + unit];
    if constexpr (Facts::has_c) u.c_now = s.c[s.at(rank(), unit)];
    if constexpr (Facts::reads_h) u.h_before = converted<A>(s.h[s.at(rank(), unit)]);
    return u;
  }
  template <int pass>
  __device__ void run() {
    using Facts = About<cell>;
    using M = Mathematics<cell>;
    for_own_units(s.units, [&](int unit) {
      Unit u = at(unit);
      M::template forward<pass>(u);
#pragma unroll
      for (int slot = 0; slot < Facts::slots; ++slot) values[slot * s.units + unit] = u.values[slot];
      A* const kept = s.kept ? s.kept + row * s.kept_slots * s.units + unit : nullptr;
      if (pass == 1) {
        if constexpr (Facts::has_c) values[Facts::slots * s.units + unit] = s.c[s.at(rank(), unit)] = u.c_now;
        if (kept) kept[Facts::slots * s.units] = u.kept[Facts::slots];
      }
      if (pass == 2 && kept)
        for (int slot = 0; slot < Facts::slots; ++slot) kept[slot * s.units] = u.values[slot];
      if (pass == M::last_pass) {
        const S h = converted<S>(u.h_next);
        s.h_next[s.at(rank(), unit)] = h;
        s.put_out(rank(), unit, h);
      }
    });
  }
};

// `values`: [rank][slots and c'][units]
template <class S, Cell cell>
__global__ void forward_normalized(Step<S> s, const Sum<S>* products, Sum<S>* values) {
  for (Index row = blockIdx.x; row < s.rows; row += gridDim.x) {
    NormalizedRow<S, cell> at{s, products, row, values + row * (About<cell>::slots + 1) * s.units};
    at.take_sums();
    at.template run<0>();
    at.normalize(false);
    at.template run<1>();
    at.normalize(true);
    at.template run<2>();
  }
}

// ---- Backward ----------------------------------------------------------------------------------------------------------

// One row of a step back. Gradients stand in `d`: those of pre-activations, and then those of slots and c', [..][units].
template <class S, Cell cell>
struct NormalizedBackRow {
  using A = Sum<S>;
  using Unit = cells::NormalizedBackUnit<Arithmetic<A>, cell>;

  const BackStep<S>& s;
  Index row;
  A* d;
  Moments<A> moments[kMostNorms] = {};

  __device__ int rank() const { return static_cast<int>(row); }
  __device__ A* d_value_at(int slot, int unit) const {
    constexpr int pre_activations = Mathematics<cell>::description.pre_activations;
    return d + (pre_activations + slot) * s.units + unit;
  }
  __device__ void find_moments() {
    constexpr CellDescription about = Mathematics<cell>::description;
    for (int i = 0; i < about.norm_count; ++i)
      moments[i] = moments_over_row<A>(about.norms[i], s.units, s.options.layer_norm_eps,
                                       [&](int slot, int unit) { return *s.kept_at(rank(), unit, slot); });
  }
  __device__ void clear() {
    constexpr CellDescription about = Mathematics<cell>::description;
    for_own_units(s.units, [&](int unit) {
      for (int i = 0; i < about.pre_activations + about.normalized_slots(); ++i) d[i * s.units + unit] = 0;
    });
  }
  __device__ Unit at(int unit) const {
    using Facts = About<cell>;
    constexpr CellDescription about = Mathematics<cell>::description;
    const Index place = s.at(rank(), unit);
    Unit u;
    u.cell_options = &s.options;
    take_values<cell>(u, moments, s.norm, s.units, unit, [&](int slot) { return *s.kept_at(rank(), unit, slot); });
    u.kept_values[Facts::slots] = *s.kept_at(rank(), unit, Facts::slots);
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = s.peephole[i * s.units + unit];
    if constexpr (Facts::has_c) {
      u.c_read = *s.c_before_at(rank(), unit);
      u.d_c_now = s.d_c[place];
    }
    if constexpr (Facts::backward_reads_h) u.h_read = converted<A>(s.h_before[place]);
    for (int i = 0; i < about.pre_activations; ++i) u.d_pre_activations[i] = d[i * s.units + unit];
    for (int slot = 0; slot < about.normalized_slots(); ++slot) u.d_values[slot] = *d_value_at(slot, unit);
    return u;
  }
  template <int pass>
  __device__ void run() {
    using Facts = About<cell>;
    using M = Mathematics<cell>;
    constexpr CellDescription about = M::description;
    for_own_units(s.units, [&](int unit) {
      const Index place = s.at(rank(), unit);
      Unit u = at(unit);
      u.carried = 0;
      if (pass == M::last_pass) u.d_h_now = s.whole_d_h(rank(), unit);
      M::template backward<pass>(u);
      for (int i = 0; i < about.pre_activations; ++i) d[i * s.units + unit] = u.d_pre_activations[i];
      if constexpr (Facts::has_c) s.d_c[place] = u.d_c_now;
      if (pass == M::last_pass) {
        s.d_h[place] = u.carried;
        if constexpr (Facts::has_c)
          if (s.operand) s.operand[place] = converted<S>(u.operand);
      }
      if (pass == 0)
        for (int i = 0; i < about.pre_activations; ++i)
          *s.d_a_at(rank(), unit, Facts::slots + i) = converted<S>(u.d_pre_activations[i]);
    });
  }
  // With x normalised, and d its gradient: that of the value is scale (d - mean(d) - x mean(d x)).
  __device__ void through_norms(bool late) {
    constexpr CellDescription about = Mathematics<cell>::description;
    for (int i = 0; i < about.norm_count; ++i)
      if (about.norms[i].late == late) through_norm(about.norms[i], moments[i].scale);
  }
  __device__ void through_norm(const NormDescription& norm, A scale) {
    using Facts = About<cell>;
    constexpr CellDescription about = Mathematics<cell>::description;
    const A d_mean = mean_over_row<A>(norm, s.units, [&](int slot, int unit) { return at(unit).d_normalized(slot); });
    const A d_scale = mean_over_row<A>(norm, s.units, [&](int slot, int unit) {
      const Unit u = at(unit);
      return u.d_normalized(slot) * u.normalized[slot];
    });
    for_own_units(s.units, [&](int unit) {
      const Unit u = at(unit);
      for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot) {
        const A x = u.normalized[slot], d_value = (u.d_normalized(slot) - d_mean - x * d_scale) * scale;
        *s.d_a_at(rank(), unit, Facts::slots + about.pre_activations + slot) = converted<S>(u.d_weighted(slot) * x);
        *d_value_at(slot, unit) = d_value;
        if (slot < Facts::slots)
          *s.d_a_at(rank(), unit, slot) = converted<S>(d_value);
        else
          s.d_c[s.at(rank(), unit)] += d_value;
      }
    });
  }
};

// `d`: [rank][pre-activations, then slots and c'][units]
template <class S, Cell cell>
__global__ void backward_normalized(BackStep<S> s, Sum<S>* d) {
  constexpr CellDescription about = Mathematics<cell>::description;
  constexpr int gradients = about.pre_activations + about.normalized_slots();
  for (Index row = blockIdx.x; row < s.rows; row += gridDim.x) {
    NormalizedBackRow<S, cell> at{s, row, d + row * gradients * s.units};
    at.find_moments();
    at.clear();
    at.template run<2>();
    at.through_norms(true);
    at.template run<1>();
    at.through_norms(false);
    at.template run<0>();
  }
}

// A kernel with a block for each row.
template <class A, class... Parameters, class... Arguments>
void launch_by_row(void (*kernel)(Parameters...), Index rows, cudaStream_t stream, Arguments... arguments) {
  if (rows == 0) return;
  check(start(kernel, dim3(blocks_for(rows, 1, 65535)), dim3(kThreads), kThreads * sizeof(A), stream,
              Parameters(arguments)...),
        "starting a kernel");
}

}  // namespace gatedrnn::cuda
