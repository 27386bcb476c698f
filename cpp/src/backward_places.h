// Where one call of a network backward reads and writes, beside the blocks of its recurrence: the rows of the tape, the caller's
// gradients, and those between layers.
#pragma once

#include "call.h"
#include "gatedrnn/tape.h"
#include "rows.h"

namespace gatedrnn {

template <class T>
class BackwardPlaces {
 public:
  BackwardPlaces(const Call<T>& call, const Tape<T>& tape, const BackwardCall<T>& caller)
      : tape(tape), caller(caller), call_(call) {}

  const Tape<T>& tape;
  const BackwardCall<T>& caller;

  // c of each row, the last of `slots` values per unit.
  struct CellStates {
    const T* data;
    Index stride, slots;
  };

  void carve(Arena& arena) {
    const Index width = tape.recomputing() ? tape.kept_width() : 0;
    kept_ = arena.take<T>((tape.pieces ? tape.blocks.most_pairs : tape.blocks.most_steps * call_.batch) * width);
    for (T*& between : between_)
      between = arena.take<T>(call_.spec.num_layers > 1 ? tape.places() * call_.spec.output_size() : 0);
  }

  // Arrays as the tape has them.
  template <class Value>
  Rows<Value> dense(Value* data) const {
    return call_.dense(data, tape.pairs, call_.spec.output_size());
  }
  Rows<const T> input_of(Index layer) const {
    if (layer == 0) return call_.callers(caller.x, caller.x_step, caller.x_row);
    return dense<const T>((tape.inputs.empty() ? tape.outputs : tape.inputs)[layer - 1]);
  }
  // The gradients of a layer's output, and of its input.
  Rows<const T> d_output_of(Index layer) const {
    if (layer == call_.spec.num_layers - 1) return call_.callers(caller.d_y, caller.d_y_step, caller.d_y_row);
    return dense<const T>(between_[layer % 2]);
  }
  Rows<T> d_input_of(Index layer) const {
    if (layer == 0) return call_.callers(caller.d_x, caller.d_x_step, caller.d_x_row);
    return dense(between_[(layer - 1) % 2]);
  }

  // Where h of a track's steps stands.
  class HiddenStates {
   public:
    HiddenStates(const BackwardPlaces& places, const Track& track)
        : call_(places.call_),
          track_(track),
          width_(call_.spec.state_size()),
          initial_(places.tape.h_0 + call_.index_of(track) * call_.batch * width_),
          outputs_(places.template dense<const T>(places.tape.outputs[track.layer] + track.direction * width_)) {}

    GATEDRNN_INLINE const T* after(Index step, Index rank) const {
      return outputs_.at(call_.time(track_, step, rank), rank);
    }
    GATEDRNN_INLINE const T* before(Index step, Index rank) const {
      return step > 0 ? after(step - 1, rank) : initial_ + rank * width_;
    }

   private:
    const Call<T>& call_;
    const Track track_;
    const Index width_;
    const T* const initial_;
    const Rows<const T> outputs_;
  };

  // With recomputing one block's are there at a time.
  PairOrder kept_pairs() const {
    if (!tape.recomputing() || tape.pieces) return tape.pairs;
    return call_.plan.row_groups > 1 ? PairOrder::by_rank(tape.blocks.most_steps) : PairOrder::by_step(call_.batch);
  }
  // Of rank 0.
  const T* kept(const Track& track, Index block_begin, Index step) const {
    const PairOrder pairs = kept_pairs();
    if (!tape.recomputing()) return tape.kept[call_.index_of(track)] + pairs.at(step, 0) * tape.kept_width();
    return kept_ + (pairs.at(step, 0) - pairs.at(block_begin, 0)) * tape.kept_width();
  }
  T* recomputed() const { return kept_; }
  Index kept_stride() const { return kept_pairs().rank_stride * tape.kept_width(); }
  // c before a step, of rank 0.
  CellStates c_before(const Track& track, Index block_begin, Index step) const {
    const Index H = call_.spec.hidden_size;
    const T* checkpoints = tape.c[call_.index_of(track)];
    if (tape.recomputing() && step == block_begin) {
      const auto& begins = tape.blocks.begins;
      const auto at = std::lower_bound(begins.begin(), begins.end(), step) - begins.begin();
      return {checkpoints + tape.checkpoint_begins[at] * H, H, 1};
    }
    return step == 0 ? CellStates{checkpoints, H, 1} : c_after(track, block_begin, step - 1);
  }
  CellStates c_after(const Track& track, Index block_begin, Index step) const {
    return {kept(track, block_begin, step), kept_stride(), call_.cell.kept};
  }

  // `run_direction(track)` for all tracks, from the last layer on.
  template <class RunDirection>
  void go_through_layers(Member& member, RunDirection&& run_direction) {
    for (Index layer = call_.spec.num_layers - 1; layer >= 0; --layer) {
      for (Index direction = 0; direction < call_.spec.directions; ++direction) run_direction(Track{layer, direction});
      if (layer > 0 && !tape.masks.empty()) member.phase([&](int part) { undrop(part, layer - 1); });
    }
    if (caller.d_x && call_.batch > 0 && !tape.pieces) member.phase([&](int part) { clear_past_lengths(part); });
  }

 private:
  // What was dropped had no part in the loss.
  void undrop(int part, Index layer) const {
    const T scale = static_cast<T>(1 / (1 - tape.options.dropout.rate));
    const Index width = call_.spec.output_size();
    const Rows<const T> outputs = dense<const T>(tape.outputs[layer]);
    for (Index rank = part; rank < call_.batch; rank += call_.plan.threads())
      for (Index t = 0; t < call_.order.length(rank); ++t) {
        const Index at = outputs.offset(t, rank);
        T* d = between_[layer % 2] + at;
        const std::uint8_t* mask = tape.masks[layer] + at;
        for (Index k = 0; k < width; ++k) d[k] = mask[k] ? d[k] * scale : T(0);
      }
  }

  void clear_past_lengths(int part) const {
    const Rows<T> d_x = d_input_of(0);
    const Index values = tape.steps * call_.batch * call_.spec.input_size;
    for (Index t = part; t < tape.steps; t += call_.plan.threads())
      for (Index rank = call_.running_ranks(t); rank < call_.batch; ++rank)
        call_.pad(d_x.at(t, rank), call_.spec.input_size, values);
    publish_streamed();
  }

  const Call<T>& call_;
  T* kept_ = nullptr;   // with recomputing: of one block
  T* between_[2] = {};  // the gradients of the layers' outputs, in turns
};

}  // namespace gatedrnn
