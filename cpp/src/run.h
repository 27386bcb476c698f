// What every call in flight has in common: the plan's grid of threads, the order of the rows, the scratch that a group of threads
// shares, and the walk of one layer and direction through time.
#pragma once

#include <algorithm>
#include <new>
#include <tuple>
#include <utility>

#include "gatedrnn/network.h"
#include "gatedrnn/threads.h"

namespace gatedrnn {

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// How long a team may be waited for: sleeping threads come in some 30 microseconds, on a busy machine later; more is given to
// calls that take longer.
inline double patience(const Plan& plan) {
  constexpr double cycles_per_microsecond = 3000;
  return 60 + 0.1 * plan.cycles / cycles_per_microsecond;
}

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

// Rows of features somewhere in memory, addressed by (time step, rank).
template <class T>
struct Rows {
  T* data = nullptr;
  Index step_stride = 0, row_stride = 0;
  const Index* order = nullptr;  // where memory has the caller's order: the row of each rank

  T* at(Index step, Index rank) const { return data + step * step_stride + (order ? order[rank] : rank) * row_stride; }
};

// What the threads that work on the same rows and direction share: the scratch of one layer at a time.
template <class T>
struct Group {
  T* h[2] = {};  // h[t-1] and h[t], in turns: [rows][state_stride]
  T* c = nullptr;
  T* reset_h = nullptr;
  T* update = nullptr;
  T* unprojected = nullptr;
  T* gates[2] = {};  // per stage: [panel][block row][slots]
  // Backward: the gradient of h that does not come through a product, that of c, and products in the making.
  T* carry = nullptr;
  T* d_c = nullptr;
  T* products = nullptr;
  Barrier barrier;
};

template <class T>
class Run {
 protected:
  Run(const Network<T>& network, const Plan& plan, Index batch, RowOrder order)
      : network_(network), spec_(network.spec()), plan_(plan), batch_(batch), order_(order) {}

  // One thread's place in the plan's grid, for one layer and direction.
  struct Share {
    int thread, units, row_group;
    Group<T>& group;
    Index layer, direction;
  };

  // What a step of a layer and direction reads and writes.
  struct Passage {
    Rows<const T> in;
    Rows<T> out;        // no data: the output is not wanted
    T* kept = nullptr;  // [step][rank][kept_width], its first step being `first`, or null
    Index first = 0, kept_width = 0;
  };

  int group_count() const { return plan_.direction_groups * plan_.row_groups; }
  Group<T>& group_of(int thread) const { return groups_[thread / plan_.unit_groups]; }
  int units_of(int thread) const { return thread % plan_.unit_groups; }
  int row_group_of(int thread) const { return thread / plan_.unit_groups % plan_.row_groups; }
  int direction_group_of(int thread) const { return thread / plan_.unit_groups / plan_.row_groups; }

  Index most_rows() const { return ceil_div(batch_, plan_.row_groups); }

  // The groups, and in each of them the scratch for going forward. Measures when the arena has no block, carves when it has
  // one. `more` takes what else a group needs.
  template <class More>
  void carve_groups(Arena& arena, bool forward, More&& more) {
    const Index state = most_rows() * network_.state_stride();
    groups_ = arena.take<Group<T>>(group_count());
    pointers_ = arena.take<const T*>(2 * plan_.block_rows * plan_.threads());
    for (int g = 0; g < group_count(); ++g) {
      Group<T> measured;
      Group<T>& group = groups_ ? *new (groups_ + g) Group<T> : measured;
      group.barrier.reset(plan_.unit_groups);
      more(group);
      if (!forward) continue;
      for (T*& h : group.h) h = arena.take<T>(state);
      if (is_lstm(spec_.cell)) group.c = arena.take<T>(state);
      if (spec_.proj_size > 0) group.unprojected = arena.take<T>(state);
      if (spec_.cell == Cell::gru_reset_before) {
        group.reset_h = arena.take<T>(state);
        group.update = arena.take<T>(state);
      }
      const auto& stages = network_.layer(0, 0).stages;
      for (std::size_t s = 0; s < stages.size(); ++s)
        group.gates[s] = arena.take<T>(stages[s].panels * gates_panel_stride(stages[s]));
    }
  }

  Index row_count(const Share& share) const {
    return (batch_ - share.row_group + plan_.row_groups - 1) / plan_.row_groups;
  }
  Index rank(const Share& share, Index i) const { return share.row_group + i * plan_.row_groups; }
  Index length(const Share& share, Index i) const { return order_.length(rank(share, i)); }

  // How many of the share's rows run in a step, given how many at most.
  Index running(const Share& share, Index step, Index most) const {
    while (most > 0 && length(share, most - 1) <= step) --most;
    return most;
  }

  void meet(const Share& share) const {
    if (plan_.unit_groups > 1) share.group.barrier.wait();
  }

  Index track(const Share& share) const { return share.layer * spec_.directions + share.direction; }
  Index time(const Share& share, Index step, Index i) const {
    return share.direction == 0 ? step : length(share, i) - 1 - step;
  }

  // This thread's part of that many panels.
  std::pair<Index, Index> panels(const Share& share, Index count) const {
    return {count * share.units / plan_.unit_groups, count * (share.units + 1) / plan_.unit_groups};
  }

