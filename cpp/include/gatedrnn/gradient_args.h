// What the kernels get that add up the gradients of parameters.
#pragma once

#include "gatedrnn/core.h"
#include "gatedrnn/spec.h"

namespace gatedrnn {

// Columns of d that one thread has, at the least, and that are packed together. Formats that round take more rows of a product.
constexpr Index kGemmColumns = 8, kRoundedGemmColumns = 32;

// Successive (step, row) pairs: whole blocks of them (PairBlocks), none of which is larger than kBlockPairs.
struct Pairs {
  const Index* ends;  // of the blocks, counted like `first`
  Index blocks;
  Index first;  // pair of the first block

  Index count() const { return ends[blocks - 1] - first; }
};

// sums[column][k] += the sums over the n of each block of d[n][column] x[n][k]: the gradient of a matrix of weights. The sides are
// packed; where the format does not round, d may also stand in rows as they are.
template <class T>
struct TransposedGemmArgs {
  const Core* core;
  Pairs pairs;
  Index columns, depth;            // how many there are
  const void* d;                   // the first group's first row of kGemmColumns values
  Index d_group_stride, d_stride;  // from group to group, from row to row
  Index d_ahead;                   // how far ahead d is fetched; 0: not at all
  const void* x;
  T* sums;            // [columns][sums_stride]
  Index sums_stride;  // at least the layout's sums_width(depth), all of which may be written
  bool from_zero;     // sums hold nothing yet
};

// Packs rows for the right side above.
template <class T>
struct PackRowsArgs {
  const T* const* rows;  // [pair] pointers, from the first pair on
  Pairs pairs;
  Index depth;
  void* to;
};

// Packs columns for the left side.
template <class T>
struct PackColumnsArgs {
  const T* from;  // [pair][stride], from the first pair on
  Index stride;
  Pairs pairs;
  Index columns;
  void* to;  // groups of so many as belong together
};

// sums[unit] += the sum over n of d[n][unit] times, if given, factor[n][unit].
template <class T>
struct ColumnArgs {
  Index count, units;
  const T* d;       // [count][d_stride], whole vectors
  const T* factor;  // [count][factor_stride], each row as kept_offset says, the last of factor_slots; or null
  Index d_stride, factor_stride, factor_slots;
  T* sums;  // whole vectors
};

}  // namespace gatedrnn
