// One call of a network backward through a tape.
//
// Layer by layer from the last, direction by direction, block by block of time steps from the last: first the recurrence, which
// leaves the gradients of the pre-activations of every (step, row) pair of the block, then the products over these pairs, at
// the latest while the recurrence of the next block goes on. A sum belongs to one thread at a time, takes up the pairs in the order
// of steps (last first) and ranks, and is cut into blocks of pairs that depend on lengths alone, so that neither blocks of steps
// nor threads change a bit.
#pragma once

#include <memory>

#include "weight_gradients.h"

namespace gatedrnn {

template <class T>
class BackwardRun : private WeightGradients<T> {
  using Base = WeightGradients<T>;
  using typename Base::Block;
  using typename Base::CellStates;
  using typename Base::GradientPart;
  using typename Base::Passage;
  using typename Base::Share;
  using typename Base::Strided;
  using typename Base::Track;

 public:
  BackwardRun(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& call, const Plan& plan)
      : Base(network, tape, call, plan) {}

  void carve(Arena& arena) {
    Base::carve(arena);
    const Index threads = plan_.threads();
    offsets_ = arena.take<Index>(2 * threads * this->offsets_size());
    const Index state = this->most_rows() * network_.state_stride();
    const Index panels = panel_count(std::max(spec_.hidden_size, spec_.state_size()));
    this->carve_groups(arena, tape_.recomputing() ? Base::Forward::replay : Base::Forward::no, [&](Group<T>& group) {
      group.carry = arena.take<T>(state);
      if (has_c()) group.d_c = arena.take<T>(state);
      for (T*& d_a : group.d_a) d_a = arena.take<T>(plan_.far ? this->most_rows() * d_a_stride() : 0);
      group.products = arena.take<T>(panels * products_stride());
    });
  }

  // False where run_team is.
  bool start() { return this->run_on_team(Patience::wait, this); }

  // A thread's part of the call.
  void work(Member& member) {
    const FlushDenormals flush;
    this->go_through_layers(member, [&](const Track& track) { run_direction(member, track); });
  }

 private:
  using Base::batch_, Base::between_, Base::call_, Base::cell_, Base::kept_, Base::network_, Base::order_, Base::plan_,
      Base::spec_, Base::tape_;
  using Base::block_count, Base::c_before, Base::d_h_stride, Base::d_input_of, Base::d_output_of, Base::d_a_stride,
      Base::for_units, Base::h_after, Base::h_before, Base::has_c, Base::has_operand_of_weights, Base::input_of,
      Base::kept, Base::kept_pairs, Base::kept_stride, Base::lanes, Base::length, Base::list, Base::list_of_places,
      Base::add_block, Base::most_steps, Base::panel_count, Base::rank, Base::row_count, Base::running, Base::slot,
      Base::state_at, Base::take_block, Base::time;

  Index products_stride() const { return odd_lines<T>(this->most_rows() * kBackVectors * lanes()); }

  // ---- The walk ----------------------------------------------------------------------------------------------------------
  Share share_of(Member& member, int group, const Track& track) const {
    return {track, member, this->row_group_of(group), this->groups_[group]};
  }

  void run_direction(Member& member, const Track& track) {
    this->for_groups(member, [&](int group) { load_state(share_of(member, group, track)); });
    if (plan_.gradient_threads > 0)
      go_back_beside_gradients(member, track);
    else
      go_back_and_add(member, track);
    const Index blocks = block_count();
    this->for_groups(member, [&](int group) { initial_state_gradients(share_of(member, group, track)); });
    if (blocks == 0 && !call_.accumulate)
      member.phase([&](int part) { this->clear_gradients({track, member, part, plan_.threads()}); });
  }

