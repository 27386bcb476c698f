// Blocks of as many rows as lanes, by rank, for the layout of rows_in_lanes.h.
#pragma once

#include <algorithm>

#include "gatedrnn/rows_in_lanes.h"
#include "gatedrnn/sizes.h"
#include "rows.h"

namespace gatedrnn {

class LaneBlocks {
 public:
  LaneBlocks() = default;
  LaneBlocks(const RowOrder& order, Index batch, int lanes) : order_(order), batch_(batch), lanes_(lanes) {
    for (Index rank = 0; in_order_ && order.rows && rank < batch; ++rank) in_order_ = order.rows[rank] == rank;
  }

  Index count() const { return ceil_div(batch_, lanes_); }
  Index lanes() const { return lanes_; }
  Index first(Index block) const { return block * lanes_; }
  Index rows(Index block) const { return std::min<Index>(lanes_, batch_ - first(block)); }
  Index length(Index rank) const { return order_.length(rank); }
  // How many of `count` ranks run in a step.
  Index running(Index first, Index count, Index step) const {
    while (count > 0 && length(first + count - 1) <= step) --count;
    return count;
  }

  // Where `count` ranks have their rows in a step, counted from each row's end where the direction runs `backwards`. What it
  // returns may point into `at`, which has room for so many.
  template <class Value>
  LaneRows<Value> place(const Rows<Value>& rows, bool backwards, Index step, Index first, Index count,
                        Index* at) const {
    const auto offset = [&](Index rank) { return rows.offset(backwards ? length(rank) - 1 - step : step, rank); };
    const bool same_time = !backwards || length(first) == length(first + count - 1);
    if (same_time && (in_order_ || !rows.order) && !rows.pieces)
      return {rows.data + offset(first), rows.row_stride, nullptr};
    return listed(rows, backwards, step, 1, first, count, at);
  }
  // In `steps` steps from that one on, whose lists are kMostLanes apart in `at`.
  template <class Value>
  LaneRows<Value> listed(const Rows<Value>& rows, bool backwards, Index step, Index steps, Index first, Index count,
                         Index* at) const {
    for (Index i = 0; i < count; ++i) {
      const Index time = backwards ? length(first + i) - 1 - step : step;
      rows.list_offsets(time, backwards ? -1 : 1, steps, first + i, at + i, kMostLanes);
    }
    return {rows.data, 0, at};
  }

  // A block's states into lanes, zeros where there are none.
  template <class T>
  void load(const Kernels<T>& kernels, const Rows<const T>& from, Index block, Index units, T* to) const {
    Index at[kMostLanes];
    if (from.data)
      kernels.rows_in_lanes.rows_to_lanes(place(from, false, 0, first(block), rows(block), at), rows(block), units, to);
    else
      std::fill_n(to, units * lanes_, T(0));
  }
  // Those of `count` ranks from lanes.
  template <class T>
  void store(const Kernels<T>& kernels, const T* from, Index units, const Rows<T>& to, Index first, Index count) const {
    Index at[kMostLanes];
    kernels.rows_in_lanes.lanes_to_rows(from, count, units, place(to, false, 0, first, count, at));
  }

 private:
  RowOrder order_;
  Index batch_ = 0;
  int lanes_ = 1;
  bool in_order_ = true;
};

}  // namespace gatedrnn
