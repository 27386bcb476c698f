// The network for one type of stored values. The shape of the work is that of the engine for the processor: layer by layer,
// direction by direction, block by block of time steps; in each block first what merges all of its (step, row) pairs, then the
// steps, and backward the other way round.
#pragma once

#include <algorithm>
#include <mutex>

#include "gatedrnn/row_order.h"
#include "layer_norm.cuh"
#include "network.h"
#include "undivided.cuh"

namespace gatedrnn::cuda {

// What a batch's lengths mean, here and, where rows end at different steps, on the device.
class Batch {
 public:
  Batch(Index steps, Index batch, const Index* lengths, cudaStream_t stream) : steps_(steps), batch_(batch) {
    std::vector<Index> all(batch, steps), rows(batch);
    if (lengths) all.assign(lengths, lengths + batch);
    RowOrder::sort(all.data(), batch, rows.data());
    std::vector<int> ints;  // rows, lengths, counts, offsets
    for (const Index row : rows) ints.push_back(static_cast<int>(row));
    for (const Index row : rows) ints.push_back(static_cast<int>(all[row]));
    counts_.resize(steps);
    offsets_.assign(steps + 1, 0);
    Index running = batch;
    for (Index step = 0; step < steps; ++step) {
      while (running > 0 && all[rows[running - 1]] <= step) --running;
      counts_[step] = running;
      offsets_[step + 1] = offsets_[step] + running;
    }
    ragged_ = offsets_[steps] < steps * batch;
    if (!ragged_) return;
    for (const Index count : counts_) ints.push_back(static_cast<int>(count));
    for (const Index offset : offsets_) ints.push_back(static_cast<int>(offset));
    memory_ = DeviceArray<int>(static_cast<Index>(ints.size()), stream);
    copy(memory_.data(), ints.data(), memory_.bytes(), cudaMemcpyHostToDevice, stream);
  }

  Index steps() const { return steps_; }
  Index batch() const { return batch_; }
  bool ragged() const { return ragged_; }
  Index count(Index step) const { return counts_[step]; }
  Index offset(Index step) const { return offsets_[step]; }
  Index running_steps() const {
    return std::partition_point(counts_.begin(), counts_.end(), [](Index count) { return count > 0; }) -
           counts_.begin();
  }

  Order order() const {
    const int* rows = memory_.data();
    return {rows, ragged_ ? rows + batch_ : nullptr, static_cast<int>(batch_), static_cast<int>(steps_)};
  }
  StepBlock block(Index begin, Index end, bool reverse) const {
    StepBlock block;
    block.begin = static_cast<int>(begin);
    block.end = static_cast<int>(end);
    if (ragged_) {
      block.counts = memory_.data() + 2 * batch_;
      block.offsets = block.counts + steps_;
    }
    block.pairs = offsets_[end] - offsets_[begin];
    block.reverse = reverse;
    block.rows = counts_[end - 1] == counts_[begin] ? static_cast<int>(counts_[begin]) : 0;
    return block;
  }

  // The ends of blocks of at most so many pairs and steps.
  std::vector<Index> blocks(Index most_pairs, Index most_steps) const {
    std::vector<Index> ends = {0};
    const Index last = running_steps();
    for (Index step = 1; step <= last; ++step) {
      const bool full =
          step < last && (offsets_[step + 1] - offsets_[ends.back()] > most_pairs || step - ends.back() == most_steps);
      if (step == last || full) ends.push_back(step);
    }
    return ends;
  }

 private:
  Index steps_, batch_;
  bool ragged_ = false;
  std::vector<Index> counts_, offsets_;
  DeviceArray<int> memory_;
};

// One layer's and direction's weights.
template <class S>
struct Weights {
  using A = Sum<S>;
  DeviceArray<S> weight_ih, weight_hh, weight_hr;
  DeviceArray<A> bias;      // [slots * H]
  DeviceArray<A> peephole;  // [peephole][H]
  DeviceArray<A> norm;      // see Step
};

template <class S>
class TypedTape final : public Tape {
 public:
  using A = Sum<S>;
  TypedTape(const TapeOptions& options, Batch batch, const OtherPlaces& places, cudaStream_t stream)
      : options(options), stream(stream), batch(std::move(batch)), places(places) {}

