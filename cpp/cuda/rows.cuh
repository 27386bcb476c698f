// Rows of features: where they stand, and the kernels that move, convert and sum them.
//
// The rows of a batch stand in the order of their rank, longest first, so that those running in a step are the first ones. A
// step counts from the start of each row's own direction. The (step, rank) pairs of a block of steps stand one after the
// other, those of a step together.
#pragma once

#include <launch.h>

#include "gatedrnn/dropout.h"
#include "network.h"
#include "runtime.h"
#include "types.h"

namespace gatedrnn::cuda {

constexpr int kThreads = 128;  // of a block, where nothing asks for another number

inline unsigned blocks_for(Index count, Index per_block, Index most) {  // the loops below make up for the rest
  return static_cast<unsigned>(std::clamp<Index>((count + per_block - 1) / per_block, 1, most));
}

// A kernel over a matrix: blocks of columns by x, rows by y.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Index rows, Index columns, cudaStream_t stream, Arguments... arguments) {
  if (rows == 0 || columns == 0) return;
  const dim3 grid(blocks_for(columns, kThreads, 1 << 30), blocks_for(rows, 1, 65535));
  check(start(kernel, grid, dim3(kThreads), 0, stream, Parameters(arguments)...), "starting a kernel");
}

// Calls `visit(row, column)` for what is this thread's of such a matrix.
template <class Visit>
__device__ inline void for_own(Index rows, int columns, Visit&& visit) {
  for (Index row = blockIdx.y; row < rows; row += gridDim.y)
    for (Index column = static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x; column < columns;
         column += static_cast<Index>(gridDim.x) * blockDim.x)
      visit(row, static_cast<int>(column));
}

// The batch's order, in the device's memory; nothing where all rows run for all steps.
struct Order {
  const int* rows = nullptr;     // by rank
  const int* lengths = nullptr;  // by rank
  int batch = 0, steps = 0;

  __device__ int row(int rank) const { return rows ? rows[rank] : rank; }
  __device__ int length(int rank) const { return lengths ? lengths[rank] : steps; }
};

// A block of steps of one direction.
struct StepBlock {
  int begin = 0, end = 0;
  const int* counts = nullptr;   // [T] rows that run in each step
  const int* offsets = nullptr;  // [T + 1] pairs before each step, from step 0
  Index pairs = 0;
  bool reverse = false;
  int rows = 0;  // that run in every step, or 0 where their number changes
};

// The rows that run in a step of a block, and the pairs before it.
__device__ inline int running_rows(const StepBlock& block, int step) {
  return block.rows > 0 ? block.rows : block.counts[step];
}
__device__ inline Index pairs_before(const StepBlock& block, int step) {
  return block.rows > 0 ? static_cast<Index>(step - block.begin) * block.rows
                        : block.offsets[step] - block.offsets[block.begin];
}

// A pair's step and rank.
struct Pair {
  int step, rank;
};
__device__ inline Pair pair_of(const StepBlock& block, Index pair) {
  if (block.rows > 0) return {block.begin + static_cast<int>(pair / block.rows), static_cast<int>(pair % block.rows)};
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
  return reverse ? order.length(rank) - 1 - step : step;
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
  for_own(block.pairs, width, [&](Index i, int column) {
    const Pair pair = pair_of(block, i);
    const int time = time_of(order, block.reverse, pair.step, pair.rank);
    to[i * width + column] = converted<S>(from.at(time, order.row(pair.rank))[column]);
  });
}

// h[t-1] of a block's pairs: the outputs of the step before, or at the first step the initial state, which is by rank.
template <class S>
__global__ void gather_before(StepBlock block, Order order, Features<const S> outputs, const S* h_0, int width, S* to) {
  for_own(block.pairs, width, [&](Index i, int column) {
    const Pair pair = pair_of(block, i);
    if (pair.step == 0) {
      to[i * width + column] = h_0[static_cast<Index>(pair.rank) * width + column];
    } else {
      const int time = time_of(order, block.reverse, pair.step - 1, pair.rank);
      to[i * width + column] = outputs.at(time, order.row(pair.rank))[column];
    }
  });
}

// The features of a block's pairs to where they belong, or added to what is there.
template <class T>
__global__ void scatter(StepBlock block, Order order, const T* from, int width, bool add, Features<T> to) {
  for_own(block.pairs, width, [&](Index i, int column) {
    const Pair pair = pair_of(block, i);
    const int time = time_of(order, block.reverse, pair.step, pair.rank);
    T& place = to.at(time, order.row(pair.rank))[column];
    place = add ? place + from[i * width + column] : from[i * width + column];
  });
}

// Between arrays of other types and strides; zero past the rows' lengths.
template <class To, class From>
__global__ void copy_features(Order order, Features<const From> from, int width, Features<To> to) {
  for_own(static_cast<Index>(order.steps) * order.batch, width, [&](Index place, int column) {
    const int time = static_cast<int>(place / order.batch), rank = static_cast<int>(place % order.batch);
    const int row = order.row(rank);
    to.at(time, row)[column] =
        time < order.length(rank) ? converted<To>(from.at(time, row)[column]) : converted<To>(0.0f);
  });
}

