// One call of a network backward through a tape.
//
// Layer by layer from the last, direction by direction, block by block of time steps from the last: first the recurrence, which
// leaves the gradients of the pre-activations of every (step, row) pair of the block, then the products that merge these pairs.
// A sum belongs to one thread at a time and is one chain in the order of steps (last first) and ranks, so that neither blocks
// nor threads change a bit.
#pragma once

#include <memory>

#include "backward_merge.h"

namespace gatedrnn {

template <class T>
class BackwardRun : private BackwardMerge<T> {
  using Base = BackwardMerge<T>;
  using typename Base::Block;
  using typename Base::CellStates;
  using typename Base::Passage;
  using typename Base::Share;
  using typename Base::Strided;

 public:
  BackwardRun(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& call, const Plan& plan)
      : Base(network, tape, call, plan) {}

  void carve(Arena& arena) {
    Base::carve(arena);
    const Index threads = plan_.threads();
    offsets_ = arena.take<Index>(threads * (most_steps() + 1));
    progress_ = arena.take<Progress>(plan_.mergers > 0 ? threads : 0);
    const Index state = this->most_rows() * network_.state_stride();
    const Index panels = panel_count(std::max(spec_.hidden_size, spec_.state_size()));
    this->carve_groups(arena, tape_.recomputing() ? Base::Forward::replay : Base::Forward::no, [&](Group<T>& group) {
      group.carry = arena.take<T>(state);
      if (is_lstm(spec_.cell)) group.d_c = arena.take<T>(state);
      for (T*& d_a : group.d_a) d_a = arena.take<T>(plan_.far ? this->most_rows() * d_a_stride() : 0);
      group.products = arena.take<T>(panels * products_stride());
    });
  }

  // False where run_team is.
  bool start() {
    everyone_.reset(plan_.threads());
    if (plan_.mergers > 0) std::uninitialized_default_construct_n(progress_, plan_.threads());
    if (plan_.threads() == 1) {
      work(0);
      return true;
    }
    return run_team(
        plan_.threads(), Shares::together, patience(plan_),
        [](void* self, int thread) { static_cast<BackwardRun*>(self)->work(thread); }, this);
  }

 private:
  using Base::batch_, Base::between_, Base::call_, Base::everyone_, Base::kept_, Base::network_, Base::order_,
      Base::plan_, Base::spec_, Base::tape_;
  using Base::block_count, Base::c_before, Base::d_h_stride, Base::d_input_of, Base::d_output_of, Base::d_a_stride,
      Base::h_after, Base::h_before, Base::has_operand_of_weights, Base::input_of, Base::kept, Base::kept_pairs,
      Base::kept_stride, Base::lanes, Base::length, Base::list, Base::list_of_places, Base::meet, Base::merge,
      Base::most_steps, Base::panel_count, Base::rank, Base::row_count, Base::running, Base::slot, Base::state_at,
      Base::take_block, Base::time;

  Index products_stride() const { return odd_lines<T>(this->most_rows() * kBackVectors * lanes()); }
  bool is_rnn() const { return spec_.cell == Cell::rnn_tanh || spec_.cell == Cell::rnn_relu; }

  // ---- Threads -----------------------------------------------------------------------------------------------------------
  // Layers and directions that were run before.
  Index tracks_before(const Share& share) const {
    return (spec_.num_layers - 1 - share.layer) * spec_.directions + share.direction;
  }

  // The grid's threads come first, then the mergers.
  bool in_grid(int thread) const { return thread < plan_.grid(); }

  // With its part of what all threads merge, or the mergers alone.
  Share merger(Share share, bool all) const {
    const int first = all ? 0 : plan_.grid();
    share.part = share.thread - first;
    share.parts = plan_.threads() - first;
    return share;
  }

  // Until so many blocks have been gone back through, or merged by mergers alone.
  void await(int first_thread, int last_thread, Index blocks) const {
    for (int thread = first_thread; thread < last_thread; ++thread) progress_[thread].await(blocks);
  }
  void await_grid(Index blocks) const { await(0, plan_.grid(), blocks); }
  void await_mergers(Index blocks) const { await(plan_.grid(), plan_.threads(), blocks); }

