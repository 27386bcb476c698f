// One call of a network backward through a tape.
//
// Layer by layer from the last, direction by direction, block by block of time steps from the last: first the recurrence, which
// leaves the gradients of the pre-activations of every (step, row) pair of the block, then the products that merge these pairs:
// the gradients of the inputs, and those of the weights, whose sums go on from block to block. A sum belongs to one thread at a
// time and is one chain in the order of steps (last first) and ranks, so that neither blocks nor threads change a bit.
#pragma once

#include <array>
#include <memory>

#include "gatedrnn/tape.h"
#include "run.h"

namespace gatedrnn {

template <class T>
class BackwardRun : private Run<T> {
  using Base = Run<T>;
  using typename Base::Passage;
  using typename Base::Share;

 public:
  BackwardRun(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& call, const Plan& plan)
      : Base(network, usable(plan, tape), tape.batch, {tape.rows.data(), tape.lengths.data(), tape.steps}),
        tape_(tape),
        call_(call) {}

  void carve(Arena& arena) {
    const Index pairs = most_pairs(), threads = plan_.threads();
    d_z_ = arena.take<T>(ring_pairs() * d_z_stride());
    operand_of_weights_ = arena.take<T>(has_operand_of_weights() ? ring_pairs() * slot() : 0);
    d_h_ = arena.take<T>(spec_.proj_size > 0 ? ring_pairs() * d_h_stride() : 0);
    offsets_ = arena.take<Index>(threads * (most_steps() + 1));
    progress_ = arena.take<Progress>(plan_.mergers > 0 ? threads : 0);
    kept_ = arena.take<T>(tape_.recomputing() ? tape_.most_block_steps() * batch_ * tape_.kept_width() : 0);
    for (T*& between : between_)
      between = arena.take<T>(spec_.num_layers > 1 ? tape_.steps * batch_ * spec_.output_size() : 0);
    lists_ = arena.take<const T*>(threads * kLists * std::max(pairs, this->most_rows()));
    packed_x_ = arena.take<T>(threads * packed_x_size());
    packed_d_ = arena.take<T>(threads * kSlice * kChunk * kOuterColumns);
    column_sums_ = arena.take<T>(column_sum_count() * slot());
    input_products_ = arena.take<T>(threads * panel_count(widest_input()) * input_products_stride());
    const Index state = this->most_rows() * network_.state_stride();
    const Index panels = panel_count(std::max(spec_.hidden_size, spec_.state_size()));
    this->carve_groups(arena, tape_.recomputing() ? Base::Forward::replay : Base::Forward::no, [&](Group<T>& group) {
      group.carry = arena.take<T>(state);
      if (is_lstm(spec_.cell)) group.d_c = arena.take<T>(state);
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
  using Base::batch_, Base::everyone_, Base::network_, Base::order_, Base::plan_, Base::spec_;
  using Base::length, Base::meet, Base::rank, Base::row_count, Base::running, Base::state_at, Base::time;

  // The products of weights' gradients take a slice of the pairs at a time. Rows of the left side that are less than a page
  // apart are read where they are, in slices whose parts of the right side fit into the first-level cache. Rows further apart
  // are packed, a chunk of groups of columns at a time, in long slices: each is a pass over sums that are large there too.
  static constexpr Index kPage = 4096;
  static constexpr Index kNearSlice = 128, kSlice = 512;
  static constexpr Index kChunk = 8;
  static constexpr Index kInputRows = 192;  // pairs whose inputs' gradients are computed together
  static constexpr Index kPeepholes = 3;
  static constexpr int kLists = 3;

  // What the recurrence of one block leaves, a row for each (step, rank) pair.
  struct Block {
    Index begin, end;  // steps
    Index pairs;
    bool first;             // that is merged
    T* d_z;                 // [pair][d_z_stride]
    T* operand_of_weights;  // [pair][slot]
    T* d_h;                 // [pair][d_h_stride]: before the projection
  };

  // One matrix of weights: its gradient is the sum over pairs of (a slot of the left side) x (a row of the right side).
  struct WeightSum {
    bool left_is_d_h;
    Index first_slot, slots, columns, depth;
    const T* const* right;
    T* gradient;       // [gate][column][depth]
    const int* gates;  // of each slot
  };

  struct Strided {
    const T* data;
    Index stride;
  };

  // The LSTM's c of each row, the last of `slots` values per unit.
  struct CellStates {
    const T* data;
    Index stride, slots;
  };

  // ---- Sizes -------------------------------------------------------------------------------------------------------------
  int lanes() const { return network_.kernels().lanes; }
  Index slot() const { return slot_stride(spec_.hidden_size, lanes()); }
  static Index odd_lines(Index count) {
    constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
    return round_up(count, 2 * line) + line;
  }
  // A line more than the values, so that what reads on to a multiple of kOuterColumns stays in the row.
  Index d_z_stride() const { return odd_lines(gradient_slots(spec_.cell) * slot()); }
  Index d_h_stride() const { return odd_lines(spec_.state_size()); }
  Index packed_x_size() const {
    return kSlice * round_up(std::max({widest_input(), spec_.hidden_size, spec_.state_size()}), lanes());
  }
  // Blocks follow each other in a ring, which so stays in the cache. What the next one must not overwrite while it begins: a
  // thread alone reads the last step's pairs; of several, some may still be at the products of the whole block. With room for
  // two of these beyond a block, one that goes back to the front does not reach them while they are in use.
  Index ring_pairs() const {
    const Index most = most_pairs(), in_use = plan_.threads() == 1 ? batch_ : most;
    return most + 2 * in_use;
  }
  // Of every slot, and of the peepholes.
  Index column_sum_count() const {
    return gradient_slots(spec_.cell) + (spec_.cell == Cell::lstm_peephole ? kPeepholes : 0);
  }
  Index panel_count(Index units) const { return ceil_div(units, kBackVectors * lanes()); }
  Index products_stride() const { return odd_lines(this->most_rows() * kBackVectors * lanes()); }
  Index input_products_stride() const { return odd_lines(kInputRows * kBackVectors * lanes()); }
  Index widest_input() const { return std::max(spec_.input_size, spec_.output_size()); }
  bool has_operand_of_weights() const { return spec_.cell == Cell::gru_reset_before || spec_.proj_size > 0; }
  bool is_rnn() const { return spec_.cell == Cell::rnn_tanh || spec_.cell == Cell::rnn_relu; }
  const T** list(int thread, int which) const {
    return lists_ + (thread * kLists + which) * std::max(most_pairs(), this->most_rows());
  }

  // ---- Where things are --------------------------------------------------------------------------------------------------
  Rows<const T> dense(const T* data) const {
    return {data, batch_ * spec_.output_size(), spec_.output_size(), nullptr};
  }
  Rows<const T> input_of(Index layer) const {
    if (layer == 0) return {call_.x, call_.x_step, call_.x_row, order_.rows};
    return dense((tape_.inputs.empty() ? tape_.outputs : tape_.inputs)[layer - 1]);
  }
  // The gradients of a layer's output, and of its input.
  Rows<const T> d_output_of(Index layer) const {
    if (layer == spec_.num_layers - 1) return {call_.d_y, call_.d_y_step, call_.d_y_row, order_.rows};
    return dense(between_[layer % 2]);
  }
  Rows<T> d_input_of(Index layer) const {
    if (layer == 0) return {call_.d_x, call_.d_x_step, call_.d_x_row, order_.rows};
    return {between_[(layer - 1) % 2], batch_ * spec_.output_size(), spec_.output_size(), nullptr};
  }
  const T* kept(const Share& share, const Block& block, Index step) const {
    const T* base =
        tape_.recomputing() ? kept_ - block.begin * batch_ * tape_.kept_width() : tape_.kept[this->track(share)];
    return base + step * batch_ * tape_.kept_width();
  }
  // The LSTM's c before a step, of rank 0.
  CellStates c_before(const Share& share, const Block& block, Index step) const {
    const Index H = spec_.hidden_size;
    const T* checkpoints = tape_.c[this->track(share)];
    if (tape_.recomputing() && step == block.begin) {
      const auto at = std::lower_bound(tape_.blocks.begin(), tape_.blocks.end(), step) - tape_.blocks.begin();
      return {checkpoints + at * batch_ * H, H, 1};
    }
    return step == 0 ? CellStates{checkpoints, H, 1} : c_after(share, block, step - 1);
  }
  CellStates c_after(const Share& share, const Block& block, Index step) const {
    return {kept(share, block, step), tape_.kept_width(), kept_slots(spec_.cell)};
  }
  const T* h_before(const Share& share, Index step, Index i) const {
    const Index P = spec_.state_size(), r = rank(share, i);
    if (step == 0) return tape_.h_0 + (this->track(share) * batch_ + r) * P;
    return dense(tape_.outputs[share.layer]).at(time(share, step - 1, i), r) + share.direction * P;
  }
  const T* h_of(const Share& share, Index step, Index i) const {
    return dense(tape_.outputs[share.layer]).at(time(share, step, i), rank(share, i)) +
           share.direction * spec_.state_size();
  }

  // ---- Blocks and threads ------------------------------------------------------------------------------------------------
  // Mergers would need recomputed values for longer than these last.
  static Plan usable(Plan plan, const Tape<T>& tape) {
    if (tape.recomputing()) plan.mergers = 0;
    return plan;
  }

  // The tape's blocks; for mergers shorter ones, about as long as the plan says.
  Index block_count() const {
    if (plan_.mergers == 0) return static_cast<Index>(tape_.blocks.size()) - 1;
    return ceil_div(tape_.blocks.back(), std::max<Index>(1, plan_.block_rows / batch_));
  }
  Index block_begin(Index block) const {
    return plan_.mergers == 0 ? tape_.blocks[block] : tape_.blocks.back() * block / block_count();
  }
  Index most_steps() const {
    return plan_.mergers == 0 ? tape_.most_block_steps()
                              : ceil_div(tape_.blocks.back(), std::max<Index>(1, block_count()));
  }
  Index most_pairs() const { return plan_.mergers == 0 ? tape_.most_block_rows() : most_steps() * batch_; }

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
            {thread, this->units_of(place), this->row_group_of(place), this->group_of(place), layer, direction});
      if (layer > 0 && !tape_.masks.empty()) {
        undrop(thread, layer - 1);
        everyone_.wait();
      }
    }
    if (call_.d_x) clear_past_lengths(thread);
  }

