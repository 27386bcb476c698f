// A whole block of time steps in one kernel: each block of the grid keeps the recurrent weights of its units in shared memory,
// and all meet after each step. For batches so small that starting kernels and reading weights would take most of the time.
// (Diamos et al. 2016, Persistent RNNs: stashing recurrent weights on-chip.)
#pragma once

#include "cell_kernels.cuh"

namespace gatedrnn::cuda {

constexpr int kRecurrenceThreads = 512;
constexpr int kWarp = 32;

// Meets all blocks of a grid that runs together; `arrived` counts from zero on.
class GridBarrier {
 public:
  __device__ explicit GridBarrier(unsigned* arrived) : arrived_(arrived) {}

  __device__ void wait() {
    __syncthreads();
    target_ += gridDim.x;
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(arrived_, 1u);
      while (load_acquire(arrived_) < target_) wait_a_little();
      __threadfence();
    }
    __syncthreads();
  }

 private:
  unsigned* arrived_;
  unsigned target_ = 0;
};

// The dot products of `rows` rows of the operand with `vectors` weight vectors in shared memory, one warp for each; to
// products[row][vector]. Lanes take every 32nd value, and their sums are added pairwise: always the same order.
template <class S>
__device__ inline void dots(int rows, int vectors, int depth, const S* operand, Index operand_stride, const S* weights,
                            Index weights_stride, Sum<S>* products) {
  using A = Sum<S>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  for (int task = warp; task < rows * vectors; task += warps) {
    const int row = task / vectors, vector = task % vectors;
    const S* x = operand + row * operand_stride;
    const S* w = weights + vector * weights_stride;
    A sum = 0;
    for (int k = lane; k < depth; k += kWarp)
      sum = ::fma(converted<A>(load_from_others(x + k)), converted<A>(w[k]), sum);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) products[task] = sum;
  }
}

// The units of this block of the grid.
struct UnitRange {
  int first, count;
  __device__ static UnitRange own(int units, int per_block) {
    const int first = static_cast<int>(blockIdx.x) * per_block;
    return {first, max(0, min(per_block, units - first))};
  }
};

template <class S>
struct Recurrence {
  Step<S> first;  // of the block's first step
  StepBlock block;
  const S* weights;  // [gates * units][units]
  S* h[2];           // h[t-1] is in h[t % 2]
  int units_per_block;
  unsigned* arrived;
};

template <class S, Stage stage>
__device__ inline void run_stage(const Step<S>& step, const UnitRange& own, const S* operand, const S* weights,
                                 Sum<S>* products) {
  constexpr int gates = stage_layout(stage).gates;
  dots(step.rows, gates * own.count, step.units, operand, step.units,
       weights + static_cast<Index>(stage_first_gate(stage)) * own.count * step.units, step.units, products);
  __syncthreads();
  for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x) {
    const int rank = i / own.count, u = i % own.count;
    Sum<S> product[gates];

    for (int gate = 0; gate < gates; ++gate) product[gate] = products[(rank * gates + gate) * own.count + u];
    Forward<S, stage>::apply(step, rank, own.first + u, product);
  }
}

