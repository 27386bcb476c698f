// The walk of one layer and direction through time, and the scratch of those who walk with the same rows.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "call.h"
#include "rounded_operands.h"
#include "rows.h"

namespace gatedrnn {

// What a step of a layer and direction reads and writes.
template <class T>
struct Passage {
  Rows<const T> in;
  Rows<T> out;        // no data: the output is not wanted
  T* kept = nullptr;  // [(step - first, rank)][kept_width], or null
  Index first = 0, kept_width = 0;
  PairOrder pairs = {};  // of `kept`
  Write out_write = Write::near, kept_write = Write::near;
  bool streams() const { return out_write == Write::streamed || kept_write == Write::streamed; }
};

template <class T>
class Walk {
 public:
  // What those who work on the same rows and direction share: the scratch of one layer at a time.
  struct Group {
    // h[t-1] and h[t], in turns: [rows][state_stride]. Replaying, h[0] has every h[t-1] of a block of steps.
    T* h[2] = {};
    T* c = nullptr;
    T* second_operand = nullptr;
    T* carried = nullptr;
    T* unprojected = nullptr;
    T* gates[2] = {};  // per stage: [panel][block pair][slots]
  };

  explicit Walk(const Call<T>& call) : call_(call), rounded_(call) {}

  enum class Way { forward, replay };
  void carve(Arena& arena, Way way) {
    const Spec& spec = call_.spec;
    const Index state = call_.most_rows() * call_.network.state_stride();
    const Index operand = way == Way::replay ? call_.plan.block_pairs * call_.network.state_stride() : state;
    inputs_at_ = arena.take<Index>(call_.plan.block_pairs * call_.plan.threads());
    outputs_ = arena.take<T*>(call_.plan.block_pairs * call_.plan.threads());
    rounded_.carve(arena, std::max(call_.plan.block_pairs, call_.most_rows()),
                   std::max(call_.widest_input(), spec.hidden_size));
    groups_ = arena.take_each<Group>(call_.group_count(), [&](Group& group) {
      group.h[0] = arena.take<T>(operand);
      group.h[1] = arena.take<T>(state);
      if (call_.cell.has_c) group.c = arena.take<T>(state);
      if (spec.proj_size > 0) group.unprojected = arena.take<T>(state);
      if (call_.cell.two_stages()) {
        group.second_operand = arena.take<T>(operand);
        group.carried = arena.take<T>(operand);
      }
      const auto& stages = call_.stages({0, 0});
      for (std::size_t s = 0; s < stages.size(); ++s)
        group.gates[s] = arena.take<T>(stages[s].panels * gates_panel_stride(stages[s]));
    });
  }

  const Group& group(const Share& share) const { return groups_[share.group]; }

  // Goes through the steps begin .. end, the state before them being in the group's h[turn] and c. `after(part of the units, step,
  // h, next, rows)` is called for each part when a step is done: its h, the rows that run in the next one, and those that ran in
  // this.
  template <class After>
  void walk(const Share& share, const Passage<T>& passage, Index begin, Index end, int turn, After&& after) const {
    const Group& group = this->group(share);
    for_each_block(share, passage, begin, end, turn, [&](const StepBlock& block) {
      Index at = 0, rows = block.rows;
      const bool long_steps = static_cast<double>(rows) * call_.step_work() > kLongStep;
      for (Index step = block.begin; step < block.end; ++step) {
        const Operands operands{group.h[turn], group.h[1 - turn], group.second_operand, group.carried};
        const Index next = call_.running(share, step + 1, rows);
        for (const PackedStage<T>& stage : call_.stages(share.track)) {
          StepArgs<T> args = step_args(share, passage, stage, step, rows, at, operands, block.y, turn);
          const bool last = &stage == &call_.stages(share.track).back();
          call_.for_units(share, [&](int part) GATEDRNN_INLINE {
            run_stage(stage, part, args, passage);
            if (last) after(part, step, args.h_next, next, rows);
            if (call_.plan.unit_groups > 1 && passage.streams()) publish_streamed();
          });
        }
        if (long_steps) call_.look_up(share.member, static_cast<double>(rows) * call_.step_work());
        turn ^= 1;
        at += rows;
        rows = next;
      }
      if (!long_steps) call_.look_up(share.member, static_cast<double>(block.pairs) * call_.step_work());
      return turn;
    });
  }

