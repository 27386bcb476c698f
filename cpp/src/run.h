// What every call in flight has in common: the plan's groups of threads, the order of the rows, the scratch of those who work on the
// same rows, the walk of one layer and direction through time, and when a call ends early.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <tuple>
#include <utility>

#include "gatedrnn/flush_denormals.h"
#include "gatedrnn/network.h"
#include "gatedrnn/row_order.h"
#include "gatedrnn/streaming_stores.h"
#include "gatedrnn/threads.h"

// What a thread alone does in each step of small networks, where a call that is not inlined is seen.
#define GATEDRNN_INLINE __attribute__((always_inline))

namespace gatedrnn {

// How long others are waited for: sleeping threads come in some 30 microseconds, on a busy machine later; more is given to calls that
// take longer.
inline std::chrono::duration<double, std::micro> patience(const Plan& plan) {
  constexpr double cycles_per_microsecond = 3000;
  return std::chrono::duration<double, std::micro>(60 + 0.1 * plan.cycles / cycles_per_microsecond);
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

// What those who work on the same rows and direction share: the scratch of one layer at a time.
template <class T>
struct Group {
  // h[t-1] and h[t], in turns: [rows][state_stride]. Replaying, h[0] has every h[t-1] of a block of steps.
  T* h[2] = {};
  T* c = nullptr;
  T* second_operand = nullptr;
  T* carried = nullptr;
  T* unprojected = nullptr;
  T* gates[2] = {};  // per stage: [panel][block pair][slots]
  // Backward: the gradient of h that does not come through a product, that of c, and products in the making.
  T* carry = nullptr;
  T* d_c = nullptr;
  T* products = nullptr;
  T* d_a[2] = {};  // those of pre-activations, in turns, where the block's are written past the caches
  // Backward, from block to block: the gradients of the pre-activations of the step after.
  const T* next = nullptr;
  Index next_stride = 0;
};

template <class T>
class Run {
 protected:
  Run(const Network<T>& network, const Plan& plan, Index batch, RowOrder order, const Poll& poll)
      : network_(network),
        spec_(network.spec()),
        cell_(spec_.description()),
        plan_(plan),
        batch_(batch),
        order_(order),
        poll_(poll) {}

  struct Track {
    Index layer, direction;
  };

  // What a thread works on: some of the rows, in one layer and direction.
  struct Share : Track {
    Member& member;
    int row_group;
    Group<T>& group;
  };

  // What a step of a layer and direction reads and writes.
  struct Passage {
    Rows<const T> in;
    Rows<T> out;        // no data: the output is not wanted
    T* kept = nullptr;  // [(step - first, rank)][kept_width], or null
    Index first = 0, kept_width = 0;
    PairOrder pairs = {};  // of `kept`
    Write out_write = Write::near, kept_write = Write::near;
    bool streams() const { return out_write == Write::streamed || kept_write == Write::streamed; }
  };

  // Runs `work(this, member)` on the plan's threads; false where run_team is.
  template <class Work>
  bool run_on_team(Patience::Late late, Work* self) {
    if (plan_.threads() == 1) {
      Member alone;
      self->work(alone);
      return true;
    }
    const auto work = [](void* run, Member& member) { static_cast<Work*>(run)->work(member); };
    return run_team(plan_.threads(), {late, patience(plan_)}, work, self);
  }

  // work(part) for each of the parts of a group's units.
  template <class Work>
  void for_units(const Share& share, Work&& work) const {
    if (plan_.unit_groups > 1)
      share.member.phase(work);
    else
      work(0);
  }
  // work(group) for each of the groups that go through the steps by themselves: all threads together, or one of them.
  template <class Work>
  void for_groups(Member& member, Work&& work) const {
    if (plan_.unit_groups > 1) return work(0);
    member.phase([&](int part) {
      if (part < plan_.grid()) work(part);
    });
  }

  // Overlapping layers have scratch of their own, as each waits in the middle for its turn.
  int group_count() const {
    const Index layers = plan_.layer_groups > 1 ? spec_.num_layers : 1;
    return static_cast<int>(layers) * plan_.direction_groups * plan_.row_groups;
  }
  int row_group_of(int group) const { return group % plan_.row_groups; }
  int direction_group_of(int group) const { return group / plan_.row_groups; }

  bool has_c() const { return cell_.has_c; }
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
      more(group);
      if (forward == Forward::no) continue;
      group.h[0] = arena.take<T>(operand);
      group.h[1] = arena.take<T>(state);
      if (has_c()) group.c = arena.take<T>(state);
      if (spec_.proj_size > 0) group.unprojected = arena.take<T>(state);
      if (cell_.two_stages()) {
        group.second_operand = arena.take<T>(operand);
        group.carried = arena.take<T>(operand);
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

  Index track(const Track& track) const { return track.layer * spec_.directions + track.direction; }
  Index time(const Share& share, Index step, Index i) const {
    return share.direction == 0 ? step : length(share, i) - 1 - step;
  }

  // A part of that many panels.
  std::pair<Index, Index> panels(int part, Index count) const {
    if (plan_.unit_groups == 1) return {0, count};  // two divisions matter to the smallest steps
    return {count * part / plan_.unit_groups, count * (part + 1) / plan_.unit_groups};
  }

  // After so many multiply-adds of a thread's own: ends the call where it has to end. The caller asks its poll now and then.
  void look_up(Member& member, double work) const {
    constexpr double seldom = 2e7;  // well below the time between two polls, also where weights come from memory
    member.unseen_work += work;
    if (member.unseen_work < seldom) return;
    member.unseen_work = 0;
    if (ended_.load(std::memory_order_relaxed)) throw LeftTeam();
    if (member.is_caller()) poll();
  }

  // Goes through the steps begin .. end, the state before them being in the group's h[turn] and c. `after(part of the units, step,
  // h, next, rows)` is called for each part when a step is done: its h, the rows that run in the next one, and those that ran in
  // this.
  template <class After>
  void walk(const Share& share, const Passage& passage, Index begin, Index end, int turn, After&& after) const {
    const Group<T>& group = share.group;
    for_each_block(share, passage, begin, end, turn, [&](const StepBlock& block) {
      Index at = 0, rows = block.rows;
      const bool long_steps = static_cast<double>(rows) * step_work_ > kLongStep;
      for (Index step = block.begin; step < block.end; ++step) {
        const Operands operands{group.h[turn], group.h[1 - turn], group.second_operand, group.carried};
        const Index next = running(share, step + 1, rows);
        for (const PackedStage<T>& stage : stages(share)) {
          StepArgs<T> args = step_args(share, passage, stage, step, rows, at, operands, block.y, turn);
          const bool last = &stage == &stages(share).back();
          for_units(share, [&](int part) GATEDRNN_INLINE {
            run_stage(stage, part, args, passage);
            if (last) after(part, step, args.h_next, next, rows);
            if (plan_.unit_groups > 1 && passage.streams()) publish_streamed();
          });
        }
        if (long_steps) look_up(share.member, static_cast<double>(rows) * step_work_);
        turn ^= 1;
        at += rows;
        rows = next;
      }
      if (!long_steps) look_up(share.member, static_cast<double>(block.pairs) * step_work_);
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
      for_units(share, [&](int part) {
        for_each_step(share, block, [&](Index step, Index rows, Index at) {
          for (Index i = part; i < rows; i += plan_.unit_groups)
            std::copy_n(h_before(step, i), spec_.state_size(), group.h[0] + (at + i) * stride);
        });
      });
      for (const PackedStage<T>& stage : stages(share)) {
        if (stage.stage == kLinear) break;  // whose result is h
        for_units(share, [&](int part) { replay_stage(share, passage, block, stage, part); });
      }
      look_up(share.member, static_cast<double>(block.pairs) * step_work_);
      return 0;
    });
  }

  // Row i's place in an array of states [track][row][width] in the caller's order.
  Index state_at(const Share& share, Index i, Index width) const {
    return (track(share) * batch_ + order_.row(rank(share, i))) * width;
  }

  // A part of the units, of the rows begin .. end of scratch, to each row's place.
  template <class RowAt>
  void store_units(int part, const PackedStage<T>& stage, const T* from, Index begin, Index end, RowAt&& row_at) const {
    const auto [first, last] = panels(part, stage.panels);
    const Index unit = first * stage.units_per_panel();
    const Index count = std::min(last * stage.units_per_panel(), stage.units) - unit;
    for (Index i = begin; i < end; ++i) std::copy_n(from + i * network_.state_stride() + unit, count, row_at(i) + unit);
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
  const CellDescription& cell_;
  const Plan plan_;
  const Index batch_;
  RowOrder order_;
  Index* inputs_at_ = nullptr;  // [thread][block pair]: where each pair's inputs begin
  T** outputs_ = nullptr;       // [thread][block pair]: each pair's output
  Group<T>* groups_ = nullptr;

  // Multiply-adds of a row's step.
  double step_work() const { return step_work_; }

 private:
  // An exception of the poll's ends the call for all threads.
  void poll() const {
    constexpr auto between_polls = std::chrono::milliseconds(100);  // a poll may have to wait for others
    if (!poll_.function) return;
    const auto now = std::chrono::steady_clock::now();
    const bool first = polled_at_ == std::chrono::steady_clock::time_point();
    if (!first && now - polled_at_ < between_polls) return;
    polled_at_ = now;
    if (first) return;
    try {
      poll_.function(poll_.context);
    } catch (...) {
      ended_.store(true, std::memory_order_relaxed);
      throw;
    }
  }

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

  // Visits the steps begin .. end in blocks, their inputs multiplied. `visit` returns the turn.
  template <class Visit>
  void for_each_block(const Share& share, const Passage& passage, Index begin, Index end, int turn,
                      Visit&& visit) const {
    Index* x_at = inputs_at_ + plan_.block_pairs * share.member.thread();
    T** y = outputs_ + plan_.block_pairs * share.member.thread();
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
      // In place: all inputs of the block are read before its outputs are written.
      for_units(share, [&](int part)
                           GATEDRNN_INLINE { multiply_inputs(share, part, passage.in.data, x_at, block.pairs, turn); });
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

  void multiply_inputs(const Share& share, int part, const T* x, const Index* x_at, Index rows, int turn) const {
    for (const PackedStage<T>& stage : stages(share)) {
      if (stage.stage == kLinear) continue;
      const auto [first, last] = panels(part, stage.panels);
      network_.kernels().input_gemm(
          spec_.cell, stage.stage,
          {&network_.core(), x, x_at, rows, stage.input.depth, first, last, turn == 1, stage.input.data(),
           stage.bias.data(), gates(share, stage), gates_panel_stride(stage)});
    }
  }

  void replay_stage(const Share& share, const Passage& passage, const StepBlock& block, const PackedStage<T>& stage,
                    int part) const {
    const Group<T>& group = share.group;
    const Operands all{group.h[0], group.h[1], group.second_operand, group.carried};
    StepArgs<T> product = step_args(share, passage, stage, block.begin, block.pairs, 0, all, nullptr, 0);
    product.product_only = true;
    run_stage(stage, part, product, passage);
    for_each_step(share, block, [&](Index step, Index rows, Index at) {
      const auto from = [&](T* array) { return array ? array + at * network_.state_stride() : nullptr; };
      const Operands own{from(group.h[0]), group.h[1], from(group.second_operand), from(group.carried)};
      StepArgs<T> cell = step_args(share, passage, stage, step, rows, at, own, nullptr, 0);
      cell.depth = 0;
      run_stage(stage, part, cell, passage);
    });
  }

  T* gates(const Share& share, const PackedStage<T>& stage) const {
    return share.group.gates[&stage - stages(share).data()];
  }

  // What a stage works on, from its first row on.
  struct Operands {
    T *h, *h_next, *second, *carried;
  };

  // For the rows of a step whose gates start at block pair `at`; without the panels.
  StepArgs<T> step_args(const Share& share, const Passage& passage, const PackedStage<T>& stage, Index step, Index rows,
                        Index at, const Operands& operands, T* const* y, int turn) const {
    const Group<T>& group = share.group;
    const bool last_stage = &stage == &stages(share).back();
    StepArgs<T> args;
    args.core = &network_.core();
    args.rows = rows;
    args.depth = stage.recurrent.depth;
    args.units = stage.units;
    args.product_only = false;
    args.panels_reversed = turn == 1;  // what the last step left in the cache comes first in this one
    args.weights = stage.recurrent.data();
    args.bias = stage.bias.data();
    args.gates = gates(share, stage) + at * stage.slots_size();
    args.gates_panel_stride = gates_panel_stride(stage);
    args.state_stride = network_.state_stride();
    args.operand = stage.stage == kLinear ? group.unprojected : stage.stage == 1 ? operands.second : operands.h;
    args.h = operands.h;
    args.h_next = last_stage ? operands.h_next : group.unprojected;
    args.c = group.c;
    args.second_operand = operands.second;
    args.carried = operands.carried;
    args.peephole = stage.peephole.data();
    args.y = last_stage && y ? y + at : nullptr;
    args.y_write = passage.out_write;
    args.kept_write = passage.kept_write;
    args.kept_stride = plan_.row_groups * passage.pairs.rank_stride * passage.kept_width;
    args.kept_slots = cell_.kept;
    args.kept = passage.kept
                    ? passage.kept + passage.pairs.at(step - passage.first, share.row_group) * passage.kept_width
                    : nullptr;
    return args;
  }

  void run_stage(const PackedStage<T>& stage, int part, StepArgs<T>& args, const Passage& passage) const {
    std::tie(args.first_panel, args.last_panel) = panels(part, stage.panels);
    const auto& kernels = passage.kept ? network_.kernels().step_keeping : network_.kernels().step;
    kernels(spec_.cell, stage.stage, args);
  }

  static constexpr double kLongStep = 1e6;  // multiply-adds: to look up costs nothing beside them

  const Poll& poll_;
  const double step_work_ = static_cast<double>(cell_.gates * spec_.hidden_size) *
                            static_cast<double>(std::max(spec_.input_size, spec_.output_size()) + spec_.state_size());
  mutable std::chrono::steady_clock::time_point polled_at_;
  mutable std::atomic<bool> ended_{false};
};

}  // namespace gatedrnn