  Index bytes() const override {
    Index bytes = 0;
    const auto add = [&](const auto& arrays) {
      for (const auto& array : arrays) bytes += array.bytes();
    };
    add(outputs), add(inputs), add(kept), add(c), add(h_0);
    return bytes;
  }

  const TapeOptions options;
  const cudaStream_t stream;  // in whose order the memory below is made and given back
  const Batch batch;
  const OtherPlaces places;
  std::vector<Index> blocks;            // ends of the blocks of steps
  std::vector<DeviceArray<S>> outputs;  // by layer: [time][row][D * P]
  std::vector<DeviceArray<S>> inputs;   // with dropout, by layer from the second on
  std::vector<DeviceArray<A>> kept;     // by track: [pair][kept slots][H]; none with `recompute`
  std::vector<DeviceArray<A>> c;        // by track, where there is c: [block][rank][H], before each block
  std::vector<DeviceArray<S>> h_0;      // by track: [rank][P]
};

template <class S>
class TypedNetwork final : public Network {
 public:
  using A = Sum<S>;

  TypedNetwork(const Spec& spec, const Parameters<A>& parameters, bool tf32)
      : spec_(spec),
        tf32_(tf32),
        device_(current_device()),
        limits_(limits_of(device_)),
        blas_pool_(blas_pool_of(device_)) {
    const cudaStream_t stream = cudaStreamPerThread;
    for (std::size_t track = 0; track < parameters.size(); ++track)
      weights_.push_back(upload(parameters[track], static_cast<Index>(track) / spec.directions, stream));
    check(cudaStreamSynchronize(stream), "copying the parameters");
  }
  // Streams that still read the weights are not known here.
  ~TypedNetwork() override { cudaDeviceSynchronize(); }

  // Made again only where the size of the batch changes.
  Plan plan(Index steps, Index batch) const override {
    const std::lock_guard lock(planning_);
    const Problem problem{spec_, steps, batch, sizeof(S), sizeof(A), tf32_};
    if (batch != planned_.batch || (steps < 2) != (planned_.steps < 2)) plan_ = make_plan(problem, limits_);
    planned_ = problem;
    return plan_;
  }

  void run(const ForwardCall& call, cudaStream_t stream) override {
    refuse_other_work(stream);
    forward(call, nullptr, stream);
  }

  std::unique_ptr<Tape> forward(const ForwardCall& call, const TapeOptions& options, cudaStream_t stream) override {
    refuse_other_work(stream);
    auto tape = std::make_unique<TypedTape<S>>(options, Batch(call.steps, call.batch, call.lengths, stream),
                                               call.places, stream);
    forward(call, tape.get(), stream);
    return tape;
  }

  void backward(const Tape& tape, const BackwardCall& call, cudaStream_t stream) override;

 private:
  // Before anything is given to the stream.
  void refuse_other_work(cudaStream_t stream) const {
    if (const int current = current_device(); current != device_)
      throw std::runtime_error("device: expected the current one to be " + std::to_string(device_) +
                               ", which has the module's parameters, got " + std::to_string(current));
    if (is_capturing(stream))
      throw std::runtime_error(
          "stream: expected one that no graph is captured from, since calls copy what they are given");
  }

  Index H() const { return spec_.hidden_size; }
  Index P() const { return spec_.state_size(); }
  Index width() const { return spec_.output_size(); }
  Index gates() const { return cell_.gates; }
  Index kept_width() const { return cell_.kept * H(); }
  Index gradient_slots() const { return cell_.gradient_slots(); }
  Index tracks() const { return spec_.num_layers * spec_.directions; }

  // What all functions of one call share.
  struct Context {
    const Batch& batch;
    Blas& blas;
    cudaStream_t stream;
    Plan plan;

