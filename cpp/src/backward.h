// One call of a network backward through a tape.
//
// Layer by layer from the last, direction by direction, block by block of time steps from the last: first the recurrence, which
// leaves the gradients of the pre-activations of every (step, row) pair of the block, then the products over these pairs, at
// the latest while the recurrence of the next block goes on. A sum belongs to one thread at a time, takes up the pairs in the order
// of steps (last first) and ranks, and is cut into blocks of pairs that depend on lengths alone, so that neither blocks of steps
// nor threads change a bit.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "gatedrnn/flush_denormals.h"
#include "walk.h"
#include "weight_gradients.h"

namespace gatedrnn {

template <class T>
class BackwardRun {
 public:
  BackwardRun(const Network<T>& network, const Tape<T>& tape, const BackwardCall<T>& caller, const Plan& plan)
      : tape_(tape),
        caller_(caller),
        call_(network, usable(plan, tape), tape.batch, tape.order(), caller.poll),
        walk_(call_),
        places_(call_, tape, caller),
        ring_(call_, tape),
        rounded_(call_),
        gradients_(call_, places_, ring_, lists_, rounded_) {}

  void carve(Arena& arena) {
    ring_.carve(arena);
    places_.carve(arena);
    lists_.carve(arena, call_.plan.threads(), std::max(ring_.most_pairs(), call_.most_rows()));
    rounded_.carve(arena, std::max(WeightGradients<T>::kInputRows, call_.most_rows()),
                   std::max(call_.cell.slots * call_.kernels().layout.slot_stride(call_.spec.hidden_size),
                            call_.spec.state_size()));
    gradients_.carve(arena);
    if (tape_.recomputing()) walk_.carve(arena, Walk<T>::Way::replay);
    const Index state = call_.most_rows() * call_.network.state_stride();
    const Index panels =
        ceil_div(std::max(call_.spec.hidden_size, call_.spec.state_size()), kBackVectors * call_.lanes());
    groups_ = arena.take_each<Group>(call_.group_count(), [&](Group& group) {
      group.carry = arena.take<T>(state);
      if (call_.cell.has_c) group.d_c = arena.take<T>(state);
      for (T*& d_a : group.d_a) d_a = arena.take<T>(call_.plan.far ? call_.most_rows() * ring_.d_a_stride() : 0);
      group.products = arena.take<T>(panels * products_stride());
    });
  }

  // False where run_team is.
  bool start() { return call_.run_on_team(Patience::wait, this); }

  // A thread's part of the call.
  void work(Member& member) {
    const FlushDenormals flush;
    places_.go_through_layers(member, [&](const Track& track) { run_direction(member, track); });
  }

 private:
  using Block = typename BlockRing<T>::Block;
  using HiddenStates = typename BackwardPlaces<T>::HiddenStates;

  // What those who work on the same rows share.
  struct Group {
    // The gradient of h that does not come through a product, that of c, and products in the making.
    T* carry = nullptr;
    T* d_c = nullptr;
    T* products = nullptr;
    T* d_a[2] = {};   // those of pre-activations, in turns, where the block's are written past the caches
    Strided<T> next;  // from block to block: those of the step after
  };

  // Gradient threads would need recomputed values for longer than these last. Nobody shares units that are normalised.
  static Plan usable(Plan plan, const Tape<T>& tape) {
    if (tape.recomputing()) plan.gradient_threads = 0;
    if (tape.spec.description().is_normalized()) plan.row_groups *= std::exchange(plan.unit_groups, 1);
    return plan;
  }

  Group& group(const Share& share) const { return groups_[share.group]; }
  Index products_stride() const { return odd_lines<T>(call_.most_rows() * kBackVectors * call_.lanes()); }

  // ---- The walk ----------------------------------------------------------------------------------------------------------
  void run_direction(Member& member, const Track& track) {
    call_.for_groups(member, [&](int group) { load_state(call_.share(member, group, track)); });
    go_back_and_add(member, track);
    call_.for_groups(member, [&](int group) { initial_state_gradients(call_.share(member, group, track)); });
    if (ring_.count() == 0 && !caller_.accumulate)
      member.phase([&](int part) { gradients_.clear({track, member, part, call_.plan.threads()}); });
  }

  // A block is added to the gradients when all have gone back through it, while they go back through the next one: by gradient
  // threads, or by all, which then go on to their rows of the next one. All add the last block.
  void go_back_and_add(Member& member, const Track& track) {
    const Plan& plan = call_.plan;
    Block before;
    const Index blocks = ring_.count();
    for (Index b = 0; b <= blocks; ++b) {
      const Block block = b < blocks ? ring_.take(member.thread(), b, before) : Block();
      const auto add_before = [&](int part, int parts) {
        if (b > 0) gradients_.add({track, member, part, parts}, before);
      };
      const auto go_on = [&](int group) {
        if (b < blocks) go_back(call_.share(member, group, track), block);
      };
      if (plan.gradient_threads > 0 && b < blocks) {
        member.phase([&](int part) {
          part < plan.grid() ? go_on(part) : add_before(part - plan.grid(), plan.gradient_threads);
        });
      } else if (plan.unit_groups > 1 || tape_.recomputing()) {  // what was kept is needed until the block is added
        member.phase([&](int part) { add_before(part, plan.threads()); });
        call_.for_groups(member, go_on);
      } else {
        member.phase([&](int part) {
          add_before(part, plan.threads());
          go_on(part);
        });
      }
      before = block;
    }
  }

