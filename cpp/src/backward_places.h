// Where one call of a network backward reads and writes: the rows of the tape and of the caller's gradients, and the ring of
// blocks that lies between the recurrence and the products over what it leaves.
#pragma once

#include "gatedrnn/tape.h"
#include "run.h"

namespace gatedrnn {

template <class T>
class BackwardPlaces : protected Run<T> {
 protected:
  using Base = Run<T>;
  using Base::batch_, Base::cell_, Base::network_, Base::order_, Base::plan_, Base::spec_;
  using typename Base::Share;
  using typename Base::Track;

  BackwardPlaces(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& call, const Plan& plan)
      : Base(network, usable(plan, tape), tape.batch, {tape.rows.data(), tape.lengths.data(), tape.steps}, call.poll),
        tape_(tape),
        call_(call),
        gradient_blocks_(plan_.gradient_threads > 0 ? tape.cut(plan_.block_pairs, tape.steps) : StepBlocks{}),
        blocks_(plan_.gradient_threads > 0 ? gradient_blocks_ : tape.blocks) {}

  // What the recurrence of one block leaves, a row for each (step, rank) pair: from the last step to the first, in each by rank.
  struct Block {
    Index begin, end;  // steps
    Index pairs;
    const Index* pair_ends;    // of its blocks of pairs
    Index pair_blocks, first;  // so many of them, the first of which is the how manieth of all
    T* d_a;                    // [pair][d_a_stride]
    T* operand_of_weights;     // [pair][slot]
    T* d_h;                    // [pair][d_h_stride]: before the projection
  };

  struct Strided {
    const T* data;
    Index stride;
  };

  // c of each row, the last of `slots` values per unit.
  struct CellStates {
    const T* data;
    Index stride, slots;
  };

  void carve(Arena& arena) {
    d_a_ = arena.take<T>(ring_pairs() * d_a_stride());
    operand_of_weights_ = arena.take<T>(has_operand_of_weights() ? ring_pairs() * slot() : 0);
    d_h_ = arena.take<T>(spec_.proj_size > 0 ? ring_pairs() * d_h_stride() : 0);
    kept_ = arena.take<T>(tape_.recomputing() ? blocks_.most_steps * batch_ * tape_.kept_width() : 0);
    carve_between(arena);
    lists_ = arena.take<const T*>(plan_.threads() * kLists * list_size());
  }

  void carve_between(Arena& arena) {
    for (T*& between : between_)
      between = arena.take<T>(spec_.num_layers > 1 ? tape_.steps * batch_ * spec_.output_size() : 0);
  }

  // ---- Sizes -------------------------------------------------------------------------------------------------------------
  int lanes() const { return network_.kernels().lanes(); }
  Index slot() const { return slot_stride(spec_.hidden_size, lanes()); }
  // A line more than the values, so that what reads on to a multiple of kGemmColumns stays in the row.
  Index d_a_stride() const { return odd_lines<T>(cell_.slots * slot()); }
  Index d_h_stride() const { return odd_lines<T>(spec_.state_size()); }
  Index panel_count(Index units) const { return ceil_div(units, kBackVectors * lanes()); }
  bool has_operand_of_weights() const { return cell_.two_stages() || spec_.proj_size > 0; }

  // ---- Blocks ------------------------------------------------------------------------------------------------------------
  Index block_count() const { return blocks_.count(); }
  Index most_steps() const { return blocks_.most_steps; }
  Index most_pairs() const { return blocks_.most_pairs; }
  // Of a thread's lists of a block's offsets and, behind them, ends of blocks of pairs.
  Index offsets_size() const { return most_steps() + 1 + PairBlocks::most(most_pairs()); }

  // Blocks follow each other in a ring, which so stays in the cache. What the next one must not overwrite while it begins: a
  // thread alone reads the last step's pairs; of several, some may still be at the products of the whole block. With room for
  // two of these beyond a block, one that goes back to the front does not reach them while they are in use.
  Index ring_pairs() const { return most_pairs() + 2 * (plan_.threads() == 1 ? batch_ : most_pairs()); }