    Scratch& scratch() const { return blas.scratch(); }
    template <class T>
    Scratched<T> take(Index count) const {
      return scratch().template take<T>(count);
    }
  };

  // One layer and direction of a call.
  struct Track {
    Index layer, direction;
    Index number(const Spec& spec) const { return layer * spec.directions + direction; }
  };

  // ---- Parameters --------------------------------------------------------------------------------------------------------
  DeviceArray<S> stored(const A* host, Index count, cudaStream_t stream) const {
    DeviceArray<A> copied = as_sums(host, count, stream);
    if constexpr (std::is_same_v<S, A>) {
      return copied;
    } else {
      DeviceArray<S> result(count, stream);
      launch(convert<S, A>, count / H(), H(), stream, copied.data(), count / H(), static_cast<int>(H()), result.data());
      return result;
    }
  }
  DeviceArray<A> as_sums(const A* host, Index count, cudaStream_t stream) const {
    DeviceArray<A> result(count, stream);
    copy(result.data(), host, result.bytes(), cudaMemcpyHostToDevice, stream);
    return result;
  }

  Weights<S> upload(const LayerParameters<A>& from, Index layer, cudaStream_t stream) const {
    Weights<S> weights;
    weights.weight_ih = stored(from.weight_ih, gates() * H() * spec_.layer_input_size(layer), stream);
    weights.weight_hh = stored(from.weight_hh, gates() * H() * P(), stream);
    if (spec_.proj_size > 0) weights.weight_hr = stored(from.weight_hr, P() * H(), stream);
    std::vector<A> bias;
    for (Index slot = 0; slot < cell_.slots; ++slot)
      for (Index unit = 0; unit < H(); ++unit) bias.push_back(slot_bias(from, cell_, slot, H(), unit));
    weights.bias = as_sums(bias.data(), static_cast<Index>(bias.size()), stream);
    std::vector<A> peephole;
    for (int i = 0; i < cell_.peephole_count; ++i)
      peephole.insert(peephole.end(), from.peephole[i], from.peephole[i] + H());
    weights.peephole = as_sums(peephole.data(), static_cast<Index>(peephole.size()), stream);
    std::vector<A> norm;
    for (int i = 0; i < norm_vectors(cell_); ++i)
      for (Index unit = 0; unit < H(); ++unit) norm.push_back(norm_value(from, cell_, i, H(), unit));
    weights.norm = as_sums(norm.data(), static_cast<Index>(norm.size()), stream);
    return weights;
  }

  // ---- Forward -----------------------------------------------------------------------------------------------------------
  // Memory that the steps of a track share.
  struct State {
    Scratched<S> h[2], second_operand, unprojected;  // [rank][P], [rank][H]
    Scratched<A> c, carried, products;
    Scratched<A> values;  // of normalised cells, see forward_normalized
    State(const TypedNetwork& n, const Context& x) {
      const Index batch = x.batch.batch(), of_units = batch * n.H();
      const bool launched = !x.plan.forward.fits;
      for (Scratched<S>& each : h) each = x.template take<S>(batch * n.P());
      second_operand = x.template take<S>(launched && n.cell_.two_stages() ? of_units : 0);
      unprojected = x.template take<S>(n.spec_.proj_size > 0 ? of_units : 0);
      c = x.template take<A>(n.cell_.has_c ? of_units : 0);
      carried = x.template take<A>(second_operand.size());
      products = x.template take<A>(launched ? n.gates() * of_units : 0);
      values = x.template take<A>(n.cell_.is_normalized() ? (n.cell_.slots + 1) * of_units : 0);
    }
  };