  // Goes through the steps begin .. end, the state before them being in the group's h[turn] and c. `after(step, h, next,
  // rows)` is called when a step is done: its h, the rows that run in the next one, and those that ran in this. Returns the
  // turn.
  template <class After>
  int walk(const Share& share, const Passage& passage, Index begin, Index end, int turn, After&& after) const {
    const PackedLayer<T>& layer = network_.layer(share.layer, share.direction);
    const Index column = share.direction * spec_.state_size();
    const T** x = pointers_ + 2 * plan_.block_rows * share.thread;
    T** y = const_cast<T**>(x + plan_.block_rows);
    Index rows = row_count(share), step = begin;
    const auto still_running = [&](Index s) { return rows = running(share, s, rows); };
    while (step < end && still_running(step) > 0) {
      const Index first = step, rows_at_first = rows;
      Index listed = 0;
      for (; step < end && still_running(step) > 0 && listed + rows <= plan_.block_rows; ++step)
        for (Index i = 0; i < rows; ++i, ++listed) {
          const Index t = time(share, step, i);
          x[listed] = passage.in.at(t, rank(share, i));
          if (passage.out.data) y[listed] = passage.out.at(t, rank(share, i)) + column;
        }
      project(share, layer, x, listed, turn);
      meet(share);  // in place: all inputs of the block are read
      rows = rows_at_first;
      Index at = 0;
      for (Index s = first; s < step; ++s) {
        const Index now = still_running(s);
        take_step(share, layer, passage, s, now, at, passage.out.data ? y + at : nullptr, turn);
        at += now;
        turn ^= 1;
        after(s, share.group.h[turn], still_running(s + 1), now);
      }
    }
    return turn;
  }

  // Row i's place in an array of states [track][row][width] in the caller's order.
  Index state_at(const Share& share, Index i, Index width) const {
    return (track(share) * batch_ + order_.row(rank(share, i))) * width;
  }

  // The units that this thread computed, of the rows begin .. end of scratch, to each row's place.
  template <class Place>
  void store_units(const Share& share, const PackedStage<T>& stage, const T* from, Index begin, Index end,
                   Place&& place) const {
    const auto [first, last] = panels(share, stage.panels);
    const Index unit = first * stage.units_per_panel();
    const Index count = std::min(last * stage.units_per_panel(), stage.units) - unit;
    for (Index i = begin; i < end; ++i) std::copy_n(from + i * network_.state_stride() + unit, count, place(i) + unit);
  }

  static void copy_or_clear(const T* from, Index count, T* to) {
    if (from)
      std::copy_n(from, count, to);
    else
      std::fill_n(to, count, T(0));
  }

  const Network<T>& network_;
  const Spec& spec_;
  const Plan plan_;
  const Index batch_;
  RowOrder order_;
  const T** pointers_ = nullptr;  // [thread][2][block row] of inputs, outputs
  Group<T>* groups_ = nullptr;
  mutable Barrier everyone_;

 private:
  // An odd number of cache lines, so that panels do not fall into the same cache sets.
  Index gates_panel_stride(const PackedStage<T>& stage) const {
    constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
    return round_up(plan_.block_rows * stage.slots_size(), 2 * line) + line;
  }

  void project(const Share& share, const PackedLayer<T>& layer, const T* const* x, Index rows, int turn) const {
    for (std::size_t s = 0; s < layer.stages.size(); ++s) {
      const PackedStage<T>& stage = layer.stages[s];
      if (stage.stage == Stage::linear) continue;
      const auto [first, last] = panels(share, stage.panels);
      network_.kernels().project[static_cast<int>(stage.stage)]({x, rows, stage.input_depth, first, last, turn == 1,
                                                                 stage.input.data(), stage.bias.data(),
                                                                 share.group.gates[s], gates_panel_stride(stage)});
    }
  }

  // h[turn] -> h[1 - turn], for the rows whose gates start at block row `at`.
  void take_step(const Share& share, const PackedLayer<T>& layer, const Passage& passage, Index step, Index rows,
                 Index at, T* const* y, int turn) const {
    const Group<T>& group = share.group;
    for (std::size_t s = 0; s < layer.stages.size(); ++s) {
      const PackedStage<T>& stage = layer.stages[s];
      const bool last_stage = s + 1 == layer.stages.size();
      StepArgs<T> args{};
      args.rows = rows;
      args.depth = stage.recurrent_depth;
      args.units = stage.units;
      std::tie(args.first_panel, args.last_panel) = panels(share, stage.panels);
      args.backwards = turn == 1;  // what the last step left in the cache comes first in this one
      args.weights = stage.recurrent.data();
      args.gates = group.gates[s] + at * stage.slots_size();
      args.gates_panel_stride = gates_panel_stride(stage);
      args.state_stride = network_.state_stride();
      args.operand = stage.stage == Stage::gru_before_candidate ? group.reset_h
                     : stage.stage == Stage::linear             ? group.unprojected
                                                                : group.h[turn];
      args.h = group.h[turn];
      args.h_next = last_stage ? group.h[1 - turn] : group.unprojected;
      args.c = group.c;
      args.reset_h = group.reset_h;
      args.update = group.update;
      args.peephole = stage.peephole.data();
      args.y = last_stage ? y : nullptr;
      const auto& kernels = passage.kept ? network_.kernels().step_keeping : network_.kernels().step;
      if (passage.kept) {
        args.kept_stride = plan_.row_groups * passage.kept_width;
        args.kept = passage.kept + ((step - passage.first) * batch_ + share.row_group) * passage.kept_width;
      }
      kernels[static_cast<int>(stage.stage)](args);
      meet(share);
    }
  }
};

}  // namespace gatedrnn