  // ---- The walk ----------------------------------------------------------------------------------------------------------
  void work(int thread) {
    const FlushDenormals flush;
    const int place = in_grid(thread) ? thread : 0;
    for (Index layer = spec_.num_layers - 1; layer >= 0; --layer) {
      for (Index direction = 0; direction < spec_.directions; ++direction)
        run_direction(
            {thread, this->unit_group_of(place), this->row_group_of(place), this->group_of(place), layer, direction});
      if (layer > 0 && !tape_.masks.empty()) {
        undrop(thread, layer - 1);
        everyone_.wait();
      }
    }
    if (call_.d_x) clear_past_lengths(thread);
  }

  void run_direction(const Share& share) {
    if (in_grid(share.thread)) {
      if (share.unit_group == 0) load_state(share);
      meet(share);
    }
    Index* offsets = offsets_ + share.thread * (most_steps() + 1);
    Strided next{nullptr, 0};
    Index ring_end = 0;
    const Index blocks = block_count();
    for (Index b = 0; b < blocks; ++b) {
      const Block block = take_block(b, offsets, ring_end);
      const Index handed_over = tracks_before(share) * (blocks - 1) + b;  // from the grid to mergers
      if (in_grid(share.thread)) {
        await_mergers(handed_over - 1);  // who are one block behind at most, as the ring has room for
        next = go_back(share, block, offsets, next);
        if (plan_.far) publish_streamed();
      }
      if (plan_.mergers == 0 || b == blocks - 1) {
        everyone_.wait();
        merge(merger(share, true), block, offsets);
      } else {
        if (!in_grid(share.thread)) {
          await_grid(handed_over + 1);
          merge(merger(share, false), block, offsets);
        }
        progress_[share.thread].advance_to(handed_over + 1);
      }
      if (tape_.recomputing()) everyone_.wait();  // the kept values are needed no more
    }
    if (in_grid(share.thread)) initial_state_gradients(share, next);
    if (blocks == 0) this->clear_gradients(merger(share, true));
    this->deliver_column_sums(merger(share, true));
    everyone_.wait();
  }

  // The recurrence of one block. `next` and what comes back: the gradients of the pre-activations of the step after, of the
  // share's rows.
  Strided go_back(const Share& share, const Block& block, const Index* offsets, Strided next) {
    if (tape_.recomputing()) recompute(share, block);
    for (Index step = block.end - 1; step >= block.begin; --step)
      next = take_step(share, block, step, offsets[block.end - 1 - step], next);
    return next;
  }

  // The gradients of the final state; scratch past the last unit is zero, since products run over it.
  void load_state(const Share& share) const {
    const Index P = spec_.state_size(), H = spec_.hidden_size, stride = network_.state_stride();
    const auto load = [&](const T* from, Index width, Index i, T* to) {
      std::fill_n(to, stride, T(0));
      if (from) std::copy_n(from + state_at(share, i, width), width, to);
    };
    for (Index i = 0; i < row_count(share); ++i) {
      load(call_.d_h_n, P, i, share.group.carry + i * stride);
      if (is_lstm(spec_.cell)) load(call_.d_c_n, H, i, share.group.d_c + i * stride);
    }
  }

  // What the block's steps kept, from the outputs and the c before it.
  void recompute(const Share& share, const Block& block) {
    if (is_lstm(spec_.cell) && share.unit_group == 0) {
      const CellStates c = c_before(share, block, block.begin);
      for (Index i = 0; i < running(share, block.begin, row_count(share)); ++i)
        std::copy_n(c.data + rank(share, i) * c.stride, spec_.hidden_size, share.group.c + i * network_.state_stride());
    }
    meet(share);
    const Passage passage{input_of(share.layer), {}, kept_, block.begin, tape_.kept_width(), kept_pairs()};
    this->replay(share, passage, block.begin, block.end,
                 [&](Index step, Index i) { return h_before(share, step, rank(share, i)); });
  }