  void forward(const ForwardCall& call, TypedTape<S>* tape, cudaStream_t stream) {
    if (call.batch == 0) return;
    std::unique_ptr<Batch> own;
    if (!tape) own = std::make_unique<Batch>(call.steps, call.batch, call.lengths, stream);
    const Batch& batch = tape ? tape->batch : *own;
    const auto borrowed = blas_pool_.borrow(stream);
    const Context x{batch, *borrowed, stream, plan(call.steps, call.batch)};
    x.blas.begin(stream, tf32_);
    const bool dropping = tape && tape->options.dropout.rate > 0;
    const Index parts = tape && tape->options.recompute ? 32 : 1;
    const std::vector<Index> blocks = batch.blocks(x.plan.most_pairs, std::max<Index>(1, call.steps / parts));
    if (tape) tape->blocks = blocks;

    // Without a tape and zeros past the lengths the last layer writes where the caller wants it.
    const bool to_caller = !tape && !batch.ragged() && call.y.storage == storage_of<S> && !call.y_may_overlap;
    DeviceArray<S> below;
    for (Index layer = 0; layer < spec_.num_layers; ++layer) {
      const bool last_to_caller = to_caller && layer + 1 == spec_.num_layers;
      DeviceArray<S> output(last_to_caller ? 0 : call.steps * call.batch * width(), stream);
      if (batch.ragged()) clear(output.data(), output.size(), stream);
      Features<S> places = last_to_caller ? features<S>(call.y) : column(output.data(), 0, width(), x);
      const AnyFeatures in = layer == 0 ? call.x : dense(tape ? input_of(*tape, layer) : below.data(), width(), x);
      for (Index direction = 0; direction < spec_.directions; ++direction, places.data += P())
        run_track(x, {layer, direction}, blocks, in, places, call, tape);
      if (tape && dropping && layer + 1 < spec_.num_layers) {
        DeviceArray<S> dropped(output.size(), stream);
        launch(drop<S>, call.steps * call.batch, width(), stream, batch.order(), tape->options.dropout, tape->places,
               layer, static_cast<int>(width()), static_cast<const S*>(output.data()), dropped.data());
        tape->inputs.push_back(std::move(dropped));
      }
      below = std::move(output);
      if (tape && layer + 1 < spec_.num_layers) tape->outputs.push_back(std::move(below));
    }
    if (!to_caller) copy_out(x, dense(below.data(), width(), x), call.y, width());
    if (tape) tape->outputs.push_back(std::move(below));
  }

  // Of a layer from the second on.
  static S* input_of(const TypedTape<S>& tape, Index layer) {
    return (tape.inputs.empty() ? tape.outputs : tape.inputs)[layer - 1].data();
  }

  template <class T>
  static AnyFeatures dense(T* data, Index width, const Context& x) {
    return {const_cast<std::remove_const_t<T>*>(data), storage_of<std::remove_const_t<T>>, x.batch.batch() * width,
            width};
  }
  template <class T>
  static Features<T> features(const AnyFeatures& any) {
    return {static_cast<T*>(any.data), any.time_stride, any.row_stride};
  }
  static Features<S> column(S* data, Index offset, Index width, const Context& x) {
    return {data + offset, x.batch.batch() * width, width};
  }

  void copy_out(const Context& x, const AnyFeatures& from, const AnyFeatures& to, Index width) const {
    const Index places = x.batch.steps() * x.batch.batch();
    with_type(from.storage, [&](auto source) {
      with_type(to.storage, [&](auto target) {
        using From = decltype(source);
        using To = decltype(target);
        launch(copy_features<To, From>, places, width, x.stream, x.batch.order(), features<const From>(from),
               static_cast<int>(width), features<To>(to));
      });
    });
  }