  // The same with outputs that are known, for what the steps keep: `h_before(step, row)` is a row of h[t-1]. The recurrent
  // products of a block's steps become one, which is as fast for a single row as for many. c before the first step is the
  // group's.
  template <class HBefore>
  void replay(const Share& share, const Passage<T>& passage, Index begin, Index end, HBefore&& h_before) const {
    const Group& group = this->group(share);
    const Index stride = call_.network.state_stride();
    for_each_block(share, passage, begin, end, 0, [&](const StepBlock& block) {
      call_.for_units(share, [&](int part) {
        for_each_step(share, block, [&](Index step, Index rows, Index at) {
          for (Index i = part; i < rows; i += call_.plan.unit_groups)
            std::copy_n(h_before(step, i), call_.spec.state_size(), group.h[0] + (at + i) * stride);
        });
      });
      for (const PackedStage<T>& stage : call_.stages(share.track)) {
        if (stage.stage == kLinear) break;  // whose result is h
        call_.for_units(share, [&](int part) { replay_stage(share, passage, block, stage, part); });
      }
      call_.look_up(share.member, static_cast<double>(block.pairs) * call_.step_work());
      return 0;
    });
  }

  // A part of the units, of the rows begin .. end of scratch, to each row's place.
  template <class RowAt>
  void store_units(int part, const PackedStage<T>& stage, const T* from, Index begin, Index end, RowAt&& row_at) const {
    const auto [first, last] = call_.panels(part, stage.panels);
    const Index unit = first * stage.units_per_panel();
    const Index count = std::min(last * stage.units_per_panel(), stage.units) - unit;
    for (Index i = begin; i < end; ++i)
      std::copy_n(from + i * call_.network.state_stride() + unit, count, row_at(i) + unit);
  }

 private:
  Index gates_panel_stride(const PackedStage<T>& stage) const {
    return odd_lines<T>(call_.plan.block_pairs * stage.slots_size());
  }

  // Steps whose (step, row) pairs fit into the gates buffers; `rows` run in the first.
  struct StepBlock {
    Index begin, end, rows, pairs;
    T* const* y;  // of each pair, or null
  };

  // Visits the steps begin .. end in blocks, their inputs multiplied. `visit` returns the turn.
  template <class Visit>
  void for_each_block(const Share& share, const Passage<T>& passage, Index begin, Index end, int turn,
                      Visit&& visit) const {
    Index* x_at = inputs_at_ + call_.plan.block_pairs * share.member.thread();
    T** y = outputs_ + call_.plan.block_pairs * share.member.thread();
    // Copies, which the lists cannot change: so the loop over pairs asks but once what they are.
    const Rows<const T> in = passage.in;
    const Rows<T> out = passage.out;
    const Track track = share.track;
    const Index column = track.direction * call_.spec.state_size();
    Index rows = call_.running(share, begin, share.rows);
    while (begin < end && rows > 0) {
      StepBlock block{begin, begin, rows, 0, passage.out.data ? y : nullptr};
      for (; block.end < end && rows > 0 && block.pairs + rows <= call_.plan.block_pairs; ++block.end) {
        for (Index i = 0; i < rows; ++i, ++block.pairs) {
          const Index rank = share.rank(i), t = call_.time(track, block.end, rank);
          x_at[block.pairs] = in.offset(t, rank);
          if (block.y) y[block.pairs] = out.at(t, rank) + column;
        }
        rows = call_.running(share, block.end + 1, rows);
      }
      // In place: all inputs of the block are read before its outputs are written.
      call_.for_units(share, [&](int part) GATEDRNN_INLINE {
        multiply_inputs(share, part, passage.in.data, x_at, block.pairs, turn);
      });
      turn = visit(block);
      begin = block.end;
    }
  }

  // `visit(step, rows that run in it, its first pair)`
  template <class Visit>
  void for_each_step(const Share& share, const StepBlock& block, Visit&& visit) const {
    Index at = 0, rows = block.rows;
    for (Index step = block.begin; step < block.end; ++step, at += rows) {
      rows = call_.running(share, step, rows);
      visit(step, rows, at);
    }
  }