  // ---- One step ----------------------------------------------------------------------------------------------------------
  // From and to gradients of pre-activations as `go_back` has them.
  Strided take_step(const Share& share, const Block& block, Index step, Index offset, const Strided& next) const {
    const PackedBackLayer<T>& layer = network_.back_layer(share.layer, share.direction);
    const Index now = running(share, step, row_count(share)), old = running(share, step + 1, now);
    const Index first_pair = offset + share.row_group;
    const T **d_y = list(share.thread, 0), **h = list(share.thread, 1);
    const Rows<const T> d_output = d_output_of(share.layer);
    for (Index i = 0; i < now; ++i) {
      if (d_output.data)
        d_y[i] = d_output.at(time(share, step, i), rank(share, i)) + share.direction * spec_.state_size();
      h[i] = is_rnn() ? h_after(share, step, rank(share, i)) : h_before(share, step, rank(share, i));
    }

    BackStepArgs<T> args = common_args(share);
    args.panels_reversed = step % 2 == 1;
    args.d_y = d_output.data ? d_y : nullptr;
    args.h = h;
    args.d_a = block.d_a + first_pair * d_a_stride();
    args.d_a_stride = plan_.row_groups * d_a_stride();
    if (plan_.far) {  // the block's are for others; the share has its own
      args.streamed_d_a = std::exchange(args.d_a, share.group.d_a[step % 2]);
      args.streamed_d_a_stride = std::exchange(args.d_a_stride, d_a_stride());
    }
    args.peephole = layer.peephole.data();
    if (tape_.kept_width() > 0) {
      args.kept = kept(share, block, step) + share.row_group * kept_stride();
      args.kept_stride = plan_.row_groups * kept_stride();
      args.kept_slots = kept_slots(spec_.cell);
    }
    if (is_lstm(spec_.cell)) {
      const CellStates c = c_before(share, block, step);
      args.c = c.data + share.row_group * c.stride;
      args.c_stride = plan_.row_groups * c.stride;
      args.c_slots = c.slots;
    }
    if (has_operand_of_weights()) {
      args.operand_of_weights = block.operand_of_weights + first_pair * slot();
      args.operand_of_weights_stride = plan_.row_groups * slot();
    }

    const Strided d_a{args.d_a, args.d_a_stride};
    if (spec_.proj_size > 0) {
      T** out = list_of_places(share.thread, 2);
      T* d_h = block.d_h + first_pair * d_h_stride();
      const Index stride = plan_.row_groups * d_h_stride();
      for (Index i = 0; i < now; ++i) out[i] = d_h + i * stride;
      args.out = out;
      from_step_after(share, BackStage::linear, layer.recurrent, args, next, old, now);
      args.carry = nullptr;
      args.d_y = nullptr;
      run_stage(share, last_back_stage(spec_.cell), layer.projection, args, {d_h, stride}, now);
      return d_a;
    }
    from_step_after(share, last_back_stage(spec_.cell), layer.recurrent, args, next, old, now);
    if (spec_.cell == Cell::gru_reset_before)
      run_stage(share, BackStage::gru_before_reset, layer.candidate, args, d_a, now);
    return d_a;
  }

  BackStepArgs<T> common_args(const Share& share) const {
    BackStepArgs<T> args{};
    args.core = &network_.core();
    args.products = share.group.products;
    args.products_panel_stride = products_stride();
    args.state_stride = network_.state_stride();
    args.carry = share.group.carry;
    args.d_c = share.group.d_c;
    args.slot_stride = slot();
    return args;
  }

  // The first `old` rows ran in the step after, whose gradients come through a product; for the others, up to `now`, this step
  // is the last one, and what comes is the gradient of their final state.
  void from_step_after(const Share& share, BackStage stage, const PackedTransposed<T>& product, BackStepArgs<T> args,
                       const Strided& after, Index old, Index now) const {
    T* const carry = args.carry;
    if (!is_gru(spec_.cell)) args.carry = nullptr;  // nothing passes by the product
    multiply(share, stage, product, args, after, old);
    args.carry = carry;
    skip_rows(args, old);
    args.rows = now - old;
    args.depth = 0;
    set_panels(share, product, args);
    network_.kernels().back_step[static_cast<int>(stage)](args);
    meet(share);
  }