  // All threads do both in turns. A thread adds a block to the gradients when all have gone back through it, and then goes on to its rows of the
  // next one.
  void go_back_and_add(Member& member, const Track& track) {
    Index* offsets[2] = {offsets_of(member, 0), offsets_of(member, 1)};
    Block before{};
    Index ring_end = 0;
    const Index blocks = block_count();
    for (Index b = 0; b <= blocks; ++b) {
      const Block block = b < blocks ? take_block(b, offsets[b % 2], ring_end) : Block{};
      const auto add_before = [&](int part) {
        if (b > 0) add_block({track, member, part, plan_.threads()}, before, offsets[(b - 1) % 2]);
      };
      const auto go_on = [&](int group) {
        if (b < blocks) go_back(share_of(member, group, track), block, offsets[b % 2]);
      };
      if (plan_.unit_groups > 1 || tape_.recomputing()) {  // what was kept is needed until the block is added
        member.phase(add_before);
        this->for_groups(member, go_on);
      } else {
        member.phase([&](int part) {
          add_before(part);
          go_on(part);
        });
      }
      before = block;
    }
  }

  // Some threads go back through a block while others add the one before to the gradients. All add the last one.
  void go_back_beside_gradients(Member& member, const Track& track) {
    Index* offsets[2] = {offsets_of(member, 0), offsets_of(member, 1)};
    Block before{};
    Index ring_end = 0;
    const Index blocks = block_count();
    for (Index b = 0; b < blocks; ++b) {
      const Block block = take_block(b, offsets[b % 2], ring_end);
      member.phase([&](int part) {
        const int index = part - plan_.grid();
        if (index < 0)
          go_back(share_of(member, part, track), block, offsets[b % 2]);
        else if (b > 0)
          add_block({track, member, index, plan_.gradient_threads}, before, offsets[(b - 1) % 2]);
      });
      before = block;
    }
    if (blocks > 0)
      member.phase(
          [&](int part) { add_block({track, member, part, plan_.threads()}, before, offsets[(blocks - 1) % 2]); });
  }

  Index* offsets_of(const Member& member, int turn) const {
    return offsets_ + (2 * member.thread() + turn) * this->offsets_size();
  }

  // The recurrence of one block. The group keeps the gradients of the pre-activations of the step after, of the share's rows.
  void go_back(const Share& share, const Block& block, const Index* offsets) {
    if (tape_.recomputing()) recompute(share, block);
    Strided next{share.group.next, share.group.next_stride};
    for (Index step = block.end - 1; step >= block.begin; --step) {
      next = take_step(share, block, step, offsets[block.end - 1 - step], next);
      this->look_up(share.member, static_cast<double>(row_count(share)) * this->step_work());
    }
    for_units(share, [&](int part) {
      if (plan_.far) publish_streamed();
      if (part > 0) return;
      share.group.next = next.data;
      share.group.next_stride = next.stride;
    });
  }

  // The gradients of the final state; scratch past the last unit is zero, since products run over it.
  void load_state(const Share& share) const {
    const Index P = spec_.state_size(), H = spec_.hidden_size, stride = network_.state_stride();
    const auto load = [&](const T* from, Index width, Index i, T* to) {
      std::fill_n(to, stride, T(0));
      if (from) std::copy_n(from + state_at(share, i, width), width, to);
    };
    for_units(share, [&](int part) {
      if (part > 0) return;
      share.group.next = nullptr;
      share.group.next_stride = 0;
      for (Index i = 0; i < row_count(share); ++i) {
        load(call_.d_h_n, P, i, share.group.carry + i * stride);
        if (has_c()) load(call_.d_c_n, H, i, share.group.d_c + i * stride);
      }
    });
  }

