// Going forward with rows in lanes: each block of rows goes through its steps by itself.
#pragma once

#include "gatedrnn/tape.h"
#include "lane_blocks.h"

namespace gatedrnn {

template <class T>
class ForwardInLanes {
 public:
  ForwardInLanes() = default;
  ForwardInLanes(const Network<T>& network, const Sequence<T>& sequence, const Tape<T>* tape, const RowOrder& order)
      : network_(&network),
        sequence_(&sequence),
        tape_(tape),
        order_(order),
        blocks_(order, sequence.batch, network.kernels().lanes()) {}

  // What a group has: the states of its blocks where it leaves them and comes back, else of one.
  static void carve(Arena& arena, const Network<T>& network, Index blocks, Group<T>& group) {
    const Spec& spec = network.spec();
    const Index lanes = network.kernels().lanes(), state = (blocks * spec.hidden_size + 1) * lanes;
    group.h[0] = arena.take<T>(state);
    group.c = arena.take<T>(spec.description().has_c ? state : 0);
    group.products =
        arena.take<T>(lane_scratch(std::max(spec.input_size, spec.output_size()), spec.hidden_size) * lanes);
  }

  // Some of a layer's steps.
  struct Passage {
    Index layer, direction;
    Rows<const T> in;
    Rows<T> out;
    Index begin, end;
    bool stays;    // the states, from one passage to the next
    bool streams;  // what is kept goes past the caches
  };

  // Every groups-th block. `look_up(multiply-adds)` is called now and then.
  template <class LookUp>
  void run(const Passage& passage, const Group<T>& group, Index index, Index groups, LookUp&& look_up) const {
    for (Index block = index, i = 0; block < blocks_.count(); block += groups, ++i)
      run_block(passage, group, block, passage.stays ? i : 0, look_up);
  }

 private:
  Index hidden() const { return network_->spec().hidden_size; }
  bool has_c() const { return network_->spec().description().has_c; }
  Index vectors() const { return hidden() * blocks_.lanes(); }

  template <class LookUp>
  void run_block(const Passage& passage, const Group<T>& group, Index block, Index place, LookUp&& look_up) const {
    const Index first = blocks_.first(block), all = blocks_.rows(block);
    T* const h = group.h[0] + place * vectors();
    T* const c = has_c() ? group.c + place * vectors() : nullptr;
    if (passage.begin == 0) load_state(passage, block, h, c);
    Index rows = blocks_.running(first, all, passage.begin);
    if (passage.begin == 0) store_state(passage, first, rows, all, h, c);
    for (Index step = passage.begin; rows > 0 && step < passage.end;) {
      const Index end = std::min({passage.end, blocks_.length(first + rows - 1), step + most_steps(passage)});
      take_steps(passage, block, step, end, rows, h, c, group.products);
      look_up(static_cast<double>((end - step) * blocks_.lanes()) * step_work(passage));
      const Index next = blocks_.running(first, rows, end);
      store_state(passage, first, next, rows, h, c);
      step = end;
      rows = next;
    }
  }

  // So few that between two of them nobody waits long.
  Index most_steps(const Passage& passage) const {
    constexpr double work = 1e6;
    return 1 + static_cast<Index>(work / (static_cast<double>(blocks_.lanes()) * step_work(passage)));
  }
  double step_work(const Passage& passage) const {
    const Spec& spec = network_->spec();
    return static_cast<double>(spec.description().gates * hidden() * (spec.layer_input_size(passage.layer) + hidden()));
  }

  void take_steps(const Passage& passage, Index block, Index begin, Index end, Index rows, T* h, T* c,
                  T* scratch) const {
    const Index first = blocks_.first(block), sign = passage.direction == 0 ? 1 : -1;
    Index x_at[kMostLanes], y_at[kMostLanes];
    LaneStepsArgs<T> args;
    args.steps = end - begin;
    args.rows = rows;
    args.input_size = network_->spec().layer_input_size(passage.layer);
    args.units = hidden();
    args.weights = network_->layer(passage.layer, passage.direction).in_lanes.data();
    args.x = blocks_.place(passage.in, passage.direction, begin, first, rows, x_at);
    args.y = blocks_.place(passage.out, passage.direction, begin, first, rows, y_at);
    args.y.data += passage.direction * hidden();
    args.x_step = sign * passage.in.step_stride;
    args.y_step = sign * passage.out.step_stride;
    args.h = h;
    args.c = c;
    args.kept = tape_ ? tape_->kept_in_lanes(track(passage), block, begin) : nullptr;
    args.streams = passage.streams;
    args.kept_step = tape_ ? tape_->kept_in_lanes(0, 0, 1) - tape_->kept_in_lanes(0, 0, 0) : 0;
    args.scratch = scratch;
    const auto& kernels = network_->kernels().rows_in_lanes;
    (tape_ ? kernels.steps_keeping : kernels.steps)(network_->spec().cell, args);
  }

  Index track(const Passage& passage) const { return passage.layer * network_->spec().directions + passage.direction; }

  // An array of states [track][row][H] of the caller's.
  template <class Value>
  Rows<Value> states(Value* data, const Passage& passage) const {
    return {data + track(passage) * sequence_->batch * hidden(), 0, hidden(), order_.rows};
  }

  void load_state(const Passage& passage, Index block, T* h, T* c) const {
    const auto load = [&](const T* from, T* to, T* kept) {
      if (from) {
        Index at[kMostLanes];
        const Index first = blocks_.first(block), rows = blocks_.rows(block);
        network_->kernels().rows_in_lanes.rows_to_lanes(blocks_.place(states(from, passage), 0, 0, first, rows, at),
                                                        rows, hidden(), to);
      } else {
        std::fill_n(to, vectors(), T(0));
      }
      if (kept) std::copy_n(to, vectors(), kept + block * vectors());
    };
    load(sequence_->h_0, h, tape_ ? tape_->h_0 + track(passage) * blocks_.count() * vectors() : nullptr);
    if (c) load(sequence_->c_0, c, tape_ ? tape_->c[track(passage)] : nullptr);
  }

  // Of the lanes begin .. end, whose rows have had their last step.
  void store_state(const Passage& passage, Index first, Index begin, Index end, const T* h, const T* c) const {
    if (begin == end) return;
    const auto store = [&](const T* from, T* to) {
      Index at[kMostLanes];
      network_->kernels().rows_in_lanes.lanes_to_rows(
          from + begin, end - begin, hidden(),
          blocks_.place(states(to, passage), 0, 0, first + begin, end - begin, at));
    };
    store(h, sequence_->h_n);
    if (c) store(c, sequence_->c_n);
  }

  const Network<T>* network_ = nullptr;
  const Sequence<T>* sequence_ = nullptr;
  const Tape<T>* tape_ = nullptr;
  RowOrder order_;
  LaneBlocks blocks_;
};

}  // namespace gatedrnn