// Shared memory: the weights, [gate][own unit][units], then the products of a step.
template <class S, Cell cell>
__global__ void __launch_bounds__(kRecurrenceThreads) forward_recurrence(Recurrence<S> r) {
  constexpr int gates = static_cast<int>(gate_count(cell));
  const int units = r.first.units;
  const UnitRange own = UnitRange::own(units, r.units_per_block);
  auto* products = reinterpret_cast<Sum<S>*>(shared_memory());
  auto* weights = reinterpret_cast<S*>(products + static_cast<Index>(r.first.rows) * gates * r.units_per_block);
  for (int i = threadIdx.x; i < gates * own.count * units; i += blockDim.x) {
    const int vector = i / units, gate = vector / own.count, unit = own.first + vector % own.count;
    weights[i] = r.weights[(static_cast<Index>(gate) * units + unit) * units + i % units];
  }
  GridBarrier barrier(r.arrived);
  __syncthreads();
  const int begin = r.block.offsets[r.block.begin];
  for (int t = r.block.begin; t < r.block.end; ++t) {
    const Index pair = r.block.offsets[t] - begin;
    Step<S> step = r.first;
    step.rows = r.block.counts[t];
    step.projected += pair * gates * units;
    if (step.kept) step.kept += pair * step.kept_slots * units;
    step.h = r.h[t % 2];
    step.h_next = r.h[1 - t % 2];
    step.step = t;
    run_stage<S, first_stage(cell)>(step, own, step.h, weights, products);
    if constexpr (cell == Cell::gru_reset_before) {
      barrier.wait();
      run_stage<S, Stage::gru_before_candidate>(step, own, step.reset_h, weights, products);
    }
    barrier.wait();
  }
}

template <class S>
struct BackRecurrence {
  BackStep<S> first;  // its arrays of pairs those of the block's first step
  StepBlock block;
  const S* weights;          // [gates * units][units]
  const Sum<S>* c_at_begin;  // [rank][units]
  int units_per_block;
  unsigned* arrived;
};

// Shared memory: the transposed weights, [own unit][gates * units], then the products of a step.
template <class S, Cell cell>
__global__ void __launch_bounds__(kRecurrenceThreads) backward_recurrence(BackRecurrence<S> r) {
  constexpr int gates = static_cast<int>(gate_count(cell));
  const int units = r.first.units, depth = gates * units;
  const UnitRange own = UnitRange::own(units, r.units_per_block);
  auto* products = reinterpret_cast<Sum<S>*>(shared_memory());
  auto* weights = reinterpret_cast<S*>(products + static_cast<Index>(r.first.rows) * r.units_per_block);
  for (int i = threadIdx.x; i < own.count * depth; i += blockDim.x)
    weights[i] = r.weights[static_cast<Index>(i % depth) * units + own.first + i / depth];
  GridBarrier barrier(r.arrived);
  __syncthreads();
  const int begin = r.block.offsets[r.block.begin];
  for (int t = r.block.end - 1; t >= r.block.begin; --t) {
    const Index pair = r.block.offsets[t] - begin;
    BackStep<S> step = r.first;
    step.rows = r.block.counts[t];
    step.step = t;
    step.d_a += pair * step.slots * units;
    if (step.h_before) step.h_before += pair * units;
    if (step.h) step.h += pair * units;
    if (step.operand) step.operand += pair * units;
    if (step.kept) {
      const Index row_size = static_cast<Index>(step.kept_slots) * units;
      if (is_lstm(cell)) {
        const bool first = t == r.block.begin;
        step.c_before =
            first ? r.c_at_begin : r.first.kept + (r.block.offsets[t - 1] - begin) * row_size + kKeptC * units;
        step.c_before_stride = first ? units : row_size;
      }
      step.kept += pair * row_size;
    }
    for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x)
      Backward<S, last_back_stage(cell)>::apply(step, i / own.count, own.first + i % own.count);
    barrier.wait();
    const Index stride = static_cast<Index>(step.slots) * units;
    if constexpr (cell == Cell::gru_reset_before) {
      dots(step.rows, own.count, units, static_cast<const S*>(step.d_a + 2 * units), stride,
           static_cast<const S*>(weights + 2 * units), depth, products);
      __syncthreads();
      for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x)
        reset_backward(step, i / own.count, own.first + i % own.count, products[i]);
      barrier.wait();
    }
    dots(step.rows, own.count, static_cast<int>(recurrent_slots(cell)) * units,
         static_cast<const S*>(step.d_a + first_recurrent_slot(cell) * units), stride, static_cast<const S*>(weights),
         depth, products);
    __syncthreads();
    for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x)
      step.d_h[step.at(i / own.count, own.first + i % own.count)] += products[i];
    __syncthreads();
  }
}

}  // namespace gatedrnn::cuda