  // What the block's steps kept, from the outputs and the c before it.
  void recompute(const Share& share, const Block& block) {
    if (has_c())
      for_units(share, [&](int part) {
        if (part > 0) return;
        const CellStates c = c_before(share, block, block.begin);
        for (Index i = 0; i < running(share, block.begin, row_count(share)); ++i)
          std::copy_n(c.data + rank(share, i) * c.stride, spec_.hidden_size,
                      share.group.c + i * network_.state_stride());
      });
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
    const T **d_y = list(share.member.thread(), 0), **h = list(share.member.thread(), 1);
    const Rows<const T> d_output = d_output_of(share.layer);
    for (Index i = 0; i < now; ++i) {
      if (d_output.data)
        d_y[i] = d_output.at(time(share, step, i), rank(share, i)) + share.direction * spec_.state_size();
      h[i] =
          cell_.h_read == HRead::after ? h_after(share, step, rank(share, i)) : h_before(share, step, rank(share, i));
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
      args.kept_slots = cell_.kept;
    }
    if (has_c()) {
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
      T** out = list_of_places(share.member.thread(), 2);
      T* d_h = block.d_h + first_pair * d_h_stride();
      const Index stride = plan_.row_groups * d_h_stride();
      for (Index i = 0; i < now; ++i) out[i] = d_h + i * stride;
      args.out = out;
      from_step_after(share, kLinear, layer.recurrent, args, next, old, now);
      args.carry = nullptr;
      args.d_y = nullptr;
      run_stage(share, 0, layer.projection, args, {d_h, stride}, now);
      return d_a;
    }
    from_step_after(share, 0, layer.recurrent, args, next, old, now);
    if (cell_.two_stages()) run_stage(share, 1, layer.second, args, d_a, now);
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
  void from_step_after(const Share& share, int stage, const PackedTransposed& product, BackStepArgs<T> args,
                       const Strided& after, Index old, Index now) const {
    BackStepArgs<T> last = args;
    skip_rows(last, old);
    last.rows = now - old;
    last.depth = 0;
    if (!cell_.passes_h) args.carry = nullptr;  // nothing passes by the product
    for_units(share, [&](int part) {
      multiply(part, stage, product, args, after, old);
      set_panels(part, product, last);
      network_.kernels().back_step(spec_.cell, stage, last);
    });
  }

  void run_stage(const Share& share, int stage, const PackedTransposed& product, BackStepArgs<T> args,
                 const Strided& operand, Index rows) const {
    for_units(share, [&](int part) { multiply(part, stage, product, args, operand, rows); });
  }

  void multiply(int part, int stage, const PackedTransposed& product, BackStepArgs<T>& args, const Strided& operand,
                Index rows) const {
    if (rows == 0) return;
    args.rows = rows;
    args.depth = product.weights.depth;
    args.slot_units = product.slot_units;
    args.weights = product.weights.data();
    args.operand = operand.data + product.first_slot * slot();
    args.operand_stride = operand.stride;
    set_panels(part, product, args);
    network_.kernels().back_step(spec_.cell, stage, args);
  }

  void set_panels(int part, const PackedTransposed& product, BackStepArgs<T>& args) const {
    args.units = product.units;
    std::tie(args.first_panel, args.last_panel) = this->panels(part, product.weights.panels);
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
  void initial_state_gradients(const Share& share) const {
    const PackedBackLayer<T>& layer = network_.back_layer(share.layer, share.direction);
    const Index P = spec_.state_size();
    T** out = list_of_places(share.member.thread(), 2);
    for (Index i = 0; i < row_count(share); ++i) out[i] = call_.d_h_0 + state_at(share, i, P);
    BackStepArgs<T> args = common_args(share);
    args.out = out;
    from_step_after(share, kLinear, layer.recurrent, args, {share.group.next, share.group.next_stride},
                    running(share, 0, row_count(share)), row_count(share));
    if (!has_c()) return;
    for_units(share, [&](int part) {
      if (part == 0) copy_cell_state_gradients(share);
    });
  }

  void copy_cell_state_gradients(const Share& share) const {
    const Index H = spec_.hidden_size;
    for (Index i = 0; i < row_count(share); ++i)
      std::copy_n(share.group.d_c + i * network_.state_stride(), H, call_.d_c_0 + state_at(share, i, H));
  }

  Index* offsets_ = nullptr;  // [thread][2, in turns][offsets_size]
};

}  // namespace gatedrnn
