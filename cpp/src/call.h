// What every part of a call in flight knows: the network, the plan's groups of threads, which rows are whose, and when
// the call ends early.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

#include "gatedrnn/network.h"
#include "gatedrnn/streaming_stores.h"
#include "gatedrnn/threads.h"
#include "rows.h"

// What a thread alone does for every row or step of small networks, where a call that is not inlined is seen.
#define GATEDRNN_INLINE __attribute__((always_inline))

namespace gatedrnn {

struct Track {
  Index layer, direction;
};

// What a thread works on: some of the rows, in one layer and direction.
struct Share {
  Track track;
  Member& member;
  int group;       // that the thread belongs to, which has scratch of its own
  Index first;     // the rank of the first row
  int row_groups;  // who take the rows in turns
  Index rows;

  Index rank(Index i) const { return first + i * row_groups; }
};

// A part of `count` things.
inline std::pair<Index, Index> part_of(Index count, int part, int parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

template <class T>
class Call {
 public:
  Call(const Network<T>& network, const Plan& plan, Index batch, RowOrder order, const Poll& poll)
      : network(network),
        spec(network.spec()),
        cell(spec.description()),
        plan(plan),
        batch(batch),
        order(order),
        poll_(poll) {}

  const Network<T>& network;
  const Spec& spec;
  const CellDescription& cell;
  const Plan plan;
  const Index batch;
  RowOrder order;

  const Kernels<T>& kernels() const { return network.kernels(); }
  int lanes() const { return kernels().lanes(); }
  Index widest_input() const { return std::max(spec.input_size, spec.output_size()); }
  Index index_of(const Track& track) const { return track.layer * spec.directions + track.direction; }
  const std::vector<PackedStage<T>>& stages(const Track& track) const {
    return network.layer(track.layer, track.direction).stages;
  }
  const PackedBackLayer<T>& back_layer(const Track& track) const {
    return network.back_layer(track.layer, track.direction);
  }
  // Multiply-adds of a row's step.
  double step_work() const { return step_work_; }

  // ---- The grid of threads -----------------------------------------------------------------------------------------------
  // Runs `work(member)` of a part of the call on the plan's threads; false where run_team is.
  template <class Part>
  bool run_on_team(Patience::Late late, Part* part) const {
    if (plan.threads() == 1) {
      Member alone;
      part->work(alone);
      return true;
    }
    // Sleeping threads come in some 30 microseconds, on a busy machine later; more is given to calls that take longer.
    constexpr double cycles_per_microsecond = 3000;
    const std::chrono::duration<double, std::micro> patience(60 + 0.1 * plan.cycles / cycles_per_microsecond);
    const auto work = [](void* part, Member& member) { static_cast<Part*>(part)->work(member); };
    return run_team(plan.threads(), {late, patience}, work, part);
  }

  // work(part) for each of the parts of a group's units.
  template <class Work>
  void for_units(const Share& share, Work&& work) const {
    if (plan.unit_groups > 1)
      share.member.phase(work);
    else
      work(0);
  }
  // work() by one of those who share the units.
  template <class Work>
  void once(const Share& share, Work&& work) const {
    for_units(share, [&](int part) {
      if (part == 0) work();
    });
  }
  // work(group) for each of the groups that go through the steps by themselves: all threads together, or one of them.
  template <class Work>
  void for_groups(Member& member, Work&& work) const {
    if (plan.unit_groups > 1) return work(0);
    member.phase([&](int part) {
      if (part < plan.grid()) work(part);
    });
  }

  bool overlapping() const { return plan.layer_groups > 1; }
  // Overlapping layers have scratch of their own, as each waits in the middle for its turn.
  int group_count() const {
    const Index layers = overlapping() ? spec.num_layers : 1;
    return static_cast<int>(layers) * plan.direction_groups * plan.row_groups;
  }
  Share share(Member& member, int group, const Track& track) const {
    const int row_group = group % plan.row_groups;
    return {track, member, group, row_group, plan.row_groups, ceil_div(batch - row_group, plan.row_groups)};
  }
  int direction_group_of(int group) const { return group / plan.row_groups; }

  // A part of that many panels.
  std::pair<Index, Index> panels(int part, Index count) const {
    if (plan.unit_groups == 1) return {0, count};  // two divisions matter to the smallest steps
    return part_of(count, part, plan.unit_groups);
  }

  // ---- Rows --------------------------------------------------------------------------------------------------------------
  Index most_rows() const { return ceil_div(batch, plan.row_groups); }
  // How many of the share's rows run in a step, given how many at most.
  Index running(const Share& share, Index step, Index most) const {
    if (most == 0 || order.length(share.rank(most - 1)) > step) return most;
    const Index ranks = std::max<Index>(0, running_ranks(step) - share.first);
    return std::min(most, ceil_div(ranks, share.row_groups));
  }
  // How many ranks run in a step.
  GATEDRNN_INLINE Index running_ranks(Index step) const {
    if (batch == 0 || order.length(batch - 1) > step) return batch;
    if (!order.lengths) return 0;
    const Index *lengths = order.lengths, *rows = order.rows;
    return std::partition_point(rows, rows + batch, [&](Index row) { return lengths[row] > step; }) - rows;
  }
  GATEDRNN_INLINE Index time(const Track& track, Index step, Index rank) const {
    return spec.backwards(track.direction) ? order.length(rank) - 1 - step : step;
  }
  // Steps and rows of the caller's arrays.
  Index callers_steps() const { return order.pieces ? order.pieces->steps : order.steps; }
  Index callers_batch() const { return order.pieces ? order.pieces->batch : batch; }
  // The number of a pair among the caller's (step, row).
  Index callers_pair(Index t, Index rank) const {
    const Index row = order.row(rank);
    if (!order.pieces) return t * batch + row;
    return order.pieces->time(row, t) * order.pieces->batch + order.pieces->row(row);
  }
  // An array of the caller's.
  template <class Value>
  Rows<Value> callers(Value* data, Index step, Index row) const {
    return {data, step, row, order.rows, order.pieces};
  }
  // An array of ours. Without a tape, whose pairs are compact, pieces have their places as in the caller's arrays: side by side they
  // would take as many steps as the longest of them, times their number.
  template <class Value>
  Rows<Value> dense(Value* data, const PairOrder& pairs, Index width) const {
    if (order.pieces && !pairs.begins) return callers(data, callers_batch() * width, width);
    return Rows<Value>::dense(data, pairs, width);
  }
  // An array of states [track][row][width] of the caller's, or null.
  template <class Value>
  Rows<Value> states(Value* data, const Track& track, Index width) const {
    return {data ? data + index_of(track) * batch * width : nullptr, 0, width, order.rows};
  }
  // Row i's place in it.
  Index state_at(const Share& share, Index i, Index width) const {
    return (index_of(share.track) * batch + order.row(share.rank(i))) * width;
  }

  // Zeros past a row's length, in an array of so many values. One that exceeds the second-level cache would not be there anyway.
  void pad(T* to, Index count, Index array) const {
    if (array * static_cast<Index>(sizeof(T)) > network.core().l2)
      stream_zeros(to, count * static_cast<Index>(sizeof(T)));
    else
      std::fill_n(to, count, T(0));
  }

  // ---- Its end -----------------------------------------------------------------------------------------------------------
  // After so many multiply-adds of a thread's own: ends the call where it has to end. The caller asks its poll now and then.
  void look_up(Member& member, double work) const {
    constexpr double seldom = 2e7;  // well below the time between two polls, also where weights come from memory
    member.unseen_work += work;
    if (member.unseen_work < seldom) return;
    member.unseen_work = 0;
    if (ended_.load(std::memory_order_relaxed)) throw LeftTeam();
    if (member.is_caller()) poll();
  }

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

  const Poll& poll_;
  const double step_work_ =
      static_cast<double>(cell.gates * spec.hidden_size) * static_cast<double>(widest_input() + spec.state_size());
  mutable std::chrono::steady_clock::time_point polled_at_;
  mutable std::atomic<bool> ended_{false};
};

}  // namespace gatedrnn
