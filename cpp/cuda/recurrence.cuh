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
      arrive_release(arrived_);
      while (load_acquire(arrived_) < target_) wait_a_little();
    }
    __syncthreads();
  }

 private:
  unsigned* arrived_;
  unsigned target_ = 0;
};

// 16 bytes of values, which one access of a thread reads.
template <class S>
struct alignas(16) Pack {
  static constexpr int count = 16 / sizeof(S);
  S values[count];
};

template <class S>
__device__ inline int whole_packs(int count) {
  return (count + Pack<S>::count - 1) / Pack<S>::count * Pack<S>::count;
}

// Rows that other blocks wrote, to shared memory, with zeros up to whole packs.
template <class S>
__device__ inline void fetch_rows(const S* from, Index from_stride, int rows, int width, S* to, int to_stride) {
  using P = Pack<S>;
  const int filled = whole_packs<S>(width);
  const bool aligned = from_stride % P::count == 0 && reinterpret_cast<std::uintptr_t>(from) % sizeof(P) == 0;
  if (width == filled && aligned) {
    const int packs = width / P::count;
    for (int i = threadIdx.x; i < rows * packs; i += blockDim.x) {
      const int row = i / packs, k = i % packs * P::count;
      fetch_16_bytes(to + row * to_stride + k, from + row * from_stride + k);
    }
    await_fetched();
    return;
  }
  for (int i = threadIdx.x; i < rows * filled; i += blockDim.x) {
    const int row = i / filled, k = i % filled;
    to[row * to_stride + k] = k < width ? load_from_others(from + row * from_stride + k) : converted<S>(0.0f);
  }
}

// Sums each of `count` values over the lanes; afterwards lane l has that of value l * count / kWarp. The order of the sums is
// that of a butterfly from 16 down to 1, for every count.
template <int count, int distance = kWarp / 2, class A>
__device__ inline A sum_over_lanes(A* v, int lane) {
  if constexpr (distance == 0) {
    return v[0];
  } else if constexpr (count == 1) {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], distance);
    return sum_over_lanes<1, distance / 2>(v, lane);
  } else {
    constexpr int half = count / 2;
    const bool upper = lane & distance;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A sent = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
    return sum_over_lanes<half, distance / 2>(v, lane);
  }
}

// The products of staged rows and weight vectors, in tiles of `r` rows and `v` vectors, one warp for each: what it reads from
// shared memory it uses `v` or `r` times. Lanes take packs in turns.
template <int r, int v, class S>
__device__ inline void tiles(int rows, int vectors, int depth, const S* staged, int staged_stride, const S* weights,
                             int weights_stride, bool add, Sum<S>* products) {
  using A = Sum<S>;
  using P = Pack<S>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  const int across = (vectors + v - 1) / v, count = (rows + r - 1) / r * across;
  for (int tile = warp; tile < count; tile += warps) {
    const int row = tile / across * r, vector = tile % across * v;
    A sums[r * v] = {};
    for (int k = lane * P::count; k < depth; k += kWarp * P::count) {
      P x[r], w[v];
#pragma unroll
      for (int i = 0; i < r; ++i)
        x[i] = *reinterpret_cast<const P*>(staged + min(row + i, rows - 1) * staged_stride + k);
#pragma unroll
      for (int j = 0; j < v; ++j)
        w[j] = *reinterpret_cast<const P*>(weights + min(vector + j, vectors - 1) * weights_stride + k);
#pragma unroll
      for (int e = 0; e < P::count; ++e)
#pragma unroll
        for (int i = 0; i < r; ++i)
#pragma unroll
          for (int j = 0; j < v; ++j)
            sums[i * v + j] = ::fma(converted<A>(x[i].values[e]), converted<A>(w[j].values[e]), sums[i * v + j]);
    }
    const A sum = sum_over_lanes<r * v>(sums, lane);
    constexpr int lanes_each = kWarp / (r * v);
    const int i = lane / lanes_each / v, j = lane / lanes_each % v;
    if (lane % lanes_each == 0 && row + i < rows && vector + j < vectors) {
      A& to = products[(row + i) * vectors + vector + j];
      to = add ? to + sum : sum;
    }
  }
}

