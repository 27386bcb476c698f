// The order in which the rows of a batch stand, and their steps.
#pragma once

#include <algorithm>
#include <functional>

#include "gatedrnn/pieces.h"

namespace gatedrnn {

// Rows stand in the order of their rank, longest first, so that those still running in any step are the first ones.
struct RowOrder {
  const Index* rows = nullptr;     // by rank; null: as they come
  const Index* lengths = nullptr;  // by row; null: all of them `steps`
  Index steps = 0;
  const Pieces* pieces = nullptr;  // what the rows are, if not the caller's

  Index row(Index rank) const { return rows ? rows[rank] : rank; }
  Index length(Index rank) const { return lengths ? lengths[row(rank)] : steps; }

  static void sort(const Index* lengths, Index count, Index* rows) {
    for (Index row = 0; row < count; ++row) rows[row] = row;
    if (std::is_sorted(lengths, lengths + count, std::greater<>())) return;  // as pieces are
    std::sort(rows, rows + count,
              [lengths](Index a, Index b) { return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b; });
  }
};

// How (step, rank) pairs follow one another in an array: step by step, or rank by rank.
struct PairOrder {
  Index step_stride, rank_stride;  // in pairs
  const Index* begins = nullptr;   // or where each step's pairs begin

  static PairOrder by_step(Index ranks) { return {ranks, 1}; }
  static PairOrder by_rank(Index steps) { return {1, steps}; }
  // Only those that there are, not all ranks in each step.
  static PairOrder compact(const Index* begins) { return {0, 1, begins}; }
  Index at(Index step, Index rank) const { return (begins ? begins[step] : step * step_stride) + rank * rank_stride; }
};

}  // namespace gatedrnn
