// One call of a network forward, for inference or with a tape for training.
#pragma once

#include <utility>

#include "call.h"
#include "forward_in_lanes.h"
#include "gatedrnn/flush_denormals.h"
#include "gatedrnn/tape.h"
#include "walk.h"

namespace gatedrnn {

template <class T>
class ForwardRun {
 public:
  // `tape` may be null.
  ForwardRun(const Network<T>& network, const Sequence<T>& sequence, const Plan& plan, int first_turn, Tape<T>* tape)
      : sequence_(sequence),
        tape_(tape),
        first_turn_(first_turn),
        in_lanes_(tape ? tape->in_lanes()
                       : has_rows_in_lanes(network.spec(), network.kernels().lanes(), sequence.batch)),
        call_(network, usable(plan, in_lanes_ || network.spec().description().is_normalized()), sequence.batch,
              {nullptr, sequence.lengths, sequence.steps, sequence.pieces}, sequence.poll),
        walk_(call_),
        lanes_(call_, sequence, tape) {}

  void carve(Arena& arena) {
    segments_ = arena.take<Segment>(call_.overlapping() ? call_.plan.threads() * call_.plan.layer_groups : 0);
    sorted_ = arena.take<Index>(sequence_.lengths ? call_.batch : 0);
    const bool in_place = tape_ || call_.spec.directions == 1 || call_.spec.num_layers == 1;
    between_ = arena.take<T>(in_place ? 0 : output_values());
    if (in_lanes_)
      lanes_.carve(arena);
    else
      walk_.carve(arena, Walk<T>::Way::forward);
  }

  // False where run_team is.
  bool start() {
    if (sequence_.lengths) {
      RowOrder::sort(sequence_.lengths, call_.batch, sorted_);
      call_.order.rows = sorted_;
    }
    if (in_lanes_) lanes_.start();
    // Processors fetch ahead of what they write. Threads with rows of their own write each a part of the tape of its own, so that
    // they do not take each other's next lines away.
    if (tape_ && !sequence_.pieces)
      tape_->pairs = call_.plan.row_groups > 1 ? PairOrder::by_rank(tape_->steps) : PairOrder::by_step(tape_->batch);
    const bool meeting = call_.plan.unit_groups > 1 || call_.overlapping() || layers_meet() || tape_;
    return call_.run_on_team(meeting ? Patience::wait : Patience::take_at_once, this);
  }

  // A thread's part of the call.
  void work(Member& member) {
    const FlushDenormals flush;
    if (call_.overlapping())
      work_on_overlapping_layers(member);
    else
      work_on_layers(member);
    if (tape_ && (pads() || !in_lanes_)) member.phase([&](int part) { deliver(part); });
  }

 private:
  // A part of a layer's steps.
  struct Segment {
    Index layer, index;
  };

  // Steps that pieces have not are the caller's to fill.
  bool pads() const { return sequence_.lengths && !sequence_.pieces; }

  bool dropping() const { return tape_ && tape_->options.dropout.rate > 0 && call_.spec.num_layers > 1; }

  // The next layer reads both directions of this one; and dropout is applied to whole layers.
  bool layers_meet() const { return (call_.plan.direction_groups > 1 && call_.spec.num_layers > 1) || dropping(); }

  // With rows in lanes nobody shares units, nor where they are normalised.
  static Plan usable(Plan plan, bool whole_rows) {
    if (whole_rows) plan.row_groups *= std::exchange(plan.unit_groups, 1);
    return plan;
  }

  // What one thread writes in the way of another, or for all of them, goes past the caches.
  Write output_write() const {
    if (call_.plan.far && !call_.overlapping() && (tape_ || call_.plan.row_groups > 1)) return Write::streamed;
    return tape_ && fetching_tape() ? Write::fetched : Write::near;
  }
  // So does what will be gone from the last level when backward asks for it.
  Write kept_write() const {
    if (tape_->bytes() > call_.network.core().l3 / 2) return Write::streamed;
    return fetching_tape() ? Write::fetched : Write::near;
  }
  // A Xeon, which multiplies two vectors in a cycle, has no room for it: it lost 3 to 6 % of forward with up to 128 units.
  bool fetching_tape() const {
    const Core& core = call_.network.core();
    const Index vector_bytes = call_.kernels().lanes() * static_cast<Index>(sizeof(T));
    return tape_->bytes() > core.l2 / 2 && core.takes_a_cycle(vector_bytes);
  }

