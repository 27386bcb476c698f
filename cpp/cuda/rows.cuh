// Rows of features: where they stand, and the kernels that move, convert and sum them.
//
// The rows of a batch stand in the order of their rank, longest first, so that those running in a step are the first ones. A
// step counts from the start of each row's own direction. The (step, rank) pairs of a block of steps stand one after the
// other, those of a step together.
#pragma once

#include <launch.h>

#include "gatedrnn/dropout.h"
#include "runtime.h"
#include "types.h"

namespace gatedrnn::cuda {

constexpr int kThreads = 256;  // of a block, where nothing asks for another number

inline unsigned blocks_for(Index count, Index per_block = kThreads) {
  constexpr Index most = 1 << 30;  // the loops below make up for the rest
  return static_cast<unsigned>(std::clamp<Index>((count + per_block - 1) / per_block, 1, most));
}

__device__ inline Index first_index() { return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ inline Index index_step() { return static_cast<Index>(gridDim.x) * blockDim.x; }

// The batch's order in the device's memory.
struct Order {
  const int* rows = nullptr;     // by rank
  const int* lengths = nullptr;  // by rank
  int batch = 0, steps = 0;
};

// A block of steps of one direction.
struct StepBlock {
  int begin = 0, end = 0;
  const int* counts = nullptr;   // [T] rows that run in each step
  const int* offsets = nullptr;  // [T + 1] pairs before each step, from step 0
  Index pairs = 0;
  bool reverse = false;
};

// A pair's step and rank. Blocks are short next to the pairs in them, so the step is searched for.
struct Pair {
  int step, rank;
};
__device__ inline Pair pair_of(const StepBlock& block, Index pair) {
  const Index wanted = block.offsets[block.begin] + pair;
  int low = block.begin, high = block.end - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (block.offsets[middle] <= wanted)
      low = middle;
    else
      high = middle - 1;
  }
  return {low, static_cast<int>(wanted - block.offsets[low])};
}

__device__ inline int time_of(const Order& order, bool reverse, int step, int rank) {
  return reverse ? order.lengths[rank] - 1 - step : step;
}

// [time][row][width] somewhere, its features next to each other.
template <class T>
struct Features {
  T* data = nullptr;
  Index time_stride = 0, row_stride = 0;