// The dot products of `rows` rows of the operand, which other blocks wrote, with `vectors` weight vectors in shared memory; to
// products[row][vector]. As many values of each row as `staged` has room for are fetched at a time, once for the whole block.
template <class S>
__device__ inline void dots(int rows, int vectors, int depth, const S* operand, Index operand_stride, const S* weights,
                            int weights_stride, S* staged, int staged_stride, Sum<S>* products) {
  for (int begin = 0; begin < depth; begin += staged_stride) {
    const int width = min(staged_stride, depth - begin), filled = whole_packs<S>(width);
    if (begin > 0) __syncthreads();
    fetch_rows(operand + begin, operand_stride, rows, width, staged, staged_stride);
    __syncthreads();
    const S* w = weights + begin;
    if (rows == 1)
      tiles<1, 2>(rows, vectors, filled, staged, staged_stride, w, weights_stride, begin > 0, products);
    else if (rows <= 4)
      tiles<2, 4>(rows, vectors, filled, staged, staged_stride, w, weights_stride, begin > 0, products);
    else
      tiles<4, 4>(rows, vectors, filled, staged, staged_stride, w, weights_stride, begin > 0, products);
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
  const S* weights;             // [gates * units][units]
  S* h[2];                      // h[t-1] is in h[t % 2]
  int units_per_block, staged;  // as in the plan
  unsigned* arrived;
};

template <class S, Stage stage>
__device__ inline void run_stage(const Step<S>& step, const UnitRange& own, const S* operand, const S* weights,
                                 int weights_stride, S* staged, int staged_stride, Sum<S>* products) {
  constexpr int gates = stage_layout(stage).gates;
  dots(step.rows, gates * own.count, step.units, operand, step.units,
       weights + stage_first_gate(stage) * own.count * weights_stride, weights_stride, staged, staged_stride, products);
  __syncthreads();
  for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x) {
    const int rank = i / own.count, u = i % own.count;
    Sum<S> product[gates];

    for (int gate = 0; gate < gates; ++gate) product[gate] = products[(rank * gates + gate) * own.count + u];
    Forward<S, stage>::apply(step, rank, own.first + u, product);
  }
}

// Shared memory: the weights, [gate][own unit][units in whole packs], then the staged operand, then the products of a step.
template <class S, Cell cell>
__global__ void __launch_bounds__(kRecurrenceThreads, 1) forward_recurrence(Recurrence<S> r) {
  constexpr int gates = static_cast<int>(gate_count(cell));
  const int units = r.first.units;
  const UnitRange own = UnitRange::own(units, r.units_per_block);
  const int stride = whole_packs<S>(units);
  auto* weights = reinterpret_cast<S*>(shared_memory());
  auto* staged = weights + gates * r.units_per_block * stride;
  auto* products = reinterpret_cast<Sum<S>*>(staged + r.first.rows * r.staged);
  for (int i = threadIdx.x; i < gates * own.count * stride; i += blockDim.x) {
    const int vector = i / stride, gate = vector / own.count, unit = own.first + vector % own.count, k = i % stride;
    weights[i] = k < units ? r.weights[(static_cast<Index>(gate) * units + unit) * units + k] : converted<S>(0.0f);
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
    run_stage<S, first_stage(cell)>(step, own, step.h, weights, stride, staged, r.staged, products);
    if constexpr (cell == Cell::gru_reset_before) {
      barrier.wait();
      run_stage<S, Stage::gru_before_candidate>(step, own, step.reset_h, weights, stride, staged, r.staged, products);
    }
    barrier.wait();
  }
}

template <class S>
struct BackRecurrence {
  BackStep<S> first;  // its arrays of pairs those of the block's first step
  StepBlock block;
  const S* weights;             // [gates * units][units]
  const Sum<S>* c_at_begin;     // [rank][units]
  int units_per_block, staged;  // as in the plan
  unsigned* arrived;
};

// Shared memory: the transposed weights, [own unit][gates * units, the candidate's apart where it multiplies something else], then
// the staged operand, then the products of a step.
template <class S, Cell cell>
__global__ void __launch_bounds__(kRecurrenceThreads, 1) backward_recurrence(BackRecurrence<S> r) {
  constexpr int gates = static_cast<int>(gate_count(cell));
  const int units = r.first.units;
  const UnitRange own = UnitRange::own(units, r.units_per_block);
  constexpr int recurrent = static_cast<int>(recurrent_slots(cell));
  constexpr bool apart = cell == Cell::gru_reset_before;  // the candidate's, which multiply something else
  const int recurrent_depth = recurrent * units, candidate_at = whole_packs<S>(recurrent_depth);
  const int stride_of_weights = candidate_at + (apart ? whole_packs<S>(units) : 0);
  auto* weights = reinterpret_cast<S*>(shared_memory());
  auto* staged = weights + r.units_per_block * stride_of_weights;
  auto* products = reinterpret_cast<Sum<S>*>(staged + r.first.rows * r.staged);
  for (int i = threadIdx.x; i < own.count * stride_of_weights; i += blockDim.x) {
    const int u = i % own.count, k = i / own.count;
    const int from = k < candidate_at ? k : k - candidate_at + recurrent_depth;
    const bool exists = k < candidate_at ? k < recurrent_depth : from < gates * units;
    weights[u * stride_of_weights + k] =
        exists ? r.weights[static_cast<Index>(from) * units + own.first + u] : converted<S>(0.0f);
  }
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
           static_cast<const S*>(weights + candidate_at), stride_of_weights, staged, r.staged, products);
      __syncthreads();
      for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x)
        reset_backward(step, i / own.count, own.first + i % own.count, products[i]);
      barrier.wait();
    }
    dots(step.rows, own.count, recurrent_depth, static_cast<const S*>(step.d_a + first_recurrent_slot(cell) * units),
         stride, static_cast<const S*>(weights), stride_of_weights, staged, r.staged, products);
    __syncthreads();
    for (int i = threadIdx.x; i < step.rows * own.count; i += blockDim.x)
      step.d_h[step.at(i / own.count, own.first + i % own.count)] += products[i];
    __syncthreads();
  }
}

}  // namespace gatedrnn::cuda
