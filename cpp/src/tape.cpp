#include "gatedrnn/tape.h"

#include <algorithm>

namespace gatedrnn {

template <class T>
Tape<T>::Tape(const Network<T>& network, const Sequence<T>& sequence, const TapeOptions& options, Workspace& memory)
    : spec(network.spec()),
      options(options),
      steps(sequence.steps),
      batch(sequence.batch),
      pieces(sequence.pieces),
      lanes_of_rows(
          !recomputing() && has_rows_in_lanes(spec, network.kernels().lanes(), batch) ? network.kernels().lanes() : 0),
      lengths(batch, steps),
      rows(batch),
      pairs(PairOrder::by_step(batch)) {
  if (sequence.lengths) lengths.assign(sequence.lengths, sequence.lengths + batch);
  RowOrder::sort(lengths.data(), batch, rows.data());
  if (pieces) list_step_begins();
  list_cuts();
  blocks = default_blocks();
  list_checkpoints();
  bytes_ = memory.carve([&](Arena& arena) { carve(arena); });
}

template <class T>
void Tape<T>::carve(Arena& arena) {
  const Index H = spec.hidden_size, outputs_size = places() * spec.output_size();
  const Index rows = in_lanes() ? lane_blocks() * lanes_of_rows : batch;
  const Index kept_places = !pieces ? steps * rows : in_lanes() ? block_begins_.back() * lanes_of_rows : places();
  kept.clear();
  c.clear();
  for (Index track = 0; track < tracks(); ++track) {
    const Index width = in_lanes() ? kept_width() + H : options.recompute ? 0 : kept_width();
    kept.push_back(arena.take<T>(kept_places * width));
    c.push_back(arena.take<T>(spec.description().has_c ? (in_lanes() ? rows : checkpoint_begins.back()) * H : 0));
  }
  outputs.clear();
  inputs.clear();
  masks.clear();
  const bool dropping = options.dropout.rate > 0;
  for (Index layer = 0; layer < spec.num_layers; ++layer) {
    const bool last = layer + 1 == spec.num_layers;
    outputs.push_back(arena.take<T>(in_lanes() && last ? 0 : outputs_size));
    if (!dropping || last) continue;
    inputs.push_back(arena.take<T>(outputs_size));
    masks.push_back(arena.take<std::uint8_t>(outputs_size));
  }
  h_0 = arena.take<T>(tracks() * rows * spec.state_size());
}

template <class T>
Index Tape<T>::running(Index step) const {
  return std::partition_point(rows.begin(), rows.end(), [&](Index row) { return lengths[row] > step; }) - rows.begin();
}

template <class T>
void Tape<T>::list_step_begins() {
  pair_begins_ = block_begins_ = {0};
  for (Index step = 0; step < steps; ++step) {
    pair_begins_.push_back(pair_begins_.back() + running(step));
    if (in_lanes()) block_begins_.push_back(block_begins_.back() + ceil_div(running(step), lanes_of_rows));
  }
  pairs = PairOrder::compact(pair_begins_.data());
}

template <class T>
void Tape<T>::list_checkpoints() {
  checkpoint_begins = {0};
  const Index count = options.recompute ? std::max<Index>(1, blocks.count()) : 1;
  for (Index i = 0; i < count; ++i) checkpoint_begins.push_back(checkpoint_begins.back() + running(blocks.begins[i]));
}

template <class T>
void Tape<T>::list_cuts() {
  const RowOrder order{rows.data(), lengths.data(), steps};
  PairBlocks pair_blocks;
  Index running = 0, before = 0, ended = 0;
  for (Index step = longest() - 1; step >= 0; --step) {
    while (running < batch && order.length(running) > step) ++running;
    const Index after = before + running;
    pair_blocks.add_step(running, [&](Index pairs) {
      ++ended;
      if (pairs == before || pairs == after) cuts_.push_back({pairs == before ? step + 1 : step, pairs, ended});
    });
    before = after;
  }
  pair_blocks.finish([&](Index pairs) { cuts_.push_back({0, pairs, ended + 1}); });
}

// As many rows as keep the gradients of their pre-activations in a part of the second-level cache, but enough to make passes
// over the sums of the weights' gradients few: twice as many where they would not stay there anyway. With recomputing, few steps,
// since all that they keep has to be there at once.
template <class T>
StepBlocks Tape<T>::default_blocks() const {
  constexpr Index fewest = 256, most = 1024, parts = 32;
  const Index row_bytes = spec.description().gradient_slots() * spec.hidden_size * static_cast<Index>(sizeof(T));
  const Index wanted =
      fewest * row_bytes > core().l2 ? 2 * fewest : std::clamp(core().l2 / 4 / row_bytes, fewest, most);
  return cut(wanted, options.recompute ? std::max<Index>(1, steps / parts) : steps);
}

template <class T>
StepBlocks Tape<T>::cut(Index most_pairs, Index most_steps) const {
  StepBlocks blocks{{longest()}, {}, 0, 0};
  Cut begin{longest(), 0, 0};
  const auto end_block = [&](const Cut& end) {
    blocks.begins.push_back(end.step);
    blocks.pair_blocks.push_back(begin.pair_blocks);
    blocks.most_pairs = std::max(blocks.most_pairs, end.pairs - begin.pairs);
    blocks.most_steps = std::max(blocks.most_steps, begin.step - end.step);
    begin = end;
  };
  const Cut* last = nullptr;  // in the block at work
  for (const Cut& next : cuts_) {
    if (last && (next.pairs - begin.pairs > most_pairs || begin.step - next.step > most_steps)) end_block(*last);
    last = &next;
  }
  if (last) end_block(*last);
  std::reverse(blocks.begins.begin(), blocks.begins.end());
  std::reverse(blocks.pair_blocks.begin(), blocks.pair_blocks.end());
  return blocks;
}

template class Tape<float>;
template class Tape<double>;

}  // namespace gatedrnn
