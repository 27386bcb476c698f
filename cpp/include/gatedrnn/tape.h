// What forward keeps for backward, and what backward gives.
#pragma once

#include <cstdint>
#include <vector>

#include "gatedrnn/network.h"
#include "gatedrnn/row_order.h"
#include "gatedrnn/sums.h"
#include "gatedrnn/tape_options.h"

namespace gatedrnn {

// Time steps in blocks: begins[i] .. begins[i + 1].
struct StepBlocks {
  std::vector<Index> begins;
  std::vector<Index> pair_blocks;  // how many blocks of pairs (sums.h) come before its own, from the end of time on
  Index most_pairs, most_steps;    // of the largest

  Index count() const { return static_cast<Index>(pair_blocks.size()); }
};

// Rows are in the order of their rank: longest first. A track is one layer and direction.
template <class T>
class Tape {
 public:
  // Lives in `memory`, which grows where it is too small.
  Tape(const Network<T>& network, const Sequence<T>& sequence, const TapeOptions& options, Workspace& memory);
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  const Spec spec;
  const TapeOptions options;
  const Index steps, batch;
  const Pieces* const pieces;  // where rows are pieces
  // 0 where lanes hold units. Recomputing stays with those: it goes through blocks of steps of all rows.
  const int lanes_of_rows;
  std::vector<Index> lengths;  // [B], by row
  std::vector<Index> rows;     // [B], by rank
  // Backward goes through the steps in blocks (with gradient threads in shorter ones of its plan), and cuts them where a block of pairs ends.
  StepBlocks blocks;

  PairOrder pairs;  // in `kept`, `outputs`, `inputs` and `masks`, as forward's plan wants it, or compact: of pieces
  std::vector<T*> kept;  // by track: [(step, rank)][kept_width]; with `recompute` nowhere
  // By track, where there is c: [(checkpoint, rank)][H]: c before each block, of the rows that run in its first step; or with all kept
  // before the first.
  std::vector<T*> c;
  std::vector<Index> checkpoint_begins;
  std::vector<T*> outputs;           // by layer: [(t, rank)][D * P]; with rows in lanes not of the last one
  std::vector<T*> inputs;            // by layer from the second on, with dropout: what is left of the outputs below
  std::vector<std::uint8_t*> masks;  // the same places: 1 where a value was left
  T* h_0 = nullptr;                  // [track][rank][P]
  // With rows in lanes `kept` is [step][block of rows][kept values, then h][unit][lane], `c` and `h_0` [block][unit][lane].
  bool in_lanes() const { return lanes_of_rows > 0; }
  Index lane_blocks() const { return ceil_div(batch, lanes_of_rows); }
  T* kept_in_lanes(Index track, Index block, Index step) const {
    const Index begin = pieces ? block_begins_[step] : step * lane_blocks();
    return kept[track] + (begin + block) * (kept_width() + spec.hidden_size) * lanes_of_rows;
  }
  RowOrder order() const { return {rows.data(), lengths.data(), steps, pieces}; }
  // Of pairs, in arrays that have places for them.
  Index places() const { return pieces ? pair_begins_.back() : steps * batch; }
  Index length(Index rank) const { return lengths[rows[rank]]; }
  Index longest() const { return batch > 0 ? length(0) : 0; }
  Index tracks() const { return spec.num_layers * spec.directions; }
  Index kept_width() const { return spec.description().kept * spec.hidden_size; }
  bool recomputing() const { return options.recompute && kept_width() > 0; }
  // In blocks of at most so many pairs and steps, as far as blocks of pairs are no larger.
  StepBlocks cut(Index most_pairs, Index most_steps) const;
  // How many groups the sums over all pairs have.
  Index groups() const { return cuts_.empty() ? 0 : ceil_div(cuts_.back().pair_blocks, kGroupBlocks); }
  Index bytes() const { return bytes_; }

 private:
  // A block of pairs ends with this step, after so many pairs and blocks from the end of time on.
  struct Cut {
    Index step, pairs, pair_blocks;
  };

  Index running(Index step) const;
  void list_step_begins();
  void list_checkpoints();
  void list_cuts();
  StepBlocks default_blocks() const;
  void carve(Arena& arena);

  std::vector<Cut> cuts_;  // from the last step to the first
  // Of pieces: how many pairs the steps before have, and with rows in lanes how many blocks of rows.
  std::vector<Index> pair_begins_, block_begins_;
  Index bytes_ = 0;
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