  void work_on_layers(Member& member) {
    if (!layers_meet()) {
      call_.for_groups(member, [&](int group) {
        for (Index layer = 0; layer < call_.spec.num_layers; ++layer) run_layer(member, group, layer);
        publish();
      });
      return;
    }
    for (Index layer = 0; layer < call_.spec.num_layers; ++layer) {
      call_.for_groups(member, [&](int group) {
        run_layer(member, group, layer);
        publish();
      });
      if (dropping() && layer + 1 < call_.spec.num_layers) member.phase([&](int part) { drop(part, layer); });
    }
  }

  // What was written past the caches, as outputs for threads that are far and zeros past lengths are.
  void publish() const {
    if (call_.plan.threads() > 1 || tape_ || sequence_.lengths) publish_streamed();
  }

  void run_layer(Member& member, int group, Index layer) {
    for (Index d = call_.direction_group_of(group); d < call_.spec.directions; d += call_.plan.direction_groups) {
      const Share share = call_.share(member, group, {layer, d});
      for (Index segment = 0; segment < segment_count(); ++segment) run_segment(share, segment);
    }
  }

  Rows<T> caller_output() const { return call_.callers(sequence_.y, sequence_.y_step, sequence_.y_row); }
  Rows<T> dense(T* data) const {
    return call_.dense(data, tape_ ? tape_->pairs : PairOrder::by_step(call_.batch), call_.spec.output_size());
  }

  // A layer writes where the next one reads: for training into the tape. For inference in one direction that can be the same
  // memory, since a block's inputs are multiplied before its outputs are written; two directions take turns between the
  // caller's output and scratch.
  Rows<T> output_of(Index layer) const {
    if (tape_ && !(in_lanes_ && layer + 1 == call_.spec.num_layers)) return dense(tape_->outputs[layer]);
    const bool last_or_in_place = (call_.spec.num_layers - 1 - layer) % 2 == 0 || call_.spec.directions == 1;
    return last_or_in_place ? caller_output() : dense(between_);
  }
  Rows<const T> input_of(Index layer) const {
    if (layer == 0) return call_.callers(sequence_.x, sequence_.x_step, sequence_.x_row);
    const Rows<T> rows = dropping() ? dense(tape_->inputs[layer - 1]) : output_of(layer - 1);
    return {rows.data, rows.step_stride, rows.row_stride, rows.order, rows.pieces, rows.begins};
  }

  // The segments of all layers, in an order in which each comes after those that it needs: the layer's own before it, and the same one
  // of the layer before. Each phase has as many of the next ones as do not need each other. Where that comes out even, a layer
  // stays with its threads.
  void work_on_overlapping_layers(Member& member) {
    const Index layers = call_.spec.num_layers, segments = segment_count();
    Segment* const now = segments_ + member.thread() * call_.plan.layer_groups;
    Index count = 0;
    const auto run_now = [&] {
      member.phase([&, count](int part) {
        const Index column = part / call_.plan.row_groups;
        if (column < count) run_overlapping(member, part % call_.plan.row_groups, now[column]);
      });
      count = 0;
    };
    for (Index sum = 0; sum < layers + segments - 1; ++sum)
      for (Index layer = std::max<Index>(0, sum - segments + 1); layer <= std::min(sum, layers - 1); ++layer) {
        const Segment next{layer, sum - layer};
        const bool needs = std::any_of(now, now + count, [&](const Segment& segment) {
          return (next.layer == segment.layer && next.index == segment.index + 1) ||
                 (next.index == segment.index && next.layer == segment.layer + 1);
        });
        if (needs || count == call_.plan.layer_groups) run_now();
        now[count++] = next;
      }
    run_now();
  }

