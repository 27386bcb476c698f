// Rows of features in memory, and lists of them.
#pragma once

#include "gatedrnn/row_order.h"
#include "gatedrnn/workspace.h"

namespace gatedrnn {

// Rows somewhere in memory, addressed by (time step, rank).
template <class T>
struct Rows {
  T* data = nullptr;
  Index step_stride = 0, row_stride = 0;
  const Index* order = nullptr;    // where memory has the caller's order: the row of each rank
  const Pieces* pieces = nullptr;  // or its piece
  const Index* begins = nullptr;   // where pairs are compact: see PairOrder

  Index offset(Index step, Index rank) const {
    if (begins) return (begins[step] + rank) * row_stride;
    if (!order) return step * step_stride + rank * row_stride;
    if (!pieces) return step * step_stride + order[rank] * row_stride;
    return pieces->time(order[rank], step) * step_stride + pieces->row(order[rank]) * row_stride;
  }
  // Of `count` steps, the one after another in time (`sign` 1) or before (-1); they stand `distance` apart in `to`.
  void list_offsets(Index first, Index sign, Index count, Index rank, Index* to, Index distance) const {
    if (begins || !pieces) {
      for (Index i = 0; i < count; ++i) to[i * distance] = offset(first + i * sign, rank);
      return;
    }
    const Index piece = order[rank], row = pieces->row(piece) * row_stride;
    for (Index i = 0; i < count; ++i) to[i * distance] = pieces->time(piece, first + i * sign) * step_stride + row;
  }
  T* at(Index step, Index rank) const { return data + offset(step, rank); }

  // Side by side, their pairs in that order.
  static Rows dense(T* data, PairOrder pairs, Index width) {
    return {data, pairs.step_stride * width, pairs.rank_stride * width, nullptr, nullptr, pairs.begins};
  }
};

// Rows that follow one another.
template <class T>
struct Strided {
  const T* data = nullptr;
  Index stride = 0;
};

// Lists of rows, which are a thread's own for one product or step: of some that it reads, or writes.
template <class T>
class RowLists {
 public:
  void carve(Arena& arena, int threads, Index size) {
    size_ = size;
    rows_ = arena.take<const T*>(threads * kLists * size);
  }

  const T** list(int thread, int which) const { return rows_ + (thread * kLists + which) * size_; }
  T** list_of_places(int thread, int which) const { return const_cast<T**>(list(thread, which)); }

 private:
  static constexpr int kLists = 3;

  Index size_ = 0;
  const T** rows_ = nullptr;  // [thread][kLists][size_]
};

}  // namespace gatedrnn