  // One track's part of states in the caller's order, from or to the order of ranks.
  template <class T>
  void take_state(const Context& x, const Track& track, const AnyState& from, Index width, T* to) const {
    const Index count = x.batch.batch() * width;
    if (!from.data) return clear(to, count, x.stream);
    with_type(from.storage, [&](auto source) {
      using From = decltype(source);
      const From* const states = static_cast<const From*>(from.data);
      if (from.of_all_rows)
        launch(repeat_row<T, From>, x.batch.batch(), width, x.stream, states + track.number(spec_) * width,
               x.batch.batch(), static_cast<int>(width), to);
      else
        launch(copy_by_rank<T, From>, x.batch.batch(), width, x.stream, x.batch.order(), static_cast<int>(width),
               states + track.number(spec_) * count, true, to);
    });
  }
  template <class T>
  void give_state(const Context& x, const Track& track, const T* from, Index width, const AnyState& to) const {
    if (!to.data) return;
    const Index count = x.batch.batch() * width;
    with_type(to.storage, [&](auto target) {
      using To = decltype(target);
      launch(copy_by_rank<To, T>, x.batch.batch(), width, x.stream, x.batch.order(), static_cast<int>(width), from,
             false, static_cast<To*>(to.data) + track.number(spec_) * count);
    });
  }

  void run_track(const Context& x, const Track& track, const std::vector<Index>& blocks, const AnyFeatures& in,
                 const Features<S>& output, const ForwardCall& call, TypedTape<S>* tape) {
    const Scratch::Scope scope(x.scratch());
    State state(*this, x);
    take_state(x, track, call.h_0, P(), state.h[0].data());
    if (cell_.has_c) take_state(x, track, call.c_0, H(), state.c.data());
    const bool keeping = tape && !tape->options.recompute && kept_width() > 0;
    if (tape) {
      tape->h_0.emplace_back(state.h[0].size(), x.stream);
      copy(tape->h_0.back().data(), state.h[0].data(), state.h[0].bytes(), cudaMemcpyDeviceToDevice, x.stream);
      tape->kept.emplace_back(keeping ? x.batch.offset(x.batch.steps()) * kept_width() : 0, x.stream);
      tape->c.emplace_back(cell_.has_c ? static_cast<Index>(blocks.size()) * state.c.size() : 0, x.stream);
    }
    for (std::size_t b = 0; b + 1 < blocks.size(); ++b) {
      if (tape && cell_.has_c)
        copy(tape->c.back().data() + static_cast<Index>(b) * state.c.size(), state.c.data(), state.c.bytes(),
             cudaMemcpyDeviceToDevice, x.stream);
      A* kept = keeping ? tape->kept.back().data() + x.batch.offset(blocks[b]) * kept_width() : nullptr;
      run_block(x, track, blocks[b], blocks[b + 1], in, state, output, kept);
    }
    final_state(x, track, state, call);
  }

  // A row's last h is in the array where its last step left it; the persistent kernel leaves it in both.
  void final_state(const Context& x, const Track& track, const State& state, const ForwardCall& call) const {
    if (x.plan.forward.fits) {
      give_state(x, track, static_cast<const S*>(state.h[0].data()), P(), call.h_n);
    } else if (call.h_n.data) {
      const Scratched<S> last = x.template take<S>(state.h[0].size());
      launch(choose_last<S>, x.batch.batch(), P(), x.stream, x.batch.order(), static_cast<int>(P()),
             static_cast<const S*>(state.h[0].data()), static_cast<const S*>(state.h[1].data()), last.data());
      give_state(x, track, static_cast<const S*>(last.data()), P(), call.h_n);
    }
    if (cell_.has_c) give_state(x, track, static_cast<const A*>(state.c.data()), H(), call.c_n);
  }

  // Whether all pairs of a direction stand one after the other in an array of features.
  bool are_pairs(const Context& x, const Track& track, const AnyFeatures& in, Index width, Storage storage) const {
    return !x.batch.ragged() && !spec_.backwards(track.direction) && in.storage == storage && in.row_stride == width &&
           in.time_stride == x.batch.batch() * width;
  }

  // The rows of a block's pairs, one after the other: where they already stand so, or a copy.
  const S* gathered(const Context& x, const Track& track, const StepBlock& block, const AnyFeatures& in,
                    Index width) const {
    if (are_pairs(x, track, in, width, storage_of<S>))
      return static_cast<const S*>(in.data) + x.batch.offset(block.begin) * width;
    const auto result = x.template take<S>(block.pairs * width);
    with_type(in.storage, [&](auto source) {
      using From = decltype(source);
      launch(gather<S, From>, block.pairs, width, x.stream, block, x.batch.order(), features<const From>(in),
             static_cast<int>(width), result.data());
    });
    return result.data();
  }