  void run_overlapping(Member& member, int row_group, const Segment& segment) {
    const int group = static_cast<int>(segment.layer) * call_.plan.row_groups + row_group;
    run_segment(call_.share(member, group, {segment.layer, 0}), segment.index);
    publish();
  }

  bool keeping() const { return tape_ && tape_->kept_width() > 0; }
  bool recomputing() const { return tape_ && tape_->recomputing(); }

  // Parts of a layer's steps: as the tape's blocks are, each beginning with a checkpoint, or as layers overlap.
  Index segment_count() const {
    if (recomputing()) return std::max<Index>(1, tape_->blocks.count());
    return call_.overlapping() ? std::max<Index>(1, ceil_div(sequence_.steps, overlapping_steps())) : 1;
  }
  Index segment_begin(Index segment) const {
    if (segment == 0) return 0;
    if (segment == segment_count()) return sequence_.steps;
    return recomputing() ? tape_->blocks.begins[segment] : segment * overlapping_steps();
  }
  Index overlapping_steps() const { return std::max<Index>(1, call_.plan.block_pairs / call_.most_rows()); }

  void run_segment(const Share& share, Index segment) {
    const Index begin = segment_begin(segment), end = segment_begin(segment + 1);
    if (in_lanes_) {
      lanes_.run(share, {input_of(share.track.layer), output_of(share.track.layer), begin, end,
                         tape_ && kept_write() == Write::streamed});
      return deliver_zeros(share, end);
    }
    if (segment == 0) call_.once(share, [&] { load_state(share); });
    if (keeping() && (segment == 0 || recomputing()))
      call_.for_units(share, [&](int part) { checkpoint(share, part, segment); });
    Passage<T> passage{input_of(share.track.layer), output_of(share.track.layer)};
    passage.out_write = output_write();
    if (keeping() && !recomputing()) {
      passage.kept = tape_->kept[call_.index_of(share.track)];
      passage.kept_width = tape_->kept_width();
      passage.pairs = tape_->pairs;
      passage.kept_write = kept_write();
    }
    walk_.walk(share, passage, begin, end, first_turn_ ^ static_cast<int>(begin & 1),
               [&](int part, Index, const T* h, Index next, Index rows) { store_state(share, part, h, next, rows); });
    deliver_zeros(share, end);
  }

  // Past the rows' lengths, where what a layer has computed up to `end` is the caller's output.
  void deliver_zeros(const Share& share, Index end) const {
    const bool delivered = !tape_ && share.track.layer == call_.spec.num_layers - 1 && end == sequence_.steps;
    if (delivered && pads()) call_.once(share, [&] { clear_past_lengths(share); });
  }

  // The initial state into scratch; a row of length 0 has its final state with that.
  void load_state(const Share& share) const {
    const Index P = call_.spec.state_size(), H = call_.spec.hidden_size, stride = call_.network.state_stride();
    const auto load = [](const T* from, Index at, Index count, T* to) {
      from ? std::copy_n(from + at, count, to) : std::fill_n(to, count, T(0));
    };
    for (Index i = 0; i < share.rows; ++i) {
      const Index h_at = call_.state_at(share, i, P), c_at = call_.state_at(share, i, H);
      T* h = walk_.group(share).h[first_turn_] + i * stride;
      load(sequence_.h_0, h_at, P, h);
      if (tape_) std::copy_n(h, P, tape_->h_0 + (call_.index_of(share.track) * call_.batch + share.rank(i)) * P);
      T* c = call_.cell.has_c ? walk_.group(share).c + i * stride : nullptr;
      if (c) load(sequence_.c_0, c_at, H, c);
      if (call_.order.length(share.rank(i)) > 0) continue;
      std::copy_n(h, P, sequence_.h_n + h_at);
      if (c) std::copy_n(c, H, sequence_.c_n + c_at);
    }
  }

