// What every call in flight has in common: the plan's grid of threads, the order of the rows, the scratch that a group of threads
// shares, and the walk of one layer and direction through time.
#pragma once

#include <algorithm>
#include <new>
#include <tuple>
#include <utility>

#include "gatedrnn/network.h"
#include "gatedrnn/row_order.h"
#include "gatedrnn/threads.h"

namespace gatedrnn {

// How long a team may be waited for: sleeping threads come in some 30 microseconds, on a busy machine later; more is given to
// calls that take longer.
inline double patience(const Plan& plan) {
  constexpr double cycles_per_microsecond = 3000;
  return 60 + 0.1 * plan.cycles / cycles_per_microsecond;
}

// Rows of features somewhere in memory, addressed by (time step, rank).
template <class T>
struct Rows {
  T* data = nullptr;
  Index step_stride = 0, row_stride = 0;
  const Index* order = nullptr;  // where memory has the caller's order: the row of each rank

  Index offset(Index step, Index rank) const { return step * step_stride + (order ? order[rank] : rank) * row_stride; }
  T* at(Index step, Index rank) const { return data + offset(step, rank); }

  // Side by side, their pairs in that order.
  static Rows dense(T* data, PairOrder pairs, Index width) {
    return {data, pairs.step_stride * width, pairs.rank_stride * width, nullptr};
  }
};

// What the threads that work on the same rows and direction share: the scratch of one layer at a time.
template <class T>
struct Group {
  // h[t-1] and h[t], in turns: [rows][state_stride]. Replaying, h[0] has every h[t-1] of a block of steps.
  T* h[2] = {};
  T* c = nullptr;
  T* reset_h = nullptr;
  T* update = nullptr;
  T* unprojected = nullptr;
  T* gates[2] = {};  // per stage: [panel][block pair][slots]
  // Backward: the gradient of h that does not come through a product, that of c, and products in the making.
  T* carry = nullptr;
  T* d_c = nullptr;
  T* products = nullptr;
  T* d_a[2] = {};  // those of pre-activations, in turns, where the block's are written past the caches
  Barrier barrier;
};

template <class T>
class Run {
 protected:
  Run(const Network<T>& network, const Plan& plan, Index batch, RowOrder order)
      : network_(network), spec_(network.spec()), plan_(plan), batch_(batch), order_(order) {}

  // One thread's place in the plan's grid, for one layer and direction.
  struct Share {
    int thread, unit_group, row_group;
    Group<T>& group;
    Index layer, direction;
    int part = 0, parts = 1;  // of what backward merges
  };

  // What a step of a layer and direction reads and writes.
  struct Passage {
    Rows<const T> in;
    Rows<T> out;        // no data: the output is not wanted
    T* kept = nullptr;  // [(step - first, rank)][kept_width], or null
    Index first = 0, kept_width = 0;
    PairOrder pairs = {};  // of `kept`
    Write out_write = Write::near, kept_write = Write::near;
  };

  // Overlapping layers have scratch of their own, as each waits in the middle for its turn.
  int group_count() const {
    const Index layers = plan_.layer_groups > 1 ? spec_.num_layers : 1;
    return static_cast<int>(layers) * plan_.direction_groups * plan_.row_groups;
  }
  Group<T>& group_of(int thread) const { return groups_[thread / plan_.unit_groups]; }
  int unit_group_of(int thread) const { return thread % plan_.unit_groups; }
  int row_group_of(int thread) const { return thread / plan_.unit_groups % plan_.row_groups; }
  int direction_group_of(int thread) const { return thread / plan_.unit_groups / plan_.row_groups; }
  int layer_group_of(int thread) const { return direction_group_of(thread); }  // there are never several of both

  Index most_rows() const { return ceil_div(batch_, plan_.row_groups); }

  // The groups, and in each of them the scratch for going forward, if at all. Measures when the arena has no block, carves
  // when it has one. `more` takes what else a group needs.
  enum class Forward { no, walk, replay };
  template <class More>
  void carve_groups(Arena& arena, Forward forward, More&& more) {
    const Index state = most_rows() * network_.state_stride();
    const Index operand = forward == Forward::replay ? plan_.block_pairs * network_.state_stride() : state;
    groups_ = arena.take<Group<T>>(group_count());
    inputs_at_ = arena.take<Index>(plan_.block_pairs * plan_.threads());
    outputs_ = arena.take<T*>(plan_.block_pairs * plan_.threads());
    for (int g = 0; g < group_count(); ++g) {
      Group<T> measured;
      Group<T>& group = groups_ ? *new (groups_ + g) Group<T> : measured;
      group.barrier.reset(plan_.unit_groups);
      more(group);
      if (forward == Forward::no) continue;
      group.h[0] = arena.take<T>(operand);
      group.h[1] = arena.take<T>(state);
      if (is_lstm(spec_.cell)) group.c = arena.take<T>(state);
      if (spec_.proj_size > 0) group.unprojected = arena.take<T>(state);
      if (spec_.cell == Cell::gru_reset_before) {
        group.reset_h = arena.take<T>(operand);
        group.update = arena.take<T>(operand);
      }
      const auto& stages = network_.layer(0, 0).stages;
      for (std::size_t s = 0; s < stages.size(); ++s)
        group.gates[s] = arena.take<T>(stages[s].panels * gates_panel_stride(stages[s]));
    }
  }