  // The b-th block from the end, and a place for it in the ring.
  Block take_block(Index b, Index* offsets, Index& ring_end) const {
    const Index i = block_count() - 1 - b, begin = blocks_.begins[i], end = blocks_.begins[i + 1];
    Index* const pair_ends = offsets + most_steps() + 1;
    const Index pair_blocks = list_offsets(begin, end, offsets, pair_ends), pairs = offsets[end - begin];
    const Index at = ring_end + pairs <= ring_pairs() ? ring_end : 0;
    ring_end = at + pairs;
    return {begin,
            end,
            pairs,
            pair_ends,
            pair_blocks,
            blocks_.pair_blocks[i],
            d_a_ + at * d_a_stride(),
            operand_of_weights_ + at * slot(),
            d_h_ + at * d_h_stride()};
  }

  // Where each step's pairs begin, from the last step to the first, and where blocks of pairs end; returns how many of these.
  Index list_offsets(Index begin, Index end, Index* offsets, Index* pair_ends) const {
    const Index* const first_end = pair_ends;
    const auto list_end = [&](Index pairs) { *pair_ends++ = pairs; };
    PairBlocks pair_blocks;
    Index pairs = 0;
    for (Index step = end - 1; step >= begin; --step) {
      *offsets++ = pairs;
      const Index running = running_ranks(step);
      pair_blocks.add_step(running, list_end);
      pairs += running;
    }
    pair_blocks.finish(list_end);
    *offsets = pairs;
    return pair_ends - first_end;
  }

  Index running_ranks(Index step) const {
    const Index *lengths = order_.lengths, *rows = order_.rows;
    if (batch_ > 0 && lengths[rows[batch_ - 1]] > step) return batch_;
    return std::partition_point(rows, rows + batch_, [&](Index row) { return lengths[row] > step; }) - rows;
  }

  // `visit(pair, step, rank)`
  template <class Visit>
  void for_each_pair(const Block& block, Visit&& visit) const {
    Index pair = 0;
    for (Index step = block.end - 1; step >= block.begin; --step)
      for (Index r = 0, count = running_ranks(step); r < count; ++r, ++pair) visit(pair, step, r);
  }

  // ---- Rows --------------------------------------------------------------------------------------------------------------
  // Lists of rows are the thread's own, for one product or step.
  static constexpr int kLists = 3;
  Index list_size() const { return std::max(most_pairs(), this->most_rows()); }
  const T** list(int thread, int which) const { return lists_ + (thread * kLists + which) * list_size(); }
  T** list_of_places(int thread, int which) const { return const_cast<T**>(list(thread, which)); }

  // Arrays as the tape has them.
  template <class Value>
  Rows<Value> dense(Value* data) const {
    return Rows<Value>::dense(data, tape_.pairs, spec_.output_size());
  }
  Rows<const T> input_of(Index layer) const {
    if (layer == 0) return {call_.x, call_.x_step, call_.x_row, order_.rows};
    return dense<const T>((tape_.inputs.empty() ? tape_.outputs : tape_.inputs)[layer - 1]);
  }
  // The gradients of a layer's output, and of its input.
  Rows<const T> d_output_of(Index layer) const {
    if (layer == spec_.num_layers - 1) return {call_.d_y, call_.d_y_step, call_.d_y_row, order_.rows};
    return dense<const T>(between_[layer % 2]);
  }
  Rows<T> d_input_of(Index layer) const {
    if (layer == 0) return {call_.d_x, call_.d_x_step, call_.d_x_row, order_.rows};
    return dense(between_[(layer - 1) % 2]);
  }

  Index time_of(const Track& track, Index step, Index rank) const {
    return track.direction == 0 ? step : order_.length(rank) - 1 - step;
  }
  const T* h_after(const Track& track, Index step, Index rank) const {
    return dense<const T>(tape_.outputs[track.layer]).at(time_of(track, step, rank), rank) +
           track.direction * spec_.state_size();
  }
  const T* h_before(const Track& track, Index step, Index rank) const {
    if (step > 0) return h_after(track, step - 1, rank);
    return tape_.h_0 + (this->track(track) * batch_ + rank) * spec_.state_size();
  }