  void run_block(const Context& x, const Track& track, Index begin, Index end, const AnyFeatures& in, State& state,
                 const Features<S>& output, A* kept) const {
    const Weights<S>& weights = weights_[track.number(spec_)];
    const Index I = spec_.layer_input_size(track.layer);
    const Scratch::Scope scope(x.scratch());
    const StepBlock block = x.batch.block(begin, end, spec_.backwards(track.direction));
    const S* inputs = gathered(x, track, block, in, I);
    const Scratched<A> projected = x.template take<A>(block.pairs * gates() * H());
    x.blas.template multiply_transposed<S>(block.pairs, gates() * H(), I, {inputs, I}, {weights.weight_ih.data(), I},
                                           false, {projected.data(), gates() * H()});
    Step<S> step{};
    step.units = static_cast<int>(H());
    step.gates = static_cast<int>(gates());
    step.projected = projected.data();
    step.bias = weights.bias.data();
    step.peephole = weights.peephole.data();
    step.norm = weights.norm.data();
    step.c = state.c.data();
    step.second_operand = state.second_operand.data();
    step.carried = state.carried.data();
    step.kept = kept;
    step.kept_slots = cell_.kept;
    step.has_output = output.data != nullptr;
    step.output = output;
    step.order = x.batch.order();
    step.reverse = block.reverse;
    step.options = spec_.options.template as<A>();
    step.rows = static_cast<int>(x.batch.count(begin));
    if (x.plan.forward.fits) return recur(x, step, block, weights, state);
    for (Index t = begin; t < end; ++t) {
      const Index rows = x.batch.count(t);
      step.rows = static_cast<int>(rows);
      step.step = static_cast<int>(t);
      step.h = state.h[t % 2].data();
      step.h_next = state.h[1 - t % 2].data();
      take_step(x, step, weights, state);
      step.projected += rows * gates() * H();
      if (kept) step.kept += rows * kept_width();
    }
  }

  void take_step(const Context& x, const Step<S>& step, const Weights<S>& weights, const State& state) const {
    if (spec_.proj_size > 0) return take_projected_step(x, step, weights, state);
    run_stages(x, step, weights, state);
  }

  void run_stages(const Context& x, const Step<S>& step, const Weights<S>& weights, const State& state) const {
    with_cell(spec_.cell, [&](auto constant) {
      constexpr Cell cell = decltype(constant)::value;
      run_stage<cell, 0>(x, step, step.h, weights, state);
      if constexpr (description(cell).two_stages()) run_stage<cell, 1>(x, step, step.second_operand, weights, state);
    });
  }

  void take_projected_step(const Context& x, Step<S> step, const Weights<S>& weights, const State& state) const {
    Step<S> projection = step;
    step.h_next = state.unprojected.data();
    step.has_output = false;
    run_stages(x, step, weights, state);
    x.blas.template multiply_transposed<S>(step.rows, P(), H(), {state.unprojected.data(), H()},
                                           {weights.weight_hr.data(), H()}, false, {state.products.data(), P()});
    projection.units = static_cast<int>(P());
    launch(deliver_projected<S>, step.rows, P(), x.stream, projection, static_cast<const A*>(state.products.data()));
  }

  template <Cell cell, int stage>
  void run_stage(const Context& x, const Step<S>& step, const S* operand, const Weights<S>& weights,
                 const State& state) const {
    constexpr Index count = description(cell).stages[stage].gates;
    x.blas.template multiply_transposed<S>(step.rows, count * H(), P(), {operand, P()},
                                           {weights.weight_hh.data() + cell_.first_gate(stage) * H() * P(), P()}, false,
                                           {state.products.data(), count * H()});
    const auto* products = static_cast<const A*>(state.products.data());
    if constexpr (description(cell).is_normalized())
      launch_by_row<A>(forward_normalized<S, cell>, step.rows, x.stream, step, products, state.values.data());
    else
      launch(forward_stage<S, cell, stage>, step.rows, H(), x.stream, step, products);
  }

