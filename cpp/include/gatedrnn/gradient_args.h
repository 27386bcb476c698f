// What the kernels get that add up the gradients of parameters.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

// sums[column][k] += the sums over the n of each block of d[n][column] x[n][k]: the gradient of a matrix of weights. x is packed
// in parts of up to kGemmVectors vectors; d may be packed in groups of kGemmColumns columns, or rows as they are.
constexpr int kGemmVectors = 3;
constexpr Index kGemmColumns = 8;

template <class T>
struct TransposedGemmArgs {
  const Index* ends;               // of the blocks, counted like `first`
  Index blocks, first;             // the n of the first of them
  Index columns;                   // the last group may cover more
  Index width;                     // of sums; the last vector may cover more
  const T* d;                      // the first group's first row of kGemmColumns values
  Index d_group_stride, d_stride;  // from group to group, from row to row
  Index d_ahead;                   // how far ahead d is fetched; 0: not at all
  const T* x;                      // [count][vectors][lanes]
  int vectors;                     // 1 .. kGemmVectors
  T* sums;                         // [columns][sums_stride]
  Index sums_stride;
  bool from_zero;  // sums hold nothing yet
};

// Packs `vectors` vectors of each row, `width` of whose values exist, for the right side above.
template <class T>
struct PackRowsArgs {
  const T* const* rows;  // [count] pointers
  Index count, first;    // the first value of a row
  Index width;
  int vectors;
  T* to;  // [count][vectors][lanes]
};

// Packs groups of kGemmColumns columns for the left side.
template <class T>
struct PackColumnsArgs {
  const T* from;  // [count][stride]
  Index stride, count, groups;
  T* to;  // [group][count][kGemmColumns]
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
