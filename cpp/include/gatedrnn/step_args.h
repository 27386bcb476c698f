// What a step's kernels get.
//
// A cell's time step is one or two stages, and each stage is one matrix product over packed panels followed by
// pointwise mathematics. Weights are interleaved, so that one panel yields every gate of the units it covers:
//
//     panel[k][gate][unit vector][lane]          with `lanes` lanes in a vector of this instruction set, see format.h
//
// Before the recurrence, `input_gemm` leaves bias + x W_ih in the gates buffer, [panel][row][slot][unit vector][lane];
// `step` adds h W_hh, block by block (sums.h). The buffer is the only meeting point of the two, so how many time steps are
// multiplied ahead can never change a bit.
#pragma once

#include "gatedrnn/core.h"
#include "gatedrnn/format.h"

namespace gatedrnn {

// Where a slot of the vector that begins with `unit` stands in a row of `units` units: [unit vector][slot][lane], so that what
// a cell needs at a time is together. The last vector is as wide as the units that are left: nothing is kept for others.
constexpr Index kept_offset(Index slots, Index slot, Index unit, Index units, int lanes) {
  return unit * slots + slot * (units - unit < lanes ? units - unit : lanes);
}

// gates[panel][row] = bias[panel] + x[row] W[panel], for the panels first_panel .. last_panel.
template <class T>
struct InputGemmArgs {
  const Core* core;
  const T* x;
  const Index* x_at;  // [rows]: where the `depth` values of each row begin, counted from x
  void* rounded;      // scratch for the same in the format, where that rounds
  Index rows;
  Index depth;
  Index first_panel, last_panel;
  bool panels_reversed;  // visit the panels from the last to the first
  const void* weights;   // panels of the format
  const T* bias;         // [panel][slots * unit_vectors][lanes]
  T* gates;              // [panel][row][slots * unit_vectors][lanes]; a slot without a gate stays as it is
  Index gates_panel_stride;
};

// How a step writes what it leaves behind. What is no longer near is fetched while the product before is computed, or it goes past the
// caches, as far as a row's place allows.
enum class Write { near, fetched, streamed };

// One stage of one time step for `rows` rows, for the panels first_panel .. last_panel.
template <class T>
struct StepArgs {
  const Core* core;
  Index rows;
  Index depth;  // length of the recurrent product
  Index units;  // units that exist; the last panel may cover more
  Index first_panel, last_panel;
  bool product_only;     // leave the cell for a call of depth 0
  bool panels_reversed;  // visit the panels from the last to the first
  const void* weights;   // panels of the format
  const T* bias;         // [panel][slots * unit_vectors][lanes]: the reset-after GRU's n_h starts from it
  T* gates;              // as left by input_gemm; used up
  Index gates_panel_stride;
  Index state_stride;  // of every [rows][state_stride] array below
  const T* operand;    // left side of the product: h[t-1]; the second operand; what is projected
  void* rounded;       // scratch for the same in the format, where that rounds
  const T* h;          // h[t-1]
  T* h_next;           // h[t]
  T* c;                // c[t-1] on entry, c[t] on exit; or null
  T* second_operand;   // of a cell of two stages: what the first one makes for the second
  T* carried;          // likewise, beside it
  const T* peephole;   // [panel][peephole][unit vector][lane]
  T* const* y;         // [rows] pointers to the output rows of this step, or null
  Write y_write;
  T* kept;  // for training: [rows][kept_stride], each row as kept_offset says
  Write kept_write;
  Index kept_stride, kept_slots;
  const CellOptions<T>* options;  // of a general cell
  const T* norm;  // of a normalised one: [panel][slots' weights, then pre-activations' biases][unit vector][lane]
};

}  // namespace gatedrnn