  // Calls `visit` with the cell as a constant, where it is one that whole recurrences are compiled for.
  template <class Visit>
  void with_plain_cell(Visit&& visit) const {
    with_cell(spec_.cell, [&](auto cell) {
      if constexpr (!description(decltype(cell)::value).is_general()) visit(cell);
    });
  }

  // The same with a block's rows.
  template <class Visit>
  void with_undivided_rows(const RecurrencePlan& plan, Visit&& visit) const {
    with_plain_cell([&](auto cell) {
      if (plan.rows == 1)
        visit(cell, std::integral_constant<int, 1>());
      else
        visit(cell, std::integral_constant<int, 2>());
    });
  }

  // The same with the rows of a thread's tile.
  template <class Visit>
  void with_tile(const RecurrencePlan& plan, Visit&& visit) const {
    with_plain_cell([&](auto cell) {
      switch (plan.products[0].tiling.tile_rows) {
        case 1: return visit(cell, std::integral_constant<int, 1>());
        case 4: return visit(cell, std::integral_constant<int, 4>());
        default: return visit(cell, std::integral_constant<int, 8>());
      }
    });
  }

  // `visit(slot, count, gate)` for slots that follow one another as their gates do in the weights.
  template <class Visit>
  void for_each_run(int first, int count, Visit&& visit) const {
    for (int slot = first, end; slot < first + count; slot = end) {
      const int gate = cell_.gate_of_slot[slot];
      for (end = slot + 1; end < first + count && cell_.gate_of_slot[end] == gate + end - slot;) ++end;
      visit(slot, end - slot, gate);
    }
  }

  // Memory for what the blocks of a kernel send each other.
  Scratched<S> unsent(const Context& x, const RecurrencePlan& plan, const StepBlock& block, Index depth) const {
    const Index steps = block.end - block.begin;
    const auto sent = x.template take<S>(steps * plan.row_groups * exchanged_values<S>(depth, plan.rows));
    if (!plan.counts()) fill_with_ones(sent.data(), sent.size(), x.stream);
    return sent;
  }
  Scratched<unsigned> none_arrived(const Context& x, const RecurrencePlan& plan) const {
    const auto arrived = x.template take<unsigned>(plan.counts() ? plan.row_groups * kCounterStride : 0);
    clear(arrived.data(), arrived.size(), x.stream);
    return arrived;
  }

  template <class Arguments>
  void start_undivided(const Context& x, void (*kernel)(Arguments), const Arguments& arguments) const {
    const RecurrencePlan& plan = arguments.plan;
    allow_all_shared_bytes(kernel);
    check(start(kernel, dim3(static_cast<unsigned>(plan.row_groups)),
                dim3(static_cast<unsigned>(plan.undivided_threads())), static_cast<std::size_t>(plan.shared_bytes),
                x.stream, arguments),
          "starting a persistent kernel");
  }
  template <class Arguments>
  void start_recurrence(const Context& x, void (*kernel)(Arguments), const Arguments& arguments) const {
    const RecurrencePlan& plan = arguments.plan;
    allow_all_shared_bytes(kernel);
    check(start_together(kernel, dim3(static_cast<unsigned>(plan.row_groups * plan.unit_groups)),
                         dim3(kRecurrenceThreads), static_cast<std::size_t>(plan.shared_bytes), x.stream, arguments),
          "starting a persistent kernel");
  }
  // Another call of the same kernel may need more than this one.
  template <class Arguments>
  void allow_all_shared_bytes(void (*kernel)(Arguments)) const {
    check(allow_shared_bytes(kernel, static_cast<std::size_t>(limits_.shared_bytes)), "asking for shared memory");
  }

