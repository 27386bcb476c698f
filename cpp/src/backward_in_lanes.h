// Going backward with rows in lanes.
//
// Gradients of weights are sums over blocks of (step, row) pairs (sums.h). Each of these blocks lies within kBlockPairs successive
// ranks, so rows are shared out by so many: a thread goes back through its part of each block of pairs and sums it up while it is
// near. Where there are several threads, the sums wait until those of a group are complete, since they are added in their order.
#pragma once

#include "backward_places.h"
#include "call.h"
#include "gatedrnn/flush_denormals.h"
#include "gatedrnn/sums.h"
#include "lane_blocks.h"

namespace gatedrnn {

template <class T>
class BackwardInLanes {
 public:
  BackwardInLanes(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& caller, const Plan& plan)
      : tape_(tape),
        caller_(caller),
        call_(network, plan, tape.batch, tape.order(), caller.poll),
        places_(call_, tape, caller),
        lane_blocks_(call_.order, tape.batch, call_.lanes()) {}

  void carve(Arena& arena) {
    places_.carve(arena);
    const Index state = lane_blocks_.count() * vectors();
    carry_ = arena.take<T>(state);
    d_c_ = arena.take<T>(call_.cell.has_c ? state : 0);
    pairs_in_lanes_ = arena.take<T>(lane_blocks_.count() * pair_vectors());
    const Index threads = call_.plan.threads(), input = call_.widest_input();
    scratch_ = arena.take<T>(threads * scratch_size());
    // A vector more than the pairs, for what reads on after the last columns.
    pairs_ = arena.take<T>(threads * pairs_size());
    group_ = arena.take<T>(sums_size(input));
    waiting_ = arena.take<T>(threads > 1 ? kGroupBlocks * sums_size(input) : 0);
    lists_ = arena.take<PairBlock>(threads * kGroupBlocks);
  }

  // False where run_team is.
  bool start() { return call_.run_on_team(Patience::wait, this); }

  // A thread's part of the call.
  void work(Member& member) {
    const FlushDenormals flush;
    places_.go_through_layers(member, [&](const Track& track) { run_direction(member, track); });
  }

 private:
  // A block of pairs: where it begins, and how many.
  struct PairBlock {
    Index step, rank, pairs;
  };

  Index hidden() const { return call_.spec.hidden_size; }
  Index vectors() const { return hidden() * lane_blocks_.lanes(); }
  LanePair pair_of(Index layer) const { return {call_.spec, call_.spec.layer_input_size(layer)}; }
  Index pair_vectors() const { return pair_of(0).x * lane_blocks_.lanes(); }
  Index widest_pair() const { return std::max(pair_of(0).end, pair_of(call_.spec.num_layers - 1).end); }
  Index pairs_size() const { return kBlockPairs * widest_pair() + lane_blocks_.lanes() * kMostSlots + kLaneOperands; }
  Index scratch_size() const { return (2 * hidden() + call_.widest_input()) * lane_blocks_.lanes(); }
  Index sums_stride() const { return round_up(call_.cell.slots * hidden(), lane_blocks_.lanes()); }
  Index operands(Index layer) const { return pair_of(layer).end - pair_of(layer).h; }
  Index sums_size(Index input_size) const {
    const LanePair pair(call_.spec, input_size);
    return round_up(pair.end - pair.h, kLaneOperands) * sums_stride();
  }

  // ---- The walk ----------------------------------------------------------------------------------------------------------
  void run_direction(Member& member, const Track& track) {
    member.phase([&](int part) { load_state(part, track); });
    PairBlock* const group = lists_ + member.thread() * kGroupBlocks;
    PairBlock next{tape_.steps - 1, 0, 0};
    bool first = true;
    for (Index blocks; (blocks = list_group(next, group)) > 0 || first; first = false) {
      member.phase([&](int part) {
        if (call_.plan.threads() == 1) clear(group_, sums_size(call_.spec.layer_input_size(track.layer)));
        for (Index b = 0; b < blocks; ++b)
          if (owner(group[b].rank) == part) go_back(member, track, group[b], b);
      });
      member.phase([&](int part) {
        if (call_.plan.threads() > 1) add_waiting(part, track, blocks);
        deliver(part, track, first);
      });
    }
    member.phase([&](int part) { initial_state_gradients(member, part, track); });
  }

  int owner(Index rank) const { return static_cast<int>(rank / kBlockPairs % call_.plan.threads()); }
  // `visit(block)` for the blocks of rows that are a thread's.
  template <class Visit>
  void for_each_block(int part, Visit&& visit) const {
    for (Index block = 0; block < lane_blocks_.count(); ++block)
      if (owner(lane_blocks_.first(block)) == part) visit(block);
  }

