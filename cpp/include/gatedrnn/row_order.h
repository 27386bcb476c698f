// The order in which the rows of a batch stand.
#pragma once

#include <algorithm>

#include "gatedrnn/spec.h"

namespace gatedrnn {

// Rows stand in the order of their rank, longest first, so that those still running in any step are the first ones.
struct RowOrder {
  const Index* rows = nullptr;     // by rank; null: as they come
  const Index* lengths = nullptr;  // by row; null: all of them `steps`
  Index steps = 0;

  Index row(Index rank) const { return rows ? rows[rank] : rank; }
  Index length(Index rank) const { return lengths ? lengths[row(rank)] : steps; }

  static void sort(const Index* lengths, Index count, Index* rows) {
    for (Index row = 0; row < count; ++row) rows[row] = row;
    std::sort(rows, rows + count,
              [lengths](Index a, Index b) { return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b; });
  }
};

}  // namespace gatedrnn