  // The recurrence of one block. The group keeps the gradients of the pre-activations of the step after, of the share's rows.
  void go_back(const Share& share, const Block& block) {
    if (tape_.recomputing()) recompute(share, block);
    Strided<T> next = group(share).next;
    for (Index step = block.end - 1; step >= block.begin; --step) {
      next = take_step(share, block, step, next);
      call_.look_up(share.member, static_cast<double>(share.rows) * call_.step_work());
    }
    call_.for_units(share, [&](int part) {
      if (call_.plan.far) publish_streamed();
      if (part == 0) group(share).next = next;
    });
  }

  // The gradients of the final state; scratch past the last unit is zero, since products run over it.
  void load_state(const Share& share) const {
    const Index P = call_.spec.state_size(), H = call_.spec.hidden_size, stride = call_.network.state_stride();
    const auto load = [&](const T* from, Index width, Index i, T* to) {
      std::fill_n(to, stride, T(0));
      if (from) std::copy_n(from + call_.state_at(share, i, width), width, to);
    };
    call_.once(share, [&] {
      group(share).next = {};
      for (Index i = 0; i < share.rows; ++i) {
        load(caller_.d_h_n, P, i, group(share).carry + i * stride);
        if (call_.cell.has_c) load(caller_.d_c_n, H, i, group(share).d_c + i * stride);
      }
    });
  }

  // What the block's steps kept, from the outputs and the c before it.
  void recompute(const Share& share, const Block& block) {
    if (call_.cell.has_c)
      call_.once(share, [&] {
        const auto c = places_.c_before(share.track, block.begin, block.begin);
        for (Index i = 0; i < call_.running(share, block.begin, share.rows); ++i)
          std::copy_n(c.data + share.rank(i) * c.stride, call_.spec.hidden_size,
                      walk_.group(share).c + i * call_.network.state_stride());
      });
    const Rows<const T> in = places_.input_of(share.track.layer);
    const Passage<T> passage{in, {}, places_.recomputed(), block.begin, tape_.kept_width(), places_.kept_pairs()};
    const HiddenStates hidden(places_, share.track);
    walk_.replay(share, passage, block.begin, block.end,
                 [&](Index step, Index i) { return hidden.before(step, share.rank(i)); });
  }

  // ---- One step ----------------------------------------------------------------------------------------------------------
  // From and to gradients of pre-activations as `go_back` has them.
  Strided<T> take_step(const Share& share, const Block& block, Index step, const Strided<T>& next) const {
    const PackedBackLayer<T>& layer = call_.back_layer(share.track);
    const Index now = call_.running(share, step, share.rows), old = call_.running(share, step + 1, now);
    const Index first_pair = block.offset(step) + share.first;
    const T **d_y = lists_.list(share.member.thread(), 0), **h = lists_.list(share.member.thread(), 1);
    const Rows<const T> d_output = places_.d_output_of(share.track.layer);
    const Index column = share.track.direction * call_.spec.state_size();
    for (Index i = 0; d_output.data && i < now; ++i) {
      const Index rank = share.rank(i);
      d_y[i] = d_output.at(call_.time(share.track, step, rank), rank) + column;
    }
    if (call_.cell.h_read != HRead::none) list_h(share, step, now, h);

    BackStepArgs<T> args = common_args(share);
    args.panels_reversed = step % 2 == 1;
    args.d_y = d_output.data ? d_y : nullptr;
    args.h = h;
    args.d_a = block.d_a + first_pair * ring_.d_a_stride();
    args.d_a_stride = call_.plan.row_groups * ring_.d_a_stride();
    if (call_.plan.far) {  // the block's are for others; the share has its own
      args.streamed_d_a = std::exchange(args.d_a, group(share).d_a[step % 2]);
      args.streamed_d_a_stride = std::exchange(args.d_a_stride, ring_.d_a_stride());
    }
    args.peephole = layer.peephole.data();
    args.norm = layer.norm.data();
    if (tape_.kept_width() > 0) {
      args.kept = places_.kept(share.track, block.begin, step) + share.first * places_.kept_stride();
      args.kept_stride = call_.plan.row_groups * places_.kept_stride();
      args.kept_slots = call_.cell.kept;
    }
    if (call_.cell.has_c) {
      const auto c = places_.c_before(share.track, block.begin, step);
      args.c = c.data + share.first * c.stride;
      args.c_stride = call_.plan.row_groups * c.stride;
      args.c_slots = c.slots;
    }
    if (ring_.has_operand_of_weights()) {
      args.operand_of_weights = block.operand_of_weights + first_pair * ring_.slot();
      args.operand_of_weights_stride = call_.plan.row_groups * ring_.slot();
    }

    const Strided<T> d_a{args.d_a, args.d_a_stride};
    if (call_.spec.proj_size > 0) {
      T** out = lists_.list_of_places(share.member.thread(), 2);
      T* d_h = block.d_h + first_pair * ring_.d_h_stride();
      const Index stride = call_.plan.row_groups * ring_.d_h_stride();
      for (Index i = 0; i < now; ++i) out[i] = d_h + i * stride;
      args.out = out;
      from_step_after(share, kLinear, layer.recurrent, args, next, old, now);
      args.carry = nullptr;
      args.d_y = nullptr;
      run_stage(share, 0, layer.projection, args, {d_h, stride}, now);
      return d_a;
    }
    from_step_after(share, 0, layer.recurrent, args, next, old, now);
    if (call_.cell.two_stages()) run_stage(share, 1, layer.second, args, d_a, now);
    return d_a;
  }