  Index row_count(const Share& share) const { return ceil_div(batch_ - share.row_group, plan_.row_groups); }
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
    if (plan_.unit_groups == 1) return {0, count};  // two divisions matter to the smallest steps
    return {count * share.unit_group / plan_.unit_groups, count * (share.unit_group + 1) / plan_.unit_groups};
  }

  // Goes through the steps begin .. end, the state before them being in the group's h[turn] and c. `after(step, h, next,
  // rows)` is called when a step is done: its h, the rows that run in the next one, and those that ran in this.
  template <class After>
  void walk(const Share& share, const Passage& passage, Index begin, Index end, int turn, After&& after) const {
    const Group<T>& group = share.group;
    for_each_block(share, passage, begin, end, turn, [&](const StepBlock& block) {
      Index at = 0, rows = block.rows;
      for (Index step = block.begin; step < block.end; ++step) {
        const Operands operands{group.h[turn], group.h[1 - turn], group.reset_h, group.update};
        for (const PackedStage<T>& stage : stages(share)) {
          run_stage(stage, step_args(share, passage, stage, step, rows, at, operands, block.y, turn), passage);
          meet(share);
        }
        turn ^= 1;
        const Index next = running(share, step + 1, rows);
        after(step, group.h[turn], next, rows);
        at += rows;
        rows = next;
      }
      return turn;
    });
  }