  void run_direction(const Share& share) {
    if (in_grid(share.thread)) {
      if (share.units == 0) load_state(share);
      meet(share);
    }
    Index* offsets = offsets_ + share.thread * (most_steps() + 1);
    const T* next = nullptr;  // the gradients of the pre-activations of the step after, of rank 0
    Index ring_end = 0;
    const Index blocks = block_count();
    for (Index b = 0; b < blocks; ++b) {
      const Block block = take_block(b, offsets, ring_end);
      const Index handed_over = tracks_before(share) * (blocks - 1) + b;  // from the grid to mergers
      if (in_grid(share.thread)) {
        await_mergers(handed_over - 1);  // one block behind at most, as the ring has room for
        next = go_back(share, block, offsets, next);
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
    if (blocks == 0) clear_gradients(merger(share, true));
    deliver_column_sums(merger(share, true));
    everyone_.wait();
  }

  // The b-th block from the end, and a place for it in the ring.
  Block take_block(Index b, Index* offsets, Index& ring_end) const {
    const Index begin = block_begin(block_count() - 1 - b), end = block_begin(block_count() - b);
    const Index pairs = list_offsets(begin, end, offsets);
    const Index at = ring_end + pairs <= ring_pairs() ? ring_end : 0;
    ring_end = at + pairs;
    return {begin,
            end,
            pairs,
            b == 0,
            d_z_ + at * d_z_stride(),
            operand_of_weights_ + at * slot(),
            d_h_ + at * d_h_stride()};
  }

  // The recurrence of one block: returns the last gradients of pre-activations.
  const T* go_back(const Share& share, const Block& block, const Index* offsets, const T* next) {
    if (tape_.recomputing()) recompute(share, block);
    for (Index step = block.end - 1; step >= block.begin; --step) {
      const Index offset = offsets[block.end - 1 - step];
      take_step(share, block, step, offset, next);
      next = block.d_z + offset * d_z_stride();
    }
    return next;
  }

  void merge(const Share& share, const Block& block, const Index* offsets) const {
    list_operands(share, block);
    add_to_gradients(share, block, offsets);
    if (d_input_of(share.layer).data) input_gradients(share, block);
  }

  // Where each step's pairs begin, from the last step to the first; returns how many there are.
  Index list_offsets(Index begin, Index end, Index* offsets) const {
    Index pairs = 0, *offset = offsets;
    for (Index step = end - 1; step >= begin; --step) {
      *offset++ = pairs;
      pairs += running_ranks(step);
    }
    *offset = pairs;
    return pairs;
  }

  Index running_ranks(Index step) const {
    const Index *lengths = order_.lengths, *rows = order_.rows;
    return std::partition_point(rows, rows + batch_, [&](Index row) { return lengths[row] > step; }) - rows;
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
    if (is_lstm(spec_.cell) && share.units == 0) {
      const CellStates c = c_before(share, block, block.begin);
      for (Index i = 0; i < running(share, block.begin, row_count(share)); ++i)
        std::copy_n(c.data + rank(share, i) * c.stride, spec_.hidden_size, share.group.c + i * network_.state_stride());
    }
    meet(share);
    const Passage passage{input_of(share.layer), {}, kept_, block.begin, tape_.kept_width()};
    this->replay(share, passage, block.begin, block.end, [&](Index step, Index i) { return h_before(share, step, i); });
  }

  // ---- One step ----------------------------------------------------------------------------------------------------------
  void take_step(const Share& share, const Block& block, Index step, Index offset, const T* next) const {
    const PackedBackLayer<T>& layer = network_.back_layer(share.layer, share.direction);
    const Index now = running(share, step, row_count(share)), old = running(share, step + 1, now);
    const Index first_pair = offset + share.row_group;
    const T **d_y = list(share.thread, 0), **h = list(share.thread, 1);
    const Rows<const T> d_output = d_output_of(share.layer);
    for (Index i = 0; i < now; ++i) {
      if (d_output.data)
        d_y[i] = d_output.at(time(share, step, i), rank(share, i)) + share.direction * spec_.state_size();
      h[i] = is_rnn() ? h_of(share, step, i) : h_before(share, step, i);
    }

    BackStepArgs<T> args = common_args(share);
    args.backwards = step % 2 == 1;
    args.d_y = d_output.data ? d_y : nullptr;
    args.h = h;
    args.d_z = block.d_z + first_pair * d_z_stride();
    args.d_z_stride = plan_.row_groups * d_z_stride();
    args.peephole = layer.peephole.data();
    if (tape_.kept_width() > 0) {
      args.kept = kept(share, block, step) + share.row_group * tape_.kept_width();
      args.kept_stride = plan_.row_groups * tape_.kept_width();
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
    const Strided after{next ? next + share.row_group * d_z_stride() : nullptr, plan_.row_groups * d_z_stride()};

    if (spec_.proj_size > 0) {
      T** out = const_cast<T**>(list(share.thread, 2));
      T* d_h = block.d_h + first_pair * d_h_stride();
      const Index stride = plan_.row_groups * d_h_stride();
      for (Index i = 0; i < now; ++i) out[i] = d_h + i * stride;
      args.out = out;
      from_step_after(share, BackStage::linear, layer.recurrent, args, after, old, now);
      args.carry = nullptr;
      args.d_y = nullptr;
      run_stage(share, last_back_stage(spec_.cell), layer.projection, args, {d_h, stride}, now);
      return;
    }
    from_step_after(share, last_back_stage(spec_.cell), layer.recurrent, args, after, old, now);
    if (spec_.cell == Cell::gru_reset_before)
      run_stage(share, BackStage::gru_before_reset, layer.candidate, args, {args.d_z, args.d_z_stride}, now);
  }

  BackStepArgs<T> common_args(const Share& share) const {
    BackStepArgs<T> args{};
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
    skip(args.d_z, args.d_z_stride);
    skip(args.operand_of_weights, args.operand_of_weights_stride);
  }

  // What reaches h[-1] and c[-1].
  void initial_state_gradients(const Share& share, const T* next) const {
    const PackedBackLayer<T>& layer = network_.back_layer(share.layer, share.direction);
    const Index P = spec_.state_size(), H = spec_.hidden_size;
    T** out = const_cast<T**>(list(share.thread, 2));
    for (Index i = 0; i < row_count(share); ++i) out[i] = call_.d_h_0 + state_at(share, i, P);
    BackStepArgs<T> args = common_args(share);
    args.out = out;
    const Strided after{next ? next + share.row_group * d_z_stride() : nullptr, plan_.row_groups * d_z_stride()};
    from_step_after(share, BackStage::linear, layer.recurrent, args, after, running(share, 0, row_count(share)),
                    row_count(share));
    if (!is_lstm(spec_.cell) || share.units > 0) return;
    for (Index i = 0; i < row_count(share); ++i)
      std::copy_n(share.group.d_c + i * network_.state_stride(), H, call_.d_c_0 + state_at(share, i, H));
  }

  // ---- The products that merge a block's pairs ---------------------------------------------------------------------------
  // This track's matrices. The lists of rows of their right sides are this thread's.
  std::array<WeightSum, 4> weight_sums(const Share& share) const {
    static constexpr int in_order[] = {0, 1, 2, 3}, candidate_first[] = {2, 0, 1}, candidate[] = {2};
    const Index H = spec_.hidden_size, P = spec_.state_size(), I = spec_.layer_input_size(share.layer);
    const LayerGradients<T>& to = call_.gradients[this->track(share)];
    const T *const *x = list(share.thread, 0), *const *h = list(share.thread, 1),
                   *const *operand = list(share.thread, 2);
    const bool reset_after = spec_.cell == Cell::gru, reset_before = spec_.cell == Cell::gru_reset_before;
    const Index gates = gate_count(spec_.cell);
    return {{
        {false, 0, gates, H, I, x, to.weight_ih, reset_after ? candidate_first : in_order},
        {false, reset_after ? 1 : 0, reset_before ? 2 : gates, H, P, h, to.weight_hh, in_order},
        {false, 2, reset_before ? 1 : 0, H, P, operand, to.weight_hh, candidate},
        {true, 0, spec_.proj_size > 0 ? 1 : 0, P, H, operand, to.weight_hr, in_order},
    }};
  }

  // This thread's part of `count` things.
  std::pair<Index, Index> part_of(const Share& share, Index count) const {
    return {count * share.part / share.parts, count * (share.part + 1) / share.parts};
  }

  // The rows of the right sides, for each pair of the block.
  void list_operands(const Share& share, const Block& block) const {
    const T **x = list(share.thread, 0), **h = list(share.thread, 1), **operand = list(share.thread, 2);
    const Rows<const T> in = input_of(share.layer);
    Index pair = 0;
    for (Index step = block.end - 1; step >= block.begin; --step)
      for (Index r = 0, count = running_ranks(step); r < count; ++r, ++pair) {
        const Index t = share.direction == 0 ? step : order_.length(r) - 1 - step;
        x[pair] = in.at(t, r);
        h[pair] = step == 0 ? tape_.h_0 + (this->track(share) * batch_ + r) * spec_.state_size()
                            : dense(tape_.outputs[share.layer]).at(share.direction == 0 ? t - 1 : t + 1, r) +
                                  share.direction * spec_.state_size();
        operand[pair] = block.operand_of_weights + pair * slot();
      }
  }

  void add_to_gradients(const Share& share, const Block& block, const Index* offsets) const {
    for (const WeightSum& sum : weight_sums(share)) add_products(share, block, sum);
    const auto [begin, end] = part_of(share, column_sum_count());
    for (Index c = begin; c < end; ++c) {
      T* sums = column_sums_ + c * slot();
      if (block.first) std::fill_n(sums, slot(), T(0));
      const Index slots = gradient_slots(spec_.cell);
      if (c < slots)
        network_.kernels().sum_columns(
            {block.pairs, spec_.hidden_size, block.d_z + c * slot(), nullptr, d_z_stride(), 0, 0, sums});
      else
        add_peephole(share, block, offsets, static_cast<int>(c - slots), sums);
    }
  }

  // For one matrix the products of all pairs, a slice of them at a time, for this thread's columns of the left side.
  void add_products(const Share& share, const Block& block, const WeightSum& sum) const {
    const auto [begin, end] = groups_of(share, sum);
    if (begin == end) return;
    const T* data = sum.left_is_d_h ? block.d_h : block.d_z + sum.first_slot * slot();
    const Index stride = sum.left_is_d_h ? d_h_stride() : d_z_stride();
    const Index slice = share_pages(stride) ? kNearSlice : kSlice;
    T* packed_x = packed_x_ + share.thread * packed_x_size();
    for (Index first = 0; first < block.pairs; first += slice) {
      OuterArgs<T> args{};
      args.count = std::min(slice, block.pairs - first);
      args.sums_stride = sum.depth;
      args.from_zero = block.first && first == 0 && !call_.accumulate;
      // A part of the next slice was written by other threads and is in their caches.
      if (share_pages(stride) && plan_.threads() > 1)
        args.d_ahead = std::min(args.count, block.pairs - first - args.count) * stride;
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        network_.kernels().pack_rows({sum.right + first, args.count, at, width, vectors, packed_x + at * args.count});
      });
      add_slice(share, sum, {data + first * stride, stride}, packed_x, args);
    }
  }

  static bool share_pages(Index stride) { return stride * static_cast<Index>(sizeof(T)) < kPage; }

  // A slot's columns are dealt out in groups.
  std::pair<Index, Index> groups_of(const Share& share, const WeightSum& sum) const {
    return part_of(share, sum.slots * ceil_div(sum.columns, kOuterColumns));
  }

  void add_slice(const Share& share, const WeightSum& sum, const Strided& left, const T* packed_x,
                 OuterArgs<T> args) const {
    const Index groups = ceil_div(sum.columns, kOuterColumns), most = share_pages(left.stride) ? groups : kChunk;
    const Index ahead = args.d_ahead;
    const auto [begin, end] = groups_of(share, sum);
    for (Index group = begin; group < end;) {
      const Index s = group / groups, column = group % groups * kOuterColumns;
      const Index chunk = std::min({most, groups - group % groups, end - group});
      args.columns = std::min(chunk * kOuterColumns, sum.columns - column);
      set_left(share, {left.data + s * slot() + column, left.stride}, chunk, args);
      for_each_part(sum, [&](Index at, Index width, int vectors) {
        args.width = width;
        args.d_ahead = at == 0 ? ahead : 0;
        args.x = packed_x + at * args.count;
        args.vectors = vectors;
        args.sums = sum.gradient + (sum.gates[s] * sum.columns + column) * sum.depth + at;
        network_.kernels().outer(args);
      });
      group += chunk;
    }
  }

  // So many groups of the left side, where they are or packed.
  void set_left(const Share& share, const Strided& left, Index groups, OuterArgs<T>& args) const {
    if (share_pages(left.stride)) {
      args.d = left.data;
      args.d_group_stride = kOuterColumns;
      args.d_stride = left.stride;
      return;
    }
    T* packed = packed_d_ + share.thread * kSlice * kChunk * kOuterColumns;
    network_.kernels().pack_columns({left.data, left.stride, args.count, groups, packed});
    args.d = packed;
    args.d_group_stride = args.count * kOuterColumns;
    args.d_stride = kOuterColumns;
  }

  // The right side's values in parts that differ by at most a vector: `part(first value, values, vectors)`.
  template <class Part>
  void for_each_part(const WeightSum& sum, Part&& part) const {
    const Index vectors = ceil_div(sum.depth, lanes()), parts = ceil_div(vectors, kOuterVectors);
    for (Index p = 0; p < parts; ++p) {
      const Index first = vectors * p / parts, last = vectors * (p + 1) / parts;
      part(first * lanes(), std::min(last * lanes(), sum.depth) - first * lanes(), static_cast<int>(last - first));
    }
  }

  // i and f see c before the step, o sees it after.
  void add_peephole(const Share& share, const Block& block, const Index* offsets, int gate, T* sums) const {
    constexpr Index slots[] = {0, 1, 3};
    for (Index step = block.end - 1; step >= block.begin; --step) {
      const Index* offset = offsets + (block.end - 1 - step);
      const CellStates c = gate < 2 ? c_before(share, block, step) : c_after(share, block, step);
      network_.kernels().sum_columns({offset[1] - offset[0], spec_.hidden_size,
                                      block.d_z + offset[0] * d_z_stride() + slots[gate] * slot(), c.data, d_z_stride(),
                                      c.stride, c.slots, sums});
    }
  }

  // The sums of columns to the biases and peepholes.
  void deliver_column_sums(const Share& share) const {
    const LayerGradients<T>& to = call_.gradients[this->track(share)];
    const Index H = spec_.hidden_size, slots = gradient_slots(spec_.cell);
    const auto [begin, end] = part_of(share, column_sum_count());
    for (Index c = begin; c < end; ++c) {
      const auto deliver = [&](T* gradient) {
        if (!gradient) return;
        const T* sums = column_sums_ + c * slot();
        for (Index i = 0; i < H; ++i) gradient[i] = call_.accumulate ? gradient[i] + sums[i] : sums[i];
      };
      if (c >= slots) {
        deliver(to.peephole[c - slots]);
        continue;
      }
      // The reset-after GRU's slots are n_x, r, z, n_h.
      const bool reset_after = spec_.cell == Cell::gru;
      const Index gate = !reset_after ? c : c == 0 || c == 3 ? 2 : c - 1;
      if (to.bias_ih && !(reset_after && c == 3)) deliver(to.bias_ih + gate * H);
      if (to.bias_hh && !(reset_after && c == 0)) deliver(to.bias_hh + gate * H);
    }
  }

  // Where no step ran there is nothing to add.
  void clear_gradients(const Share& share) const {
    if (!call_.accumulate)
      for (const WeightSum& sum : weight_sums(share)) {
        const auto [begin, end] = part_of(share, sum.slots * sum.columns * sum.depth);
        if (sum.slots == 0) continue;
        T* gradient = sum.gradient + *std::min_element(sum.gates, sum.gates + sum.slots) * sum.columns * sum.depth;
        if (begin < end) std::fill(gradient + begin, gradient + end, T(0));
      }
    const auto [begin, end] = part_of(share, column_sum_count());
    std::fill(column_sums_ + begin * slot(), column_sums_ + end * slot(), T(0));
  }

  // This thread's part of the block's pairs.
  void input_gradients(const Share& share, const Block& block) const {
    const PackedTransposed<T>& product = network_.back_layer(share.layer, share.direction).input;
    const Rows<T> to = d_input_of(share.layer);
    const auto [begin, end] = part_of(share, block.pairs);
    T** out = const_cast<T**>(list(share.thread, 2));
    Index pair = 0;
    for (Index step = block.end - 1; step >= block.begin; --step)
      for (Index r = 0, count = running_ranks(step); r < count; ++r, ++pair)
        if (pair >= begin && pair < end)
          out[pair - begin] = to.at(share.direction == 0 ? step : order_.length(r) - 1 - step, r);
    BackStepArgs<T> args{};
    args.depth = product.depth;
    args.units = product.units;
    args.last_panel = product.panels;
    args.weights = product.weights.data();
    args.operand_stride = d_z_stride();
    args.products = input_products_ + share.thread * panel_count(widest_input()) * input_products_stride();
    args.products_panel_stride = input_products_stride();
    args.add = share.direction > 0;
    for (Index first = begin; first < end; first += kInputRows, args.backwards = !args.backwards) {
      args.rows = std::min(kInputRows, end - first);
      args.operand = block.d_z + first * d_z_stride() + product.first_slot * slot();
      args.out = out + (first - begin);
      network_.kernels().back_step[static_cast<int>(BackStage::linear)](args);
    }
  }

  // What was dropped had no part in the loss.
  void undrop(int thread, Index layer) const {
    const T scale = static_cast<T>(1 / (1 - tape_.options.dropout.rate));
    const Index width = spec_.output_size();
    for (Index rank = thread; rank < batch_; rank += plan_.threads())
      for (Index t = 0; t < order_.length(rank); ++t) {
        const Index at = (t * batch_ + rank) * width;
        T* d = between_[layer % 2] + at;
        const std::uint8_t* mask = tape_.masks[layer] + at;
        for (Index k = 0; k < width; ++k) d[k] = mask[k] ? d[k] * scale : T(0);
      }
  }

  void clear_past_lengths(int thread) const {
    const Rows<T> d_x = d_input_of(0);
    for (Index rank = thread; rank < batch_; rank += plan_.threads())
      for (Index t = order_.length(rank); t < tape_.steps; ++t) std::fill_n(d_x.at(t, rank), spec_.input_size, T(0));
  }

  const Tape<T>& tape_;
  const BackwardCall<T>& call_;
  // The ring of blocks.
  T* d_z_ = nullptr;
  T* operand_of_weights_ = nullptr;
  T* d_h_ = nullptr;
  Index* offsets_ = nullptr;      // [thread][steps of a block + 1]
  T* kept_ = nullptr;             // with recomputing: of one block
  T* between_[2] = {};            // the gradients of the layers' outputs, in turns
  const T** lists_ = nullptr;     // [thread][kLists][pairs]
  Progress* progress_ = nullptr;  // [thread], with mergers: blocks gone back through, or merged
  T* packed_x_ = nullptr;         // [thread][part][pair of a slice][vectors of the part][lanes]
  T* packed_d_ = nullptr;         // [thread][group of a chunk][pair of a slice][kOuterColumns]
  T* column_sums_ = nullptr;      // [slot or peephole][slot stride]
  T* input_products_ = nullptr;
};

}  // namespace gatedrnn
