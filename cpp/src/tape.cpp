#include "gatedrnn/tape.h"

#include <algorithm>

#include "run.h"

namespace gatedrnn {

template <class T>
Tape<T>::Tape(const Spec& spec, const Sequence<T>& sequence, const TapeOptions& options, Workspace& memory)
    : spec(spec),
      options(options),
      steps(sequence.steps),
      batch(sequence.batch),
      lengths(batch, steps),
      rows(batch),
      pairs(PairOrder::by_step(batch)) {
  if (sequence.lengths) lengths.assign(sequence.lengths, sequence.lengths + batch);
  RowOrder::sort(lengths.data(), batch, rows.data());
  make_blocks();
  bytes_ = memory.carve([&](Arena& arena) { carve(arena); });
}

template <class T>
void Tape<T>::carve(Arena& arena) {
  const Index H = spec.hidden_size, pair_count = steps * batch, outputs_size = pair_count * spec.output_size();
  const Index checkpoints = options.recompute ? std::max<Index>(1, static_cast<Index>(blocks.size()) - 1) : 1;
  kept.clear();
  c.clear();
  for (Index track = 0; track < tracks(); ++track) {
    kept.push_back(arena.take<T>(options.recompute ? 0 : pair_count * kept_width()));
    c.push_back(arena.take<T>(spec.description().has_c ? checkpoints * batch * H : 0));
  }
  outputs.clear();
  inputs.clear();
  masks.clear();
  const bool dropping = options.dropout.rate > 0;
  for (Index layer = 0; layer < spec.num_layers; ++layer) {
    outputs.push_back(arena.take<T>(outputs_size));
    if (!dropping || layer + 1 == spec.num_layers) continue;
    inputs.push_back(arena.take<T>(outputs_size));
    masks.push_back(arena.take<std::uint8_t>(outputs_size));
  }
  h_0 = arena.take<T>(tracks() * batch * spec.state_size());
}

// As many rows as keep the gradients of their pre-activations in a part of the second-level cache, but enough to make passes
// over the sums of the weights' gradients few: twice as many where they would not stay there anyway. With recomputing, few steps,
// since all that they keep has to be there at once.
template <class T>
void Tape<T>::make_blocks() {
  constexpr Index fewest = 256, most = 1024, parts = 32;
  const Index row_bytes = spec.description().slots * spec.hidden_size * static_cast<Index>(sizeof(T));
  const Index wanted =
      fewest * row_bytes > core().l2 ? 2 * fewest : std::clamp(core().l2 / 4 / row_bytes, fewest, most);
  const Index most_steps = options.recompute ? std::max<Index>(1, steps / parts) : steps;
  const RowOrder order{rows.data(), lengths.data(), steps};
  blocks = {0};
  Index running = batch, listed = 0;
  const auto end_block = [&](Index step) {
    most_block_pairs_ = std::max(most_block_pairs_, listed);
    most_block_steps_ = std::max(most_block_steps_, step - blocks.back());
    blocks.push_back(step);
    listed = 0;
  };
  for (Index step = 0; step < steps; ++step) {
    while (running > 0 && order.length(running - 1) <= step) --running;
    if (listed > 0 && (running == 0 || listed + running > wanted || step - blocks.back() == most_steps))
      end_block(step);
    if (running == 0) break;
    listed += running;
    if (step + 1 == steps) end_block(steps);
  }
}

template class Tape<float>;
template class Tape<double>;

}  // namespace gatedrnn
