// What forward keeps for backward, and what backward gives.
#pragma once

#include <cstdint>
#include <vector>

#include "gatedrnn/network.h"
#include "gatedrnn/row_order.h"
#include "gatedrnn/tape_options.h"

namespace gatedrnn {

// Rows are in the order of their rank: longest first. A track is one layer and direction.
template <class T>
class Tape {
 public:
  // Lives in `memory`, which grows where it is too small.
  Tape(const Spec& spec, const Sequence<T>& sequence, const TapeOptions& options, Workspace& memory);
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  const Spec spec;
  const TapeOptions options;
  const Index steps, batch;
  std::vector<Index> lengths;  // [B], by row
  std::vector<Index> rows;     // [B], by rank
  // Backward goes through the steps in blocks: blocks[i] .. blocks[i + 1], from the last to the first (with mergers in shorter
  // ones of its plan).
  std::vector<Index> blocks;

  PairOrder pairs;       // in `kept`, `outputs`, `inputs` and `masks`, as forward's plan wants it
  std::vector<T*> kept;  // by track: [(step, rank)][kept_width], see kept_offset; with `recompute` nowhere
  std::vector<T*>
      c;  // by track, where there is c: [checkpoint][rank][H]: c before each block, or with all kept before the first
  std::vector<T*> outputs;           // by layer: [(t, rank)][D * P]
  std::vector<T*> inputs;            // by layer from the second on, with dropout: what is left of the outputs below
  std::vector<std::uint8_t*> masks;  // the same places: 1 where a value was left
  T* h_0 = nullptr;                  // [track][rank][P]

  Index length(Index rank) const { return lengths[rows[rank]]; }
  Index tracks() const { return spec.num_layers * spec.directions; }
  Index kept_width() const { return spec.description().kept * spec.hidden_size; }
  bool recomputing() const { return options.recompute && kept_width() > 0; }
  Index most_block_pairs() const { return most_block_pairs_; }  // (step, row) pairs of the largest block
  Index most_block_steps() const { return most_block_steps_; }
  Index bytes() const { return bytes_; }

 private:
  void make_blocks();
  void carve(Arena& arena);

  Index most_block_pairs_ = 0, most_block_steps_ = 0, bytes_ = 0;
};

// Where the gradients of one layer's and direction's parameters go, in the layout of the parameters.
template <class T>
struct LayerGradients {
  T* weight_ih = nullptr;
  T* weight_hh = nullptr;
  T* bias_ih = nullptr;
  T* bias_hh = nullptr;
  T* weight_hr = nullptr;
  T* peephole[kMostPeepholes] = {};
};

// One call of backward: x as forward saw it, the gradients of the results, and places for those of everything else.
template <class T>
struct BackwardCall {
  const T* x = nullptr;
  Index x_step = 0, x_row = 0;
  const T* d_y = nullptr;  // null: zeros
  Index d_y_step = 0, d_y_row = 0;
  const T* d_h_n = nullptr;  // [L * D][B][state_size]; null: zeros
  const T* d_c_n = nullptr;
  T* d_x = nullptr;  // null: not wanted
  Index d_x_step = 0, d_x_row = 0;
  T* d_h_0 = nullptr;
  T* d_c_0 = nullptr;
  std::vector<LayerGradients<T>> gradients;  // by track
  bool accumulate = false;                   // add to what stands in `gradients`
  Poll poll;
};

}  // namespace gatedrnn