  void recur(const Context& x, const Step<S>& step, const StepBlock& block, const Weights<S>& weights,
             const State& state) const {
    Recurrence<S> arguments{};
    arguments.first = step;
    arguments.block = block;
    arguments.plan = x.plan.forward;
    arguments.weights = weights.weight_hh.data();
    arguments.h_begin = state.h[block.begin % 2].data();
    for (int i = 0; i < 2; ++i) arguments.h_end[i] = state.h[i].data();
    if (arguments.plan.undivided)
      return with_undivided_rows(arguments.plan, [&](auto cell, auto rows) {
        start_undivided(x, forward_undivided<S, decltype(cell)::value, decltype(rows)::value>, arguments);
      });
    arguments.sent_h = unsent(x, x.plan.forward, block, H()).data();
    if (cell_.two_stages()) arguments.sent_operand = unsent(x, x.plan.forward, block, H()).data();
    arguments.arrived = none_arrived(x, x.plan.forward).data();
    with_tile(arguments.plan, [&](auto cell, auto tile) {
      start_recurrence(x, forward_recurrence<S, decltype(cell)::value, decltype(tile)::value>, arguments);
    });
  }

  // ---- Backward ----------------------------------------------------------------------------------------------------------
  struct BackState {
    Scratched<A> d_h, d_c, d_unprojected;  // [rank][P], [rank][H]
    Scratched<A> products;
    Scratched<A> d;  // of normalised cells, see backward_normalized
    BackState(const TypedNetwork& n, const Context& x) {
      const Index batch = x.batch.batch(), of_units = batch * n.H();
      d_h = x.template take<A>(batch * n.P());
      d_c = x.template take<A>(n.cell_.has_c ? of_units : 0);
      d_unprojected = x.template take<A>(n.spec_.proj_size > 0 ? of_units : 0);
      products = x.template take<A>(n.cell_.two_stages() && !x.plan.backward.fits ? of_units : 0);
      d = x.template take<A>((n.cell_.pre_activations + n.cell_.normalized_slots()) * of_units);
    }
  };

  // What the pairs of a block leave for the products that merge them.
  struct BackBlock {
    StepBlock steps;
    const S *inputs, *h;
    Scratched<S> h_before, d_a, operand, d_h;
    const A* kept;
    const A* c_before;
  };

  void back_track(const Context& x, const Track& track, const TypedTape<S>& tape, const AnyFeatures& in,
                  const Features<const A>& d_output, const BackwardCall& call, const Features<A>& d_input) const;
  void back_steps(const Context& x, const Track& track, const BackBlock& block, const BackStep<S>& first,
                  const BackState& state) const;
  void take_back_step(const Context& x, const Weights<S>& weights, BackStep<S> step, S* d_h,
                      const BackState& state) const;
  void add_to_gradients(const Context& x, const Track& track, const BackBlock& block, const GradientPlaces& to,
                        bool add) const;
  // Where those of biases and of layer normalisation go.
  static LayerGradients<A> norm_places(const GradientPlaces& to) {
    LayerGradients<A> places;
    places.bias_ih = static_cast<A*>(to.bias_ih);
    places.bias_hh = static_cast<A*>(to.bias_hh);
    places.weight_ln = static_cast<A*>(to.weight_ln);
    places.weight_ln_hh = static_cast<A*>(to.weight_ln_hh);
    places.weight_ln_c = static_cast<A*>(to.weight_ln_c);
    places.bias_ln_c = static_cast<A*>(to.bias_ln_c);
    return places;
  }
  void clear_gradients(const Context& x, const Track& track, const GradientPlaces& to) const;

  const Spec spec_;
  const CellDescription& cell_ = spec_.description();
  const bool tf32_;
  const int device_;  // where the weights are
  const DeviceLimits limits_;
  std::vector<Weights<S>> weights_;
  BlasPool& blas_pool_;
  mutable std::mutex planning_;
  mutable Problem planned_;
  mutable Plan plan_;
};

}  // namespace gatedrnn::cuda

#include "network_backward.cuh"