  void run_stage(const Share& share, BackStage stage, const PackedTransposed<T>& product, const BackStepArgs<T>& args,
                 const Strided& operand, Index rows) const {
    multiply(share, stage, product, args, operand, rows);
    meet(share);
  }

  void multiply(const Share& share, BackStage stage, const PackedTransposed<T>& product, BackStepArgs<T> args,
                const Strided& operand, Index rows) const {
    if (rows == 0) return;
    args.rows = rows;
    args.depth = product.depth;
    args.weights = product.weights.data();
    args.operand = operand.data + product.first_slot * slot();
    args.operand_stride = operand.stride;
    set_panels(share, product, args);
    network_.kernels().back_step[static_cast<int>(stage)](args);
  }

  void set_panels(const Share& share, const PackedTransposed<T>& product, BackStepArgs<T>& args) const {
    args.units = product.units;
    std::tie(args.first_panel, args.last_panel) = this->panels(share, product.panels);
  }

  static void skip_rows(BackStepArgs<T>& args, Index rows) {
    const auto skip = [rows](auto*& array, Index stride) {
      if (array) array += rows * stride;
    };
    skip(args.carry, args.state_stride);
    skip(args.d_c, args.state_stride);
    skip(args.kept, args.kept_stride);
    skip(args.c, args.c_stride);
    skip(args.h, 1);
    skip(args.d_y, 1);
    skip(args.out, 1);
    skip(args.d_a, args.d_a_stride);
    skip(args.streamed_d_a, args.streamed_d_a_stride);
    skip(args.operand_of_weights, args.operand_of_weights_stride);
  }

  // What reaches h[-1] and c[-1].
  void initial_state_gradients(const Share& share, const Strided& next) const {
    const PackedBackLayer<T>& layer = network_.back_layer(share.layer, share.direction);
    const Index P = spec_.state_size(), H = spec_.hidden_size;
    T** out = list_of_places(share.thread, 2);
    for (Index i = 0; i < row_count(share); ++i) out[i] = call_.d_h_0 + state_at(share, i, P);
    BackStepArgs<T> args = common_args(share);
    args.out = out;
    from_step_after(share, BackStage::linear, layer.recurrent, args, next, running(share, 0, row_count(share)),
                    row_count(share));
    if (!is_lstm(spec_.cell) || share.unit_group > 0) return;
    for (Index i = 0; i < row_count(share); ++i)
      std::copy_n(share.group.d_c + i * network_.state_stride(), H, call_.d_c_0 + state_at(share, i, H));
  }

  // What was dropped had no part in the loss.
  void undrop(int thread, Index layer) const {
    const T scale = static_cast<T>(1 / (1 - tape_.options.dropout.rate));
    const Index width = spec_.output_size();
    for (Index rank = thread; rank < batch_; rank += plan_.threads())
      for (Index t = 0; t < order_.length(rank); ++t) {
        const Index at = tape_.pairs.at(t, rank) * width;
        T* d = between_[layer % 2] + at;
        const std::uint8_t* mask = tape_.masks[layer] + at;
        for (Index k = 0; k < width; ++k) d[k] = mask[k] ? d[k] * scale : T(0);
      }
  }

  void clear_past_lengths(int thread) const {
    const Rows<T> d_x = d_input_of(0);
    const Index values = tape_.steps * batch_ * spec_.input_size;
    for (Index t = thread; t < tape_.steps; t += plan_.threads())
      for (Index rank = this->running_ranks(t); rank < batch_; ++rank)
        this->pad(d_x.at(t, rank), spec_.input_size, values);
    publish_streamed();
  }

  Index* offsets_ = nullptr;      // [thread][steps of a block + 1]
  Progress* progress_ = nullptr;  // [thread], with mergers: blocks gone back through, or merged
};

}  // namespace gatedrnn