  void list_h(const Share& share, Index step, Index rows, const T** h) const {
    const HiddenStates hidden(places_, share.track);
    const bool after = call_.cell.h_read == HRead::after;
    for (Index i = 0; i < rows; ++i)
      h[i] = after ? hidden.after(step, share.rank(i)) : hidden.before(step, share.rank(i));
  }

  BackStepArgs<T> common_args(const Share& share) const {
    BackStepArgs<T> args{};
    args.core = &call_.network.core();
    args.products = group(share).products;
    args.products_panel_stride = products_stride();
    args.state_stride = call_.network.state_stride();
    args.carry = group(share).carry;
    args.d_c = group(share).d_c;
    args.slot_stride = ring_.slot();
    args.rounded = rounded_.of(share.member);
    args.options = &call_.network.options();
    return args;
  }

  // The first `old` rows ran in the step after, whose gradients come through a product; for the others, up to `now`, this step
  // is the last one, and what comes is the gradient of their final state.
  void from_step_after(const Share& share, int stage, const PackedTransposed& product, BackStepArgs<T> args,
                       const Strided<T>& after, Index old, Index now) const {
    BackStepArgs<T> last = args;
    skip_rows(last, old);
    last.rows = now - old;
    last.depth = 0;
    if (!call_.cell.passes_h) args.carry = nullptr;  // nothing passes by the product
    call_.for_units(share, [&](int part) {
      multiply(part, stage, product, args, after, old);
      set_panels(part, product, last);
      run_kernel(stage, last);
    });
  }

  void run_stage(const Share& share, int stage, const PackedTransposed& product, BackStepArgs<T> args,
                 const Strided<T>& operand, Index rows) const {
    call_.for_units(share, [&](int part) { multiply(part, stage, product, args, operand, rows); });
  }

  void multiply(int part, int stage, const PackedTransposed& product, BackStepArgs<T>& args, const Strided<T>& operand,
                Index rows) const {
    if (rows == 0) return;
    args.rows = rows;
    args.depth = product.weights.depth;
    args.slot_units = product.slot_units;
    args.weights = product.weights.data();
    args.operand = operand.data + product.first_slot * ring_.slot();
    args.operand_stride = operand.stride;
    set_panels(part, product, args);
    run_kernel(stage, args);
  }

  void run_kernel(int stage, BackStepArgs<T>& args) const {
    const Cell cell = call_.spec.cell;
    args.product_only = call_.cell.is_general() && stage != kLinear;
    call_.kernels().back_step(cell, stage, args);
    if (args.product_only) call_.kernels().cells_back(cell, stage, args);
  }

  void set_panels(int part, const PackedTransposed& product, BackStepArgs<T>& args) const {
    args.units = product.units;
    std::tie(args.first_panel, args.last_panel) = call_.panels(part, product.weights.panels);
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
    const PackedBackLayer<T>& layer = call_.back_layer(share.track);
    const Index P = call_.spec.state_size();
    T** out = lists_.list_of_places(share.member.thread(), 2);
    for (Index i = 0; i < share.rows; ++i) out[i] = caller_.d_h_0 + call_.state_at(share, i, P);
    BackStepArgs<T> args = common_args(share);
    args.out = out;
    from_step_after(share, kLinear, layer.recurrent, args, group(share).next, call_.running(share, 0, share.rows),
                    share.rows);
    if (!call_.cell.has_c) return;
    const Index H = call_.spec.hidden_size, stride = call_.network.state_stride();
    call_.once(share, [&] {
      for (Index i = 0; i < share.rows; ++i)
        std::copy_n(group(share).d_c + i * stride, H, caller_.d_c_0 + call_.state_at(share, i, H));
    });
  }

  const Tape<T>& tape_;
  const BackwardCall<T>& caller_;
  const Call<T> call_;
  Walk<T> walk_;  // recomputing
  BackwardPlaces<T> places_;
  BlockRing<T> ring_;
  RowLists<T> lists_;
  RoundedOperands<T> rounded_;
  WeightGradients<T> gradients_;
  Group* groups_ = nullptr;
};

}  // namespace gatedrnn