  void multiply_inputs(const Share& share, int part, const T* x, const Index* x_at, Index rows, int turn) const {
    for (const PackedStage<T>& stage : call_.stages(share.track)) {
      if (stage.stage == kLinear) continue;
      const auto [first, last] = call_.panels(part, stage.panels);
      call_.network.input_kernels(share.track.layer)
          .input_gemm(
              call_.spec.cell, stage.stage,
              {&call_.network.core(), x, x_at, rounded_.of(share.member), rows, stage.input.depth, first, last,
               turn == 1, stage.input.data(), stage.bias.data(), gates(share, stage), gates_panel_stride(stage)});
    }
  }

  void replay_stage(const Share& share, const Passage<T>& passage, const StepBlock& block, const PackedStage<T>& stage,
                    int part) const {
    const Group& group = this->group(share);
    const Operands all{group.h[0], group.h[1], group.second_operand, group.carried};
    StepArgs<T> product = step_args(share, passage, stage, block.begin, block.pairs, 0, all, nullptr, 0);
    product.product_only = true;
    run_stage(stage, part, product, passage);
    for_each_step(share, block, [&](Index step, Index rows, Index at) {
      const auto from = [&](T* array) { return array ? array + at * call_.network.state_stride() : nullptr; };
      const Operands own{from(group.h[0]), group.h[1], from(group.second_operand), from(group.carried)};
      StepArgs<T> cell = step_args(share, passage, stage, step, rows, at, own, nullptr, 0);
      cell.depth = 0;
      run_stage(stage, part, cell, passage);
    });
  }

  T* gates(const Share& share, const PackedStage<T>& stage) const {
    return group(share).gates[&stage - call_.stages(share.track).data()];
  }

  // What a stage works on, from its first row on.
  struct Operands {
    T *h, *h_next, *second, *carried;
  };

  // For the rows of a step whose gates start at block pair `at`; without the panels.
  StepArgs<T> step_args(const Share& share, const Passage<T>& passage, const PackedStage<T>& stage, Index step,
                        Index rows, Index at, const Operands& operands, T* const* y, int turn) const {
    const Group& group = this->group(share);
    const bool last_stage = &stage == &call_.stages(share.track).back();
    StepArgs<T> args;
    args.core = &call_.network.core();
    args.rows = rows;
    args.depth = stage.recurrent.depth;
    args.units = stage.units;
    args.product_only = false;
    args.panels_reversed = turn == 1;  // what the last step left in the cache comes first in this one
    args.weights = stage.recurrent.data();
    args.bias = stage.bias.data();
    args.gates = gates(share, stage) + at * stage.slots_size();
    args.gates_panel_stride = gates_panel_stride(stage);
    args.state_stride = call_.network.state_stride();
    args.rounded = rounded_.of(share.member);
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
    args.kept_stride = call_.plan.row_groups * passage.pairs.rank_stride * passage.kept_width;
    args.kept_slots = call_.cell.kept;
    args.kept = passage.kept
                    ? passage.kept + (passage.pairs.at(step, share.first) - passage.pairs.at(passage.first, 0)) *
                                         passage.kept_width
                    : nullptr;
    args.options = &call_.network.options();
    args.norm = stage.norm.data();
    return args;
  }

  void run_stage(const PackedStage<T>& stage, int part, StepArgs<T>& args, const Passage<T>& passage) const {
    std::tie(args.first_panel, args.last_panel) = call_.panels(part, stage.panels);
    if (call_.cell.is_general() && stage.stage != kLinear) return run_general_stage(stage.stage, args, passage);
    const auto& kernels = passage.kept ? call_.kernels().step_keeping : call_.kernels().step;
    kernels(call_.spec.cell, stage.stage, args);
  }

  // Products, then the mathematics as a kernel of its own.
  void run_general_stage(int stage, StepArgs<T> args, const Passage<T>& passage) const {
    const Kernels<T>& kernels = call_.kernels();
    const bool product_only = std::exchange(args.product_only, true);
    if (args.depth > 0) (passage.kept ? kernels.step_keeping : kernels.step)(call_.spec.cell, stage, args);
    if (!product_only) (passage.kept ? kernels.cells_keeping : kernels.cells)(call_.spec.cell, stage, args);
  }

  static constexpr double kLongStep = 1e6;  // multiply-adds: to look up costs nothing beside them

  const Call<T>& call_;
  RoundedOperands<T> rounded_;
  Index* inputs_at_ = nullptr;  // [thread][block pair]: where each pair's inputs begin
  T** outputs_ = nullptr;       // [thread][block pair]: each pair's output
  Group* groups_ = nullptr;
};

}  // namespace gatedrnn
