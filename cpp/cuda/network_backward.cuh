// Backward of the typed network.
#pragma once

#include "network.cuh"

namespace gatedrnn::cuda {

template <class S>
void TypedNetwork<S>::backward(const Tape& any_tape, const BackwardCall& call, cudaStream_t stream) {
  refuse_other_work(stream);
  const auto& tape = static_cast<const TypedTape<S>&>(any_tape);
  const Batch& batch = tape.batch;
  const Following order(tape.stream, stream);
  if (batch.batch() == 0) {
    for (Index track = 0; track < tracks() && !call.accumulate; ++track) {
      const Plan none;
      const auto borrowed = blas_pool_.borrow(stream);
      const Track which{track / spec_.directions, track % spec_.directions};
      clear_gradients({batch, *borrowed, stream, none}, which, call.gradients[track]);
    }
    return;
  }
  const auto borrowed = blas_pool_.borrow(stream);
  const Context x{batch, *borrowed, stream, plan(batch.steps(), batch.batch())};
  x.blas.begin(stream, tf32_);
  const Index pairs = batch.steps() * batch.batch();

  // Without zeros past the lengths the caller's gradients are used where they are, and x's are left where they are wanted.
  const auto is_callers = [&](const AnyFeatures& given) {
    return given.data && !batch.ragged() && given.storage == storage_of<A>;
  };
  DeviceArray<A> d_output(is_callers(call.d_output) ? 0 : pairs * width(), stream);
  Features<const A> d_places = features<const A>(dense(d_output.data(), width(), x));
  if (is_callers(call.d_output))
    d_places = features<const A>(call.d_output);
  else if (call.d_output.data)
    copy_out(x, call.d_output, dense(d_output.data(), width(), x), width());
  else
    clear(d_output.data(), d_output.size(), stream);
  for (Index layer = spec_.num_layers - 1; layer >= 0; --layer) {
    const Index I = spec_.layer_input_size(layer);
    const bool wanted = layer > 0 || call.d_x.data, to_caller = layer == 0 && is_callers(call.d_x);
    DeviceArray<A> d_input(wanted && !to_caller ? pairs * I : 0, stream);
    const AnyFeatures d_in = to_caller ? call.d_x : dense(d_input.data(), I, x);
    if (wanted && batch.ragged()) clear(d_input.data(), d_input.size(), stream);
    const AnyFeatures in = layer == 0 ? call.x : dense(input_of(tape, layer), width(), x);
    for (Index direction = 0; direction < spec_.directions; ++direction, d_places.data += P())
      back_track(x, {layer, direction}, tape, in, d_places, call, wanted ? features<A>(d_in) : Features<A>());
    if (layer > 0 && tape.options.dropout.rate > 0)
      launch(drop<A>, pairs, I, stream, batch.order(), tape.options.dropout, tape.places, layer - 1,
             static_cast<int>(I), static_cast<const A*>(d_input.data()), d_input.data());
    d_output = std::move(d_input);
    d_places = features<const A>(dense(d_output.data(), I, x));
  }
  if (call.d_x.data && !is_callers(call.d_x))
    copy_out(x, dense(d_output.data(), spec_.input_size, x), call.d_x, spec_.input_size);
}

template <class S>
void TypedNetwork<S>::back_track(const Context& x, const Track& track, const TypedTape<S>& tape, const AnyFeatures& in,
                                 const Features<const A>& d_output, const BackwardCall& call,
                                 const Features<A>& d_input) const {
  const Index number = track.number(spec_), I = spec_.layer_input_size(track.layer);
  const Weights<S>& weights = weights_[number];
  const GradientPlaces& to = call.gradients[number];
  const Features<S> output = column(tape.outputs[track.layer].data(), track.direction * P(), width(), x);
  const AnyFeatures any_output{output.data, storage_of<S>, output.time_stride, output.row_stride};
  const bool reverse = spec_.backwards(track.direction);
  const Scratch::Scope track_scope(x.scratch());
  BackState state(*this, x);
  take_state(x, track, call.d_h_n, P(), state.d_h.data());
  if (cell_.has_c) take_state(x, track, call.d_c_n, H(), state.d_c.data());

  const auto count = static_cast<Index>(tape.blocks.size()) - 1;
  for (Index b = count - 1; b >= 0; --b) {
    const Index begin = tape.blocks[b], end = tape.blocks[b + 1];
    BackBlock block{};
    block.steps = x.batch.block(begin, end, reverse);
    const Scratch::Scope block_scope(x.scratch());
    const Index pairs = block.steps.pairs;
    block.inputs = gathered(x, track, block.steps, in, I);
    block.h_before = x.template take<S>(pairs * P());
    launch(gather_before<S>, pairs, P(), x.stream, block.steps, x.batch.order(),
           Features<const S>{output.data, output.time_stride, output.row_stride},
           static_cast<const S*>(tape.h_0[number].data()), static_cast<int>(P()), block.h_before.data());
    if (cell_.h_read == HRead::after) block.h = gathered(x, track, block.steps, any_output, P());
    block.d_a = x.template take<S>(pairs * gradient_slots() * H());
    if (cell_.two_stages() || spec_.proj_size > 0) block.operand = x.template take<S>(pairs * H());
    if (spec_.proj_size > 0) block.d_h = x.template take<S>(pairs * P());
    block.c_before = cell_.has_c ? tape.c[number].data() + b * x.batch.batch() * H() : nullptr;

    if (kept_width() > 0 && tape.options.recompute) {
      const auto recomputed = x.template take<A>(pairs * kept_width());
      State forward(*this, x);
      copy(forward.h[begin % 2].data(), block.h_before.data(),
           x.batch.count(begin) * P() * static_cast<Index>(sizeof(S)), cudaMemcpyDeviceToDevice, x.stream);
      if (cell_.has_c) copy(forward.c.data(), block.c_before, forward.c.bytes(), cudaMemcpyDeviceToDevice, x.stream);
      run_block(x, track, begin, end, in, forward, {}, recomputed.data());
      block.kept = recomputed.data();
    } else if (kept_width() > 0) {
      block.kept = tape.kept[number].data() + x.batch.offset(begin) * kept_width();
    }

    BackStep<S> first{};
    first.units = static_cast<int>(H());
    first.slots = static_cast<int>(gradient_slots());
    first.kept = block.kept;
    first.kept_slots = cell_.kept;
    first.h_before = block.h_before.data();
    first.h = block.h;
    first.peephole = weights.peephole.data();
    first.norm = weights.norm.data();
    first.d_h = state.d_h.data();
    first.d_c = state.d_c.data();
    first.d_a = block.d_a.data();
    first.operand = block.operand.size() > 0 ? block.operand.data() : nullptr;
    first.d_output = d_output;
    first.order = x.batch.order();
    first.reverse = reverse;
    first.options = spec_.options.template as<A>();
    first.has_output = true;
    first.rows = static_cast<int>(x.batch.count(begin));
    back_steps(x, track, block, first, state);

    add_to_gradients(x, track, block, to, call.accumulate || b + 1 < count);
    if (!d_input.data) continue;
    // The first direction leaves its gradients, where pairs stand as they do there; others are added.
    const bool in_place =
        are_pairs(x, track, {d_input.data, storage_of<A>, d_input.time_stride, d_input.row_stride}, I, storage_of<A>);
    A* d_inputs = in_place ? d_input.data + x.batch.offset(begin) * I : x.template take<A>(pairs * I).data();
    const Index row = gradient_slots() * H();
    const S* w = weights.weight_ih.data();
    for_each_run(0, cell_.gates, [&](Index slot, Index slots, Index gate) {
      x.blas.template multiply<S>(pairs, I, slots * H(), {block.d_a.data() + slot * H(), row}, {w + gate * H() * I, I},
                                  slot > 0, {d_inputs, I});
    });
    if (in_place) continue;
    launch(scatter<A>, pairs, I, x.stream, block.steps, x.batch.order(), static_cast<const A*>(d_inputs),
           static_cast<int>(I), track.direction > 0, d_input);
  }
  if (count == 0 && !call.accumulate) clear_gradients(x, track, to);
  give_state(x, track, static_cast<const A*>(state.d_h.data()), P(), call.d_h_0);
  if (cell_.has_c) give_state(x, track, static_cast<const A*>(state.d_c.data()), H(), call.d_c_0);
  const auto add_rows = [&](const A* d, Index width, void* sums) {
    if (sums)
      launch(sum_rows<A>, 1, width, x.stream, d, x.batch.batch(), static_cast<int>(width), call.accumulate,
             static_cast<A*>(sums));
  };
  add_rows(state.d_h.data(), P(), to.h_0);
  if (cell_.has_c) add_rows(state.d_c.data(), H(), to.c_0);
}

template <class S>
void TypedNetwork<S>::back_steps(const Context& x, const Track& track, const BackBlock& block, const BackStep<S>& first,
                                 const BackState& state) const {
  const Weights<S>& weights = weights_[track.number(spec_)];
  if (x.plan.backward.fits) {
    BackRecurrence<S> arguments{};
    arguments.first = first;
    arguments.block = block.steps;
    arguments.plan = x.plan.backward;
    arguments.weights = weights.weight_hh.data();
    arguments.c_at_begin = block.c_before;
    if (arguments.plan.undivided)
      return with_undivided_rows(arguments.plan, [&](auto cell, auto rows) {
        start_undivided(x, backward_undivided<S, decltype(cell)::value, decltype(rows)::value>, arguments);
      });
    arguments.sent_d_a = unsent(x, x.plan.backward, block.steps, cell_.recurrent_slots() * H()).data();
    if (cell_.two_stages())
      arguments.sent_second = unsent(x, x.plan.backward, block.steps, cell_.stages[1].gates * H()).data();
    arguments.arrived = none_arrived(x, x.plan.backward).data();
    with_tile(arguments.plan, [&](auto cell, auto tile) {
      start_recurrence(x, backward_recurrence<S, decltype(cell)::value, decltype(tile)::value>, arguments);
    });
    return;
  }
  const Index begin = block.steps.begin, start = x.batch.offset(begin);
  for (Index t = block.steps.end - 1; t >= begin; --t) {
    const Index pair = x.batch.offset(t) - start;
    BackStep<S> step = first;
    step.rows = static_cast<int>(x.batch.count(t));
    step.step = static_cast<int>(t);
    step.h_before += pair * P();
    if (step.h) step.h += pair * H();
    step.d_a += pair * gradient_slots() * H();
    if (step.operand) step.operand += pair * H();
    if (step.kept) step.kept += pair * kept_width();
    if (cell_.has_c) {
      step.c_before = t == begin ? block.c_before
                                 : first.kept + (x.batch.offset(t - 1) - start) * kept_width() + (cell_.kept - 1) * H();
      step.c_before_stride = t == begin ? H() : kept_width();
    }
    take_back_step(x, weights, step, block.d_h.size() > 0 ? block.d_h.data() + pair * P() : nullptr, state);
  }
}

template <class S>
void TypedNetwork<S>::take_back_step(const Context& x, const Weights<S>& weights, BackStep<S> step, S* d_h,
                                     const BackState& state) const {
  const Index rows = step.rows, row = gradient_slots() * H();
  const S* w = weights.weight_hh.data();
  if (spec_.proj_size > 0) {
    BackStep<S> projected = step;
    projected.units = static_cast<int>(P());
    launch(collect_d_h<S>, rows, P(), x.stream, projected, d_h);
    x.blas.template multiply<S>(rows, H(), P(), {d_h, P()}, {weights.weight_hr.data(), H()}, false,
                                {state.d_unprojected.data(), H()});
    step.d_h = state.d_unprojected.data();
    step.has_output = false;
  }
  with_cell(spec_.cell, [&](auto constant) {
    constexpr Cell cell = decltype(constant)::value;
    if constexpr (description(cell).is_normalized())
      launch_by_row<A>(backward_normalized<S, cell>, rows, x.stream, step, state.d.data());
    else
      launch(backward_stage<S, cell>, rows, H(), x.stream, step);
    if constexpr (description(cell).two_stages()) {
      constexpr StageDescription second = description(cell).stages[1];
      x.blas.template multiply<S>(rows, H(), second.gates * H(), {step.d_a + second.first_slot * H(), row},
                                  {w + cell_.first_gate(1) * H() * H(), H()}, false, {state.products.data(), H()});
      launch(late_backward_stage<S, cell>, rows, H(), x.stream, step, static_cast<const A*>(state.products.data()));
    }
  });
  x.blas.template multiply<S>(rows, P(), cell_.recurrent_slots() * H(),
                              {step.d_a + cell_.first_recurrent_slot() * H(), row}, {w, P()}, true,
                              {state.d_h.data(), P()});
}

// Products of each matrix's slots with what its columns were multiplied with, summed over the block's pairs.
template <class S>
void TypedNetwork<S>::add_to_gradients(const Context& x, const Track& track, const BackBlock& block,
                                       const GradientPlaces& to, bool add) const {
  const Index pairs = block.steps.pairs, I = spec_.layer_input_size(track.layer), row = gradient_slots() * H();
  const auto weight = [&](Index slot, Index count, Index gate, const S* right, Index columns, void* gradient) {
    x.blas.template multiply_columns<S>(count * H(), columns, pairs, {block.d_a.data() + slot * H(), row},
                                        {right, columns}, add,
                                        {static_cast<A*>(gradient) + gate * H() * columns, columns});
  };
  const Index parts = sum_parts(pairs);
  const auto over_rows = [&](Index columns) {
    return dim3(blocks_for(columns, kSumColumns, 1 << 30), static_cast<unsigned>(parts));
  };
  constexpr std::size_t shared_bytes = kSumColumns * kSumRows * sizeof(A);
  const bool normalized = cell_.is_normalized();
  const auto sums = x.template take<A>(to.bias_ih || to.bias_hh || normalized ? parts * row : 0);
  if (sums.size() > 0)
    check(start(sum_columns<S>, over_rows(row), dim3(kSumColumns * kSumRows), shared_bytes, x.stream,
                static_cast<const S*>(block.d_a.data()), pairs, static_cast<int>(row), sums.data()),
          "starting a kernel");
  const auto add_sums = [&](Index slot, Index count, A* gradient) {
    launch(add_parts<A>, 1, count * H(), x.stream, static_cast<const A*>(sums.data() + slot * H()),
           static_cast<int>(parts), row, static_cast<int>(count * H()), add, gradient);
  };
  const auto matrix = [&](Index first, Index count, const S* right, Index columns, void* weights, void* biases) {
    for_each_run(first, count, [&](Index slot, Index slots, Index gate) {
      weight(slot, slots, gate, right, columns, weights);
      if (biases && !normalized) add_sums(slot, slots, static_cast<A*>(biases) + gate * H());
    });
  };
  const StageDescription& second = cell_.stages[1];  // no gates where there is none
  matrix(0, cell_.gates, block.inputs, I, to.weight_ih, to.bias_ih);
  matrix(cell_.first_recurrent_slot(), cell_.recurrent_slots(), block.h_before.data(), P(), to.weight_hh, to.bias_hh);
  matrix(second.first_slot, second.gates, block.operand.data(), H(), to.weight_hh, to.bias_hh);
  if (normalized) {
    const LayerGradients<A> places = norm_places(to);
    for (int i = 0; i < cell_.pre_activations; ++i)
      visit_biases(places, cell_, i, H(), [&](A* gradient) { add_sums(cell_.slots + i, 1, gradient); });
    for (int slot = 0; slot < cell_.normalized_slots(); ++slot)
      add_sums(cell_.slots + cell_.pre_activations + slot, 1, slot_weights(places, cell_, slot, H()));
  }
  if (spec_.proj_size > 0)
    x.blas.template multiply_columns<S>(P(), H(), pairs, {block.d_h.data(), P()}, {block.operand.data(), H()}, add,
                                        {static_cast<A*>(to.weight_hr), H()});
  for (int peephole = 0; peephole < cell_.peephole_count; ++peephole) {
    const PeepholeDescription& from = cell_.peepholes[peephole];
    const auto products = x.template take<A>(parts * H());
    check(start(sum_peephole<S>, over_rows(H()), dim3(kSumColumns * kSumRows), shared_bytes, x.stream, block.steps,
                static_cast<const S*>(block.d_a.data() + from.slot * H()), row, block.kept, kept_width(),
                block.c_before, cell_.kept - 1, static_cast<int>(H()), !from.sees_next, products.data()),
          "starting a kernel");
    launch(add_parts<A>, 1, H(), x.stream, static_cast<const A*>(products.data()), static_cast<int>(parts), H(),
           static_cast<int>(H()), add, static_cast<A*>(to.peephole[peephole]));
  }
}

template <class S>
void TypedNetwork<S>::clear_gradients(const Context& x, const Track& track, const GradientPlaces& to) const {
  const auto clear_all = [&](void* gradient, Index count) {
    if (gradient) clear(static_cast<A*>(gradient), count, x.stream);
  };
  clear_all(to.weight_ih, gates() * H() * spec_.layer_input_size(track.layer));
  clear_all(to.weight_hh, gates() * H() * P());
  clear_all(to.bias_ih, gates() * H());
  clear_all(to.bias_hh, gates() * H());
  clear_all(to.weight_hr, P() * H());
  for (void* peephole : to.peephole) clear_all(peephole, H());
  auto places = norm_places(to);
  visit_norm_parameters(cell_, to.bias_ih != nullptr, places,
                        [&](const char*, int blocks, A* gradient) { clear_all(gradient, blocks * H()); });
  clear_all(to.h_0, P());
  clear_all(to.c_0, H());
}

template <class S>
std::unique_ptr<Network> make_typed_network(const Spec& spec, const Parameters<Sum<S>>& parameters, bool tf32) {
  return std::make_unique<TypedNetwork<S>>(spec, parameters, tf32);
}

}  // namespace gatedrnn::cuda