// [rows][width] states of one layer and direction between the caller's order and that of ranks.
template <class To, class From>
__global__ void copy_by_rank(Order order, int width, const From* from, bool to_ranks, To* to) {
  for_own(order.batch, width, [&](Index rank, int column) {
    const Index ranked = rank * width + column;
    const Index own = order.row(static_cast<int>(rank)) * static_cast<Index>(width) + column;
    if (to_ranks)
      to[ranked] = converted<To>(from[own]);
    else
      to[own] = converted<To>(from[ranked]);
  });
}

// The same state for all rows.
template <class To, class From>
__global__ void repeat_row(const From* from, Index rows, int width, To* to) {
  for_own(rows, width, [&](Index row, int column) { to[row * width + column] = converted<To>(from[column]); });
}

template <class To, class From>
__global__ void convert(const From* from, Index rows, int width, To* to) {
  for_own(rows, width,
          [&](Index row, int column) { to[row * width + column] = converted<To>(from[row * width + column]); });
}

// What the next layer sees of a layer's output, and what of a gradient comes back through it.
template <class T>
__global__ void drop(Order order, Dropout dropout, OtherPlaces others, Index layer, int width, const T* from, T* to) {
  const Index places = static_cast<Index>(order.steps) * order.batch;
  const Index before = layer * (others.numbers ? others.count : places);
  const Sum<T> scale = static_cast<Sum<T>>(1 / (1 - dropout.rate));
  for_own(places, width, [&](Index place, int column) {
    const Index i = place * width + column, number = others.numbers ? others.numbers[place] : place;
    const bool kept = stays(static_cast<std::uint64_t>((before + number) * width + column), dropout);
    to[i] = kept ? converted<T>(converted<Sum<T>>(from[i]) * scale) : converted<T>(0.0f);
  });
}

// Of the two arrays that h stands in by turns, the one that a row's last step wrote.
template <class S>
__global__ void choose_last(Order order, int width, const S* even, const S* odd, S* to) {
  for_own(order.batch, width, [&](Index rank, int column) {
    const Index i = rank * width + column;
    to[i] = (order.length(static_cast<int>(rank)) % 2 == 0 ? even : odd)[i];
  });
}

// Sums over the rows of a matrix, in parts: each row of the grid sums a range of the matrix' rows, a block of it 32 columns. Each of
// the block's 8 rows of threads sums every eighth row of the range, and then one adds the eight: an order that nothing changes.
// add_parts adds up the parts.
constexpr int kSumColumns = 32, kSumRows = 8;
constexpr Index kRowsOfPart = 256, kMostParts = 64;
inline Index sum_parts(Index rows) { return std::clamp<Index>(rows / kRowsOfPart, 1, kMostParts); }

// `visit(row, column)` is what is summed; to parts [gridDim.y][columns].
template <class A, class Visit>
__device__ inline void sum_over_rows(Index rows, int columns, A* parts, Visit&& visit) {
  auto* shared = reinterpret_cast<A*>(shared_memory());  // [kSumRows][kSumColumns]
  const int x = threadIdx.x % kSumColumns, y = threadIdx.x / kSumColumns;
  const int column = static_cast<int>(blockIdx.x) * kSumColumns + x;
  const Index of_part = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * of_part;
  A sum = 0;
  if (column < columns)
    for (Index row = first + y; row < min(first + of_part, rows); row += kSumRows) sum += visit(row, column);
  shared[y * kSumColumns + x] = sum;
  __syncthreads();
  if (y > 0 || column >= columns) return;
  for (int other = 1; other < kSumRows; ++other) sum += shared[other * kSumColumns + x];
  parts[static_cast<Index>(blockIdx.y) * columns + column] = sum;
}

template <class S>
__global__ void sum_columns(const S* matrix, Index rows, int columns, Sum<S>* parts) {
  sum_over_rows(rows, columns, parts,
                [&](Index row, int column) { return converted<Sum<S>>(matrix[row * columns + column]); });
}

// The same of a matrix of gradients times c: that before each pair's step, or that after it.
template <class S>
__global__ void sum_peephole(StepBlock block, const S* d_a, Index stride, const Sum<S>* kept, Index kept_stride,
                             const Sum<S>* c_at_begin, int c_slot, int units, bool before, Sum<S>* parts) {
  sum_over_rows(block.pairs, units, parts, [&](Index i, int unit) {
    const Sum<S>* c = kept + i * kept_stride + c_slot * units;
    if (before) {
      const Pair pair = pair_of(block, i);
      c = pair.step == block.begin
              ? c_at_begin + static_cast<Index>(pair.rank) * units
              : kept + (pairs_before(block, pair.step - 1) + pair.rank) * kept_stride + c_slot * units;
    }
    return converted<Sum<S>>(d_a[i * stride + unit]) * c[unit];
  });
}

// Sums over the rows of a matrix, one after the other; to `sums`, or added to them.
template <class A>
__global__ void sum_rows(const A* matrix, Index rows, int columns, bool add, A* sums) {
  for_own(1, columns, [&](Index, int column) {
    A sum = 0;
    for (Index row = 0; row < rows; ++row) sum += matrix[row * columns + column];
    sums[column] = add ? sums[column] + sum : sum;
  });
}

// `parts` are `stride` values apart; to `sums`, or added to them.
template <class A>
__global__ void add_parts(const A* parts, int count, Index stride, int columns, bool add, A* sums) {
  for_own(1, columns, [&](Index, int column) {
    A sum = parts[column];
    for (int part = 1; part < count; ++part) sum += parts[part * stride + column];
    sums[column] = add ? sums[column] + sum : sum;
  });
}

}  // namespace gatedrnn::cuda
