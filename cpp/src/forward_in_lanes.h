// Going forward with rows in lanes: each block of rows goes through its steps by itself.
#pragma once

#include "call.h"
#include "gatedrnn/tape.h"
#include "lane_blocks.h"

namespace gatedrnn {

template <class T>
class ForwardInLanes {
 public:
  // `tape` may be null.
  ForwardInLanes(const Call<T>& call, const Sequence<T>& sequence, const Tape<T>* tape)
      : call_(call), sequence_(sequence), tape_(tape) {}

  void carve(Arena& arena) {
    const Spec& spec = call_.spec;
    const Index of_group = ceil_div(ceil_div(call_.batch, call_.lanes()), call_.plan.row_groups);
    const Index state = ((call_.overlapping() ? of_group : 1) * spec.hidden_size + 1) * call_.lanes();
    groups_ = arena.take_each<Group>(call_.group_count(), [&](Group& group) {
      group.h = arena.take<T>(state);
      group.c = arena.take<T>(call_.cell.has_c ? state : 0);
      group.scratch =
          arena.take<T>(lane_scratch(std::max(spec.input_size, spec.output_size()), spec.hidden_size) * call_.lanes());
    });
  }

  // Comes before `run`, when the rows have their order.
  void start() { blocks_ = LaneBlocks(call_.order, call_.batch, call_.lanes()); }

  // Some of a layer's steps.
  struct Passage {
    Rows<const T> in;
    Rows<T> out;
    Index begin, end;
    bool streams;  // what is kept goes past the caches
  };

  // The share takes blocks as it would take rows.
  void run(const Share& share, const Passage& passage) const {
    for (Index i = 0; share.rank(i) < blocks_.count(); ++i)
      run_block(share, passage, share.rank(i), call_.overlapping() ? i : 0);
  }

 private:
  // The states of a group's blocks where layers overlap, which leave them and come back, else of one.
  struct Group {
    T* h = nullptr;
    T* c = nullptr;
    T* scratch = nullptr;
  };

  static constexpr Index kMostListed = 16;

  Index hidden() const { return call_.spec.hidden_size; }
  Index vectors() const { return hidden() * blocks_.lanes(); }

  void run_block(const Share& share, const Passage& passage, Index block, Index place) const {
    const Group& group = groups_[share.group];
    const Index first = blocks_.first(block), all = blocks_.rows(block);
    T* const h = group.h + place * vectors();
    T* const c = call_.cell.has_c ? group.c + place * vectors() : nullptr;
    if (passage.begin == 0) load_state(share.track, block, h, c);
    const double work = static_cast<double>(blocks_.lanes()) * step_work(share.track);
    // So few that between two of them nobody waits long, or that their places are listed at a time.
    const Index most_steps = call_.order.pieces ? kMostListed : 1 + static_cast<Index>(1e6 / work);
    Index rows = blocks_.running(first, all, passage.begin);
    if (passage.begin == 0) store_state(share.track, first, rows, all, h, c);
    for (Index step = passage.begin; rows > 0 && step < passage.end;) {
      const Index end =
          end_of_steps(step, std::min({passage.end, blocks_.length(first + rows - 1), step + most_steps}));
      take_steps(share.track, passage, block, step, end, rows, h, c, group.scratch);
      call_.look_up(share.member, static_cast<double>(end - step) * work);
      const Index next = blocks_.running(first, rows, end);
      store_state(share.track, first, next, rows, h, c);
      step = end;
      rows = next;
    }
  }

  // Up to which what the tape keeps stands at an even distance.
  Index end_of_steps(Index begin, Index end) const {
    if (!tape_ || !tape_->pieces) return end;
    const auto distance = [&](Index step) {
      return tape_->kept_in_lanes(0, 0, step + 1) - tape_->kept_in_lanes(0, 0, step);
    };
    Index step = begin + 1;
    while (step < end && distance(step - 1) == distance(begin)) ++step;
    return step;
  }

  double step_work(const Track& track) const {
    const Spec& spec = call_.spec;
    return static_cast<double>(call_.cell.gates * hidden() * (spec.layer_input_size(track.layer) + hidden()));
  }

  void take_steps(const Track& track, const Passage& passage, Index block, Index begin, Index end, Index rows, T* h,
                  T* c, T* scratch) const {
    const bool backwards = call_.spec.backwards(track.direction);
    const Index first = blocks_.first(block), sign = backwards ? -1 : 1;
    // Of pieces for each of the steps, else once.
    Index x_at[kMostListed * kMostLanes], y_at[kMostListed * kMostLanes];
    LaneStepsArgs<T> args;
    args.steps = end - begin;
    args.rows = rows;
    args.input_size = call_.spec.layer_input_size(track.layer);
    args.units = hidden();
    args.weights = call_.network.layer(track.layer, track.direction).in_lanes.data();
    if (call_.order.pieces) {
      args.x = blocks_.listed(passage.in, backwards, begin, end - begin, first, rows, x_at);
      args.y = blocks_.listed(passage.out, backwards, begin, end - begin, first, rows, y_at);
      args.x_step = args.y_step = 0;
      args.list_step = kMostLanes;
    } else {
      args.x = blocks_.place(passage.in, backwards, begin, first, rows, x_at);
      args.y = blocks_.place(passage.out, backwards, begin, first, rows, y_at);
      args.x_step = sign * passage.in.step_stride;
      args.y_step = sign * passage.out.step_stride;
      args.list_step = 0;
    }
    args.y.data += track.direction * hidden();
    args.h = h;
    args.c = c;
    args.kept = tape_ ? tape_->kept_in_lanes(call_.index_of(track), block, begin) : nullptr;
    args.streams = passage.streams;
    args.kept_step = tape_ ? tape_->kept_in_lanes(0, 0, begin + 1) - tape_->kept_in_lanes(0, 0, begin) : 0;
    args.scratch = scratch;
    args.options = &call_.network.options();
    const auto& kernels = call_.kernels().rows_in_lanes;
    (tape_ ? kernels.steps_keeping : kernels.steps)(call_.spec.cell, args);
  }

  void load_state(const Track& track, Index block, T* h, T* c) const {
    const auto load = [&](const T* from, T* to, T* kept) {
      blocks_.load(call_.kernels(), call_.states(from, track, hidden()), block, hidden(), to);
      if (kept) std::copy_n(to, vectors(), kept + block * vectors());
    };
    load(sequence_.h_0, h, tape_ ? tape_->h_0 + call_.index_of(track) * blocks_.count() * vectors() : nullptr);
    if (c) load(sequence_.c_0, c, tape_ ? tape_->c[call_.index_of(track)] : nullptr);
  }

  // Of the lanes begin .. end, whose rows have had their last step.
  void store_state(const Track& track, Index first, Index begin, Index end, const T* h, const T* c) const {
    if (begin == end) return;
    const auto store = [&](const T* from, T* to) {
      blocks_.store(call_.kernels(), from + begin, hidden(), call_.states(to, track, hidden()), first + begin,
                    end - begin);
    };
    store(h, sequence_.h_n);
    if (c) store(c, sequence_.c_n);
  }

  const Call<T>& call_;
  const Sequence<T>& sequence_;
  const Tape<T>* tape_;
  Group* groups_ = nullptr;
  LaneBlocks blocks_;
};

}  // namespace gatedrnn