  // The same with outputs that are known, for what the steps keep: `h_before(step, row)` is a row of h[t-1]. The recurrent
  // products of a block's steps become one, which is as fast for a single row as for many. c before the first step is the
  // group's.
  template <class HBefore>
  void replay(const Share& share, const Passage& passage, Index begin, Index end, HBefore&& h_before) const {
    const Group<T>& group = share.group;
    const Index stride = network_.state_stride();
    for_each_block(share, passage, begin, end, 0, [&](const StepBlock& block) {
      for_each_step(share, block, [&](Index step, Index rows, Index at) {
        for (Index i = share.unit_group; i < rows; i += plan_.unit_groups)
          std::copy_n(h_before(step, i), spec_.state_size(), group.h[0] + (at + i) * stride);
      });
      meet(share);
      for (const PackedStage<T>& stage : stages(share)) {
        if (stage.stage == Stage::linear) break;  // whose result is h
        const Operands all{group.h[0], group.h[1], group.reset_h, group.update};
        StepArgs<T> product = step_args(share, passage, stage, block.begin, block.pairs, 0, all, nullptr, 0);
        product.product_only = true;
        run_stage(stage, product, passage);
        for_each_step(share, block, [&](Index step, Index rows, Index at) {
          const auto from = [&](T* array) { return array ? array + at * stride : nullptr; };
          const Operands own{from(group.h[0]), group.h[1], from(group.reset_h), from(group.update)};
          StepArgs<T> cell = step_args(share, passage, stage, step, rows, at, own, nullptr, 0);
          cell.depth = 0;
          run_stage(stage, cell, passage);
        });
        meet(share);
      }
      return 0;
    });
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

  // Zeros past a row's length, in an array of so many values. One that exceeds the second-level cache would not be there anyway.
  void pad(T* to, Index count, Index array) const {
    if (array * static_cast<Index>(sizeof(T)) > network_.core().l2)
      stream_zeros(to, count * static_cast<Index>(sizeof(T)));
    else
      std::fill_n(to, count, T(0));
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
  Index* inputs_at_ = nullptr;  // [thread][block pair]: where each pair's inputs begin
  T** outputs_ = nullptr;       // [thread][block pair]: each pair's output
  Group<T>* groups_ = nullptr;
  mutable Barrier everyone_;

 private:
  Index gates_panel_stride(const PackedStage<T>& stage) const {
    return odd_lines<T>(plan_.block_pairs * stage.slots_size());
  }

  const std::vector<PackedStage<T>>& stages(const Share& share) const {
    return network_.layer(share.layer, share.direction).stages;
  }

  // Steps whose (step, row) pairs fit into the gates buffers; `rows` run in the first.
  struct StepBlock {
    Index begin, end, rows, pairs;
    T* const* y;  // of each pair, or null
  };

  // Visits the steps begin .. end in blocks, their inputs projected. `visit` returns the turn.
  template <class Visit>
  void for_each_block(const Share& share, const Passage& passage, Index begin, Index end, int turn,
                      Visit&& visit) const {
    Index* x_at = inputs_at_ + plan_.block_pairs * share.thread;
    T** y = outputs_ + plan_.block_pairs * share.thread;
    const Index column = share.direction * spec_.state_size();
    Index rows = running(share, begin, row_count(share));
    while (begin < end && rows > 0) {
      StepBlock block{begin, begin, rows, 0, passage.out.data ? y : nullptr};
      for (; block.end < end && rows > 0 && block.pairs + rows <= plan_.block_pairs; ++block.end) {
        for (Index i = 0; i < rows; ++i, ++block.pairs) {
          const Index t = time(share, block.end, i);
          x_at[block.pairs] = passage.in.offset(t, rank(share, i));
          if (block.y) y[block.pairs] = passage.out.at(t, rank(share, i)) + column;
        }
        rows = running(share, block.end + 1, rows);
      }
      project(share, passage.in.data, x_at, block.pairs, turn);
      meet(share);  // in place: all inputs of the block are read
      turn = visit(block);
      begin = block.end;
    }
  }

  // `visit(step, rows that run in it, its first pair)`
  template <class Visit>
  void for_each_step(const Share& share, const StepBlock& block, Visit&& visit) const {
    Index at = 0, rows = block.rows;
    for (Index step = block.begin; step < block.end; ++step, at += rows) {
      rows = running(share, step, rows);
      visit(step, rows, at);
    }
  }

  void project(const Share& share, const T* x, const Index* x_at, Index rows, int turn) const {
    for (const PackedStage<T>& stage : stages(share)) {
      if (stage.stage == Stage::linear) continue;
      const auto [first, last] = panels(share, stage.panels);
      network_.kernels().project[static_cast<int>(stage.stage)](
          {&network_.core(), x, x_at, rows, stage.input_depth, first, last, turn == 1, stage.input.data(),
           stage.bias.data(), gates(share, stage), gates_panel_stride(stage)});
    }
  }

  T* gates(const Share& share, const PackedStage<T>& stage) const {
    return share.group.gates[&stage - stages(share).data()];
  }

  // What a stage works on, from its first row on.
  struct Operands {
    T *h, *h_next, *reset_h, *update;
  };

  // For the rows of a step whose gates start at block pair `at`.
  StepArgs<T> step_args(const Share& share, const Passage& passage, const PackedStage<T>& stage, Index step, Index rows,
                        Index at, const Operands& operands, T* const* y, int turn) const {
    const Group<T>& group = share.group;
    const bool last_stage = &stage == &stages(share).back();
    StepArgs<T> args;
    args.core = &network_.core();
    args.rows = rows;
    args.depth = stage.recurrent_depth;
    args.units = stage.units;
    std::tie(args.first_panel, args.last_panel) = panels(share, stage.panels);
    args.product_only = false;
    args.panels_reversed = turn == 1;  // what the last step left in the cache comes first in this one
    args.weights = stage.recurrent.data();
    args.bias = stage.bias.data();
    args.gates = gates(share, stage) + at * stage.slots_size();
    args.gates_panel_stride = gates_panel_stride(stage);
    args.state_stride = network_.state_stride();
    args.operand = stage.stage == Stage::gru_before_candidate ? operands.reset_h
                   : stage.stage == Stage::linear             ? group.unprojected
                                                              : operands.h;
    args.h = operands.h;
    args.h_next = last_stage ? operands.h_next : group.unprojected;
    args.c = group.c;
    args.reset_h = operands.reset_h;
    args.update = operands.update;
    args.peephole = stage.peephole.data();
    args.y = last_stage && y ? y + at : nullptr;
    args.y_write = passage.out_write;
    args.kept_write = passage.kept_write;
    args.kept_stride = plan_.row_groups * passage.pairs.rank_stride * passage.kept_width;
    args.kept_slots = kept_slots(spec_.cell);
    args.kept = passage.kept
                    ? passage.kept + passage.pairs.at(step - passage.first, share.row_group) * passage.kept_width
                    : nullptr;
    return args;
  }

  void run_stage(const PackedStage<T>& stage, const StepArgs<T>& args, const Passage& passage) const {
    const auto& kernels = passage.kept ? network_.kernels().step_keeping : network_.kernels().step;
    kernels[static_cast<int>(stage.stage)](args);
  }
};

}  // namespace gatedrnn