  // The state of the rows begin .. end that have just had their last step.
  void store_state(const Share& share, int part, const T* h, Index begin, Index end) const {
    if (begin == end) return;
    const auto& stages = call_.stages(share.track);
    const auto place = [&](T* base, Index width) {
      return [this, &share, base, width](Index i) { return base + call_.state_at(share, i, width); };
    };
    walk_.store_units(part, stages.back(), h, begin, end, place(sequence_.h_n, call_.spec.state_size()));
    if (call_.cell.has_c)
      walk_.store_units(part, stages.front(), walk_.group(share).c, begin, end,
                        place(sequence_.c_n, call_.spec.hidden_size));
  }

  // c as it is now, for backward.
  void checkpoint(const Share& share, int part, Index index) {
    if (!call_.cell.has_c) return;
    const Index H = call_.spec.hidden_size;
    T* to = tape_->c[call_.index_of(share.track)] + tape_->checkpoint_begins[index] * H;
    walk_.store_units(part, call_.stages(share.track).front(), walk_.group(share).c, 0,
                      call_.running(share, tape_->blocks.begins[index], share.rows),
                      [&](Index i) { return to + share.rank(i) * H; });
  }

  // What the next layer sees of this one's output.
  void drop(int part, Index layer) {
    const Dropout& dropout = tape_->options.dropout;
    const T scale = static_cast<T>(1 / (1 - dropout.rate));
    const Index width = call_.spec.output_size();
    const Rows<T> outputs = dense(tape_->outputs[layer]);
    for (Index rank = part; rank < call_.batch; rank += call_.plan.threads())
      for (Index t = 0; t < call_.order.length(rank); ++t) {
        const Index at = outputs.offset(t, rank);
        const std::uint64_t place =
            static_cast<std::uint64_t>(layer * output_values() + call_.callers_pair(t, rank) * width);
        for (Index k = 0; k < width; ++k) {
          const bool kept = stays(place + static_cast<std::uint64_t>(k), dropout);
          tape_->masks[layer][at + k] = kept;
          tape_->inputs[layer][at + k] = kept ? tape_->outputs[layer][at + k] * scale : T(0);
        }
      }
  }

  // A part of the steps, from the tape to the caller's output, with zeros past the lengths.
  void deliver(int part) const {
    const Rows<T> from = dense(tape_->outputs.back()), to = caller_output();
    const auto [begin, end] = part_of(sequence_.steps, part, call_.plan.threads());
    for (Index t = begin; t < end; ++t) {
      const Index running = call_.running_ranks(t);
      for (Index rank = 0; rank < running && !in_lanes_; ++rank)
        std::copy_n(from.at(t, rank), call_.spec.output_size(), to.at(t, rank));
      for (Index rank = running; rank < call_.batch && pads(); ++rank)
        call_.pad(to.at(t, rank), call_.spec.output_size(), output_values());
    }
    publish_streamed();
  }

  void clear_past_lengths(const Share& share) const {
    const Index P = call_.spec.state_size();
    const Rows<T> out = caller_output();
    Index rows = share.rows;
    for (Index t = 0; t < sequence_.steps; ++t) {
      rows = call_.running(share, t, rows);
      for (Index i = rows; i < share.rows; ++i)
        call_.pad(out.at(t, share.rank(i)) + share.track.direction * P, P, output_values());
    }
  }
  Index output_values() const { return call_.callers_steps() * call_.callers_batch() * call_.spec.output_size(); }

  const Sequence<T>& sequence_;
  Tape<T>* tape_;
  const int first_turn_;
  const bool in_lanes_;
  Call<T> call_;
  Walk<T> walk_;
  ForwardInLanes<T> lanes_;
  Index* sorted_ = nullptr;  // [B] rows by rank
  T* between_ = nullptr;
  Segment* segments_ = nullptr;  // [thread][layer group]
};

}  // namespace gatedrnn