  static void clear(T* sums, Index count) { std::fill_n(sums, count, T(0)); }

  // The next blocks of pairs, and where the one after them begins.
  Index list_group(PairBlock& next, PairBlock* blocks) const {
    Index count = 0;
    while (next.step >= 0 && count < kGroupBlocks) {
      const Index running = call_.running_ranks(next.step);
      if (running == 0) {
        --next.step;
        continue;
      }
      PairBlock block{next.step, next.rank, std::min(running - next.rank, kBlockPairs)};
      next.rank += block.pairs;
      if (next.rank == running) {
        next = {next.step - 1, 0, 0};
        for (Index more; running <= kBlockPairs && next.step >= 0; --next.step, block.pairs += more) {
          more = call_.running_ranks(next.step);
          if (block.pairs + more > kBlockPairs) break;
        }
      }
      blocks[count++] = block;
    }
    return count;
  }

  void load_state(int part, const Track& track) const {
    for_each_block(part, [&](Index block) {
      const auto load = [&](const T* from, T* to) {
        const Rows<const T> states = call_.states(from, track, hidden());
        lane_blocks_.load(call_.kernels(), states, block, hidden(), to + block * vectors());
      };
      load(caller_.d_h_n, carry_);
      if (call_.cell.has_c) load(caller_.d_c_n, d_c_);
    });
  }

  // ---- One block of pairs ------------------------------------------------------------------------------------------------
  void go_back(Member& member, const Track& track, const PairBlock& block, Index index) const {
    const LanePair pair = pair_of(track.layer);
    T* const pairs = pairs_ + member.thread() * pairs_size();
    Index step = block.step, first = block.rank;
    for (Index done = 0; done < block.pairs; --step) {
      const Index end = std::min(first + block.pairs - done, call_.running_ranks(step));
      for (; first < end; first += lane_blocks_.lanes()) {
        const Index rows = std::min<Index>(lane_blocks_.lanes(), end - first);
        take_step(member, track, step, first, rows, pairs + done * pair.end);
        done += rows;
      }
      first = 0;
    }
    const Index size = sums_size(call_.spec.layer_input_size(track.layer));
    T* const sums = call_.plan.threads() == 1 ? group_ : waiting_ + index * size;
    if (call_.plan.threads() > 1) clear(sums, size);
    call_.kernels().rows_in_lanes.transposed_gemm(
        {block.pairs, pair.h, operands(track.layer), pairs, pair.end, sums, sums_stride()});
    call_.look_up(member, static_cast<double>(block.pairs) * call_.step_work());
  }

  // Of the ranks first .. first + rows.
  void take_step(const Member& member, const Track& track, Index step, Index first, Index rows, T* pairs) const {
    const Index block = first / lane_blocks_.lanes(), running = lane_blocks_.running(first, rows, step + 1);
    Index x_at[kMostLanes], d_y_at[kMostLanes], d_x_at[kMostLanes];
    LaneBackArgs<T> args = arguments(member, track, block);
    args.rows = rows;
    args.running = running;
    const Index index = call_.index_of(track), values = call_.cell.kept * vectors();
    const T* kept = tape_.kept_in_lanes(index, block, step);
    const T* before = step > 0 ? tape_.kept_in_lanes(index, block, step - 1) : nullptr;
    args.kept = kept;
    args.next_kept = kept + values + vectors();
    args.h_after = kept + values;
    args.h_before = before ? before + values : tape_.h_0 + (index * lane_blocks_.count() + block) * vectors();
    if (call_.cell.has_c) args.c_before = before ? before + values - vectors() : tape_.c[index] + block * vectors();
    const auto place = [&](const auto& from, Index* at) {
      return lane_blocks_.place(from, call_.spec.backwards(track.direction), step, first, rows, at);
    };
    args.x = place(places_.input_of(track.layer), x_at);
    if (const auto d_output = places_.d_output_of(track.layer); d_output.data) {
      args.d_y = place(d_output, d_y_at);
      args.d_y.data += track.direction * hidden();
    }
    if (const auto d_input = places_.d_input_of(track.layer); d_input.data) args.d_x = place(d_input, d_x_at);
    args.pairs = pairs;
    call_.kernels().rows_in_lanes.back_step(call_.spec.cell, args);
  }