  // With recomputing one block's are there at a time.
  PairOrder kept_pairs() const {
    if (!tape_.recomputing()) return tape_.pairs;
    return plan_.row_groups > 1 ? PairOrder::by_rank(blocks_.most_steps) : PairOrder::by_step(batch_);
  }
  // Of rank 0.
  const T* kept(const Track& track, const Block& block, Index step) const {
    const T* first = tape_.recomputing() ? kept_ : tape_.kept[this->track(track)];
    return first + kept_pairs().at(tape_.recomputing() ? step - block.begin : step, 0) * tape_.kept_width();
  }
  Index kept_stride() const { return kept_pairs().rank_stride * tape_.kept_width(); }
  // c before a step, of rank 0.
  CellStates c_before(const Track& track, const Block& block, Index step) const {
    const Index H = spec_.hidden_size;
    const T* checkpoints = tape_.c[this->track(track)];
    if (tape_.recomputing() && step == block.begin) {
      const auto& begins = tape_.blocks.begins;
      const auto at = std::lower_bound(begins.begin(), begins.end(), step) - begins.begin();
      return {checkpoints + at * batch_ * H, H, 1};
    }
    return step == 0 ? CellStates{checkpoints, H, 1} : c_after(track, block, step - 1);
  }
  CellStates c_after(const Track& track, const Block& block, Index step) const {
    return {kept(track, block, step), kept_stride(), cell_.kept};
  }

  // ---- Layers ------------------------------------------------------------------------------------------------------------
  // `run_direction(track)` for all tracks, from the last layer on.
  template <class RunDirection>
  void go_through_layers(Member& member, RunDirection&& run_direction) {
    for (Index layer = spec_.num_layers - 1; layer >= 0; --layer) {
      for (Index direction = 0; direction < spec_.directions; ++direction) run_direction(Track{layer, direction});
      if (layer > 0 && !tape_.masks.empty()) member.phase([&](int part) { undrop(part, layer - 1); });
    }
    if (call_.d_x && batch_ > 0) member.phase([&](int part) { clear_past_lengths(part); });
  }

  const Tape<T>& tape_;
  const BackwardCall<T>& call_;
  T* kept_ = nullptr;   // with recomputing: of one block
  T* between_[2] = {};  // the gradients of the layers' outputs, in turns

 private:
  const StepBlocks gradient_blocks_;  // shorter than the tape's

 protected:
  const StepBlocks& blocks_;

 private:
  // What was dropped had no part in the loss.
  void undrop(int part, Index layer) const {
    const T scale = static_cast<T>(1 / (1 - tape_.options.dropout.rate));
    const Index width = spec_.output_size();
    for (Index rank = part; rank < batch_; rank += plan_.threads())
      for (Index t = 0; t < order_.length(rank); ++t) {
        const Index at = tape_.pairs.at(t, rank) * width;
        T* d = between_[layer % 2] + at;
        const std::uint8_t* mask = tape_.masks[layer] + at;
        for (Index k = 0; k < width; ++k) d[k] = mask[k] ? d[k] * scale : T(0);
      }
  }

  void clear_past_lengths(int part) const {
    const Rows<T> d_x = d_input_of(0);
    const Index values = tape_.steps * batch_ * spec_.input_size;
    for (Index t = part; t < tape_.steps; t += plan_.threads())
      for (Index rank = running_ranks(t); rank < batch_; ++rank) this->pad(d_x.at(t, rank), spec_.input_size, values);
    publish_streamed();
  }

  // Gradient threads would need recomputed values for longer than these last.
  static Plan usable(Plan plan, const Tape<T>& tape) {
    if (tape.recomputing()) plan.gradient_threads = 0;
    return plan;
  }

  // The ring of blocks.
  T* d_a_ = nullptr;
  T* operand_of_weights_ = nullptr;
  T* d_h_ = nullptr;
  const T** lists_ = nullptr;  // [thread][kLists][list_size]
};

}  // namespace gatedrnn