  __host__ __device__ T* at(Index time, Index row) const { return data + time * time_stride + row * row_stride; }
};

// The features of a block's pairs, one row after the other.
template <class S, class From>
__global__ void gather(StepBlock block, Order order, Features<const From> from, int width, S* to) {
  for (Index i = first_index(); i < block.pairs * width; i += index_step()) {
    const Pair pair = pair_of(block, i / width);
    const int time = time_of(order, block.reverse, pair.step, pair.rank);
    to[i] = converted<S>(from.at(time, order.rows[pair.rank])[i % width]);
  }
}

// h[t-1] of a block's pairs: the outputs of the step before, or at the first step the initial state, which is by rank.
template <class S>
__global__ void gather_before(StepBlock block, Order order, Features<const S> outputs, const S* h_0, int width, S* to) {
  for (Index i = first_index(); i < block.pairs * width; i += index_step()) {
    const Pair pair = pair_of(block, i / width);
    const int column = static_cast<int>(i % width);
    if (pair.step == 0) {
      to[i] = h_0[static_cast<Index>(pair.rank) * width + column];
    } else {
      const int time = time_of(order, block.reverse, pair.step - 1, pair.rank);
      to[i] = outputs.at(time, order.rows[pair.rank])[column];
    }
  }
}

// Adds the features of a block's pairs to where they belong.
template <class T>
__global__ void scatter_add(StepBlock block, Order order, const T* from, int width, Features<T> to) {
  for (Index i = first_index(); i < block.pairs * width; i += index_step()) {
    const Pair pair = pair_of(block, i / width);
    const int time = time_of(order, block.reverse, pair.step, pair.rank);
    to.at(time, order.rows[pair.rank])[i % width] += from[i];
  }
}

// Between arrays of other types and strides; zero past the rows' lengths.
template <class To, class From>
__global__ void copy_features(Order order, Features<const From> from, int width, Features<To> to) {
  const Index count = static_cast<Index>(order.steps) * order.batch * width;
  for (Index i = first_index(); i < count; i += index_step()) {
    const Index place = i / width, column = i % width;
    const int time = static_cast<int>(place / order.batch), rank = static_cast<int>(place % order.batch);
    const int row = order.rows[rank];
    to.at(time, row)[column] =
        time < order.lengths[rank] ? converted<To>(from.at(time, row)[column]) : converted<To>(0.0f);
  }
}

// [rows][width] states of one layer and direction between the caller's order and that of ranks.
template <class To, class From>
__global__ void copy_by_rank(const int* rows, int count, int width, const From* from, bool to_ranks, To* to) {
  for (Index i = first_index(); i < static_cast<Index>(count) * width; i += index_step()) {
    const Index rank = i / width, column = i % width;
    const Index ranked = rank * width + column, own = rows[rank] * static_cast<Index>(width) + column;
    if (to_ranks)
      to[ranked] = converted<To>(from[own]);
    else
      to[own] = converted<To>(from[ranked]);
  }
}

template <class To, class From>
__global__ void convert(const From* from, Index count, To* to) {
  for (Index i = first_index(); i < count; i += index_step()) to[i] = converted<To>(from[i]);
}

// What the next layer sees of a layer's output, and what of a gradient comes back through it.
template <class T>
__global__ void drop(Order order, Dropout dropout, Index layer, int width, const T* from, T* to) {
  const Index count = static_cast<Index>(order.steps) * order.batch * width;
  const Sum<T> scale = static_cast<Sum<T>>(1 / (1 - dropout.rate));
  for (Index i = first_index(); i < count; i += index_step()) {
    const auto place = static_cast<std::uint64_t>(layer * count + i);
    to[i] = stays(place, dropout) ? converted<T>(converted<Sum<T>>(from[i]) * scale) : converted<T>(0.0f);
  }
}

// Of the two arrays that h stands in by turns, the one that a row's last step wrote.
template <class S>
__global__ void choose_last(Order order, int width, const S* even, const S* odd, S* to) {
  for (Index i = first_index(); i < static_cast<Index>(order.batch) * width; i += index_step())
    to[i] = (order.lengths[i / width] % 2 == 0 ? even : odd)[i];
}

// The sums of the columns of a matrix, added to `sums` where `add`. A block of the grid sums 32 columns; each of its 8 rows of
// threads every eighth row of the matrix, and then one adds the eight: an order that nothing changes.
constexpr int kSumColumns = 32, kSumRows = 8;
template <class S>
__global__ void sum_columns(const S* matrix, Index rows, Index stride, int columns, bool add, Sum<S>* sums) {
  auto* parts = reinterpret_cast<Sum<S>*>(shared_memory());  // [kSumRows][kSumColumns]
  const int x = threadIdx.x % kSumColumns, y = threadIdx.x / kSumColumns;
  const Index column = static_cast<Index>(blockIdx.x) * kSumColumns + x;
  Sum<S> sum = 0;
  if (column < columns)
    for (Index row = y; row < rows; row += kSumRows) sum += converted<Sum<S>>(matrix[row * stride + column]);
  parts[y * kSumColumns + x] = sum;
  __syncthreads();
  if (y > 0 || column >= columns) return;
  for (int part = 1; part < kSumRows; ++part) sum += parts[part * kSumColumns + x];
  sums[column] = add ? sums[column] + sum : sum;
}

// The same of a matrix of gradients times c: that before each pair's step, or that after it, which is the fifth kept slot.
template <class S>
__global__ void sum_peephole(StepBlock block, const S* d_z, Index stride, const Sum<S>* kept, Index kept_stride,
                             const Sum<S>* c_at_begin, int units, bool before, bool add, Sum<S>* sums) {
  using A = Sum<S>;
  auto* parts = reinterpret_cast<A*>(shared_memory());  // [kSumRows][kSumColumns]
  const int x = threadIdx.x % kSumColumns, y = threadIdx.x / kSumColumns;
  const int unit = static_cast<int>(blockIdx.x) * kSumColumns + x;
  A sum = 0;
  if (unit < units)
    for (Index i = y; i < block.pairs; i += kSumRows) {
      const A* c = kept + i * kept_stride + 4 * units;
      if (before) {
        const Pair pair = pair_of(block, i);
        c = pair.step == block.begin
                ? c_at_begin + static_cast<Index>(pair.rank) * units
                : kept + (block.offsets[pair.step - 1] - block.offsets[block.begin] + pair.rank) * kept_stride +
                      4 * units;
      }
      sum += converted<A>(d_z[i * stride + unit]) * c[unit];
    }
  parts[y * kSumColumns + x] = sum;
  __syncthreads();
  if (y > 0 || unit >= units) return;
  for (int part = 1; part < kSumRows; ++part) sum += parts[part * kSumColumns + x];
  sums[unit] = add ? sums[unit] + sum : sum;
}

}  // namespace gatedrnn::cuda