  LaneBackArgs<T> arguments(const Member& member, const Track& track, Index block) const {
    const PackedBackLayer<T>& layer = call_.back_layer(track);
    LaneBackArgs<T> args{};
    args.input_size = call_.spec.layer_input_size(track.layer);
    args.units = hidden();
    args.weights = layer.in_lanes.data();
    args.peepholes = layer.peepholes_in_lanes.data();
    args.add = track.direction > 0;
    args.d_a = pairs_in_lanes_ + block * pair_vectors();
    args.carry = carry_ + block * vectors();
    args.d_c = call_.cell.has_c ? d_c_ + block * vectors() : nullptr;
    args.scratch = scratch_ + member.thread() * scratch_size();
    args.options = &call_.network.options();
    return args;
  }

  // What reaches h[-1] and c[-1].
  void initial_state_gradients(const Member& member, int part, const Track& track) const {
    for_each_block(part, [&](Index block) {
      const Index first = lane_blocks_.first(block), rows = lane_blocks_.rows(block);
      LaneBackArgs<T> args = arguments(member, track, block);
      args.rows = rows;
      args.running = lane_blocks_.running(first, rows, 0);
      call_.kernels().rows_in_lanes.back_step(call_.spec.cell, args);
      const auto store = [&](const T* from, T* to) {
        lane_blocks_.store(call_.kernels(), from, hidden(), call_.states(to, track, hidden()), first, rows);
      };
      store(args.scratch, caller_.d_h_0);
      if (call_.cell.has_c) store(args.d_c, caller_.d_c_0);
    });
  }

  // ---- Gradients of weights ----------------------------------------------------------------------------------------------
  // Columns are shared out.
  std::pair<Index, Index> columns_of(int part) const {
    return part_of(call_.cell.slots * hidden(), part, call_.plan.threads());
  }

  void add_waiting(int part, const Track& track, Index blocks) const {
    const auto [begin, end] = columns_of(part);
    const Index count = operands(track.layer), size = sums_size(call_.spec.layer_input_size(track.layer));
    for (Index operand = 0; operand < count; ++operand) {
      T* const to = group_ + operand * sums_stride();
      std::fill(to + begin, to + end, T(0));
      for (Index b = 0; b < blocks; ++b) {
        const T* from = waiting_ + b * size + operand * sums_stride();
        for (Index column = begin; column < end; ++column) to[column] += from[column];
      }
    }
  }

  // A group's sums to the gradients.
  void deliver(int part, const Track& track, bool first) const {
    const LayerGradients<T>& to = caller_.gradients[call_.index_of(track)];
    const LanePair pair = pair_of(track.layer);
    const bool set = first && !caller_.accumulate;
    const Index H = hidden(), I = call_.spec.layer_input_size(track.layer);
    const auto [begin, end] = columns_of(part);
    for (Index column = begin; column < end; ++column) {
      const Index slot = column / H, unit = column % H, row = call_.cell.gate_of_slot[slot] * H + unit;
      const auto add = [&, column = column](T* gradients, Index operand, Index count) {
        const T* from = group_ + (operand - pair.h) * sums_stride() + column;
        for (Index k = 0; k < count; ++k, from += sums_stride()) gradients[k] = set ? *from : gradients[k] + *from;
      };
      const StageDescription& stage = call_.cell.stage_of_slot(static_cast<int>(slot));
      const int number = static_cast<int>(slot) - stage.first_slot;
      if (stage.has_input(number)) {
        add(to.weight_ih + row * I, pair.x, I);
        if (to.bias_ih) add(to.bias_ih + row, pair.one, 1);
      }
      if (stage.has_operand(number)) {
        add(to.weight_hh + row * H, stage.first_slot == 0 ? pair.h : pair.second, H);
        if (to.bias_hh) add(to.bias_hh + row, pair.one, 1);
      }
      for (int i = 0; i < call_.cell.peephole_count; ++i)
        if (call_.cell.peepholes[i].slot == slot)
          add(to.peephole[i] + unit, (call_.cell.peepholes[i].sees_next ? pair.c_after : pair.c_before) + unit, 1);
    }
  }

  const Tape<T>& tape_;
  const BackwardCall<T>& caller_;
  const Call<T> call_;
  BackwardPlaces<T> places_;
  const LaneBlocks lane_blocks_;
  T* carry_ = nullptr;           // [block][unit][lane]
  T* d_c_ = nullptr;             // the same
  T* pairs_in_lanes_ = nullptr;  // [block][values of a pair, without inputs][lane]
  T* scratch_ = nullptr;         // [thread]
  T* pairs_ = nullptr;           // [thread][pair of a block][values of a pair]
  T* group_ = nullptr;           // [operand][sums_stride]: sums of a group of blocks
  T* waiting_ = nullptr;         // [block of a group]: the same of one block, with several threads
  PairBlock* lists_ = nullptr;   // [thread][block of a group]
};

}  // namespace gatedrnn
