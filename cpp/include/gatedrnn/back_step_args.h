// What the kernels of a step backward get.
//
// It is one or two stages, each a matrix product, with the transposed weights, followed by pointwise
// mathematics. The product brings the gradient of h from the pre-activations of the step after; the mathematics turns it into
// the gradients of this step's pre-activations. These stand in rows [slot][unit], a slot as wide as whole vectors. The slots
// are those of the gates buffer (step_args.h), so that for the reset-after GRU the first three belong to W_ih and the last three to
// W_hh.
#pragma once

#include "gatedrnn/core.h"
#include "gatedrnn/format.h"

namespace gatedrnn {

constexpr int kBackVectors = 4;  // unit vectors of a backward panel

// One stage of one time step for `rows` rows, for the panels first_panel .. last_panel.
template <class T>
struct BackStepArgs {
  const Core* core;
  Index rows;
  Index depth;       // of the product; 0 where there is no step after
  Index slot_units;  // of each slot that the product reads
  Index units;       // units that exist; the last panel may cover more
  Index first_panel, last_panel;
  bool product_only;     // leave the cell for the kernel of its own that it has
  bool panels_reversed;  // visit the panels from the last to the first
  const void* weights;   // panels of the format
  const T* operand;      // left side of the product: [rows][operand_stride]
  void* rounded;         // scratch for the same in the format, where that rounds
  Index operand_stride;
  T* products;  // scratch: [panel][row][kBackVectors][lanes]
  Index products_panel_stride;
  Index state_stride;   // of every [rows][state_stride] array
  T* carry;             // [rows][state_stride]: joins the product; on exit what goes to h[t-1] directly; or null
  const T* const* d_y;  // [rows] pointers to the gradients of this step's output, or null
  const T* kept;        // [rows][kept_stride] as forward left it
  const T* c;           // c[t-1], [rows][c_stride], each row as kept_offset says, the last of c_slots
  const T* const* h;    // [rows] pointers to what the description's h_read says
  const T* peephole;    // [peephole][slot_stride]
  Index kept_stride, kept_slots, c_stride, c_slots;
  T* d_c;  // [rows][state_stride]: the gradient of c[t] on entry, of c[t-1] on exit
  T* d_a;  // the result: [rows][d_a_stride] of [slot][unit]
  Index d_a_stride, slot_stride;
  T* streamed_d_a;  // the same past the caches, for threads that are far away; or null
  Index streamed_d_a_stride;
  T* operand_of_weights;  // [rows][its stride], or null: the second operand, or what is projected
  Index operand_of_weights_stride;
  T* const* out;                  // linear, [rows] pointers: the result
  bool add;                       // linear: to what is there
  const CellOptions<T>* options;  // of a general cell
  const T* norm;                  // of a normalised one: [slots' weights, then pre-activations' biases][slot_stride]
};

}  // namespace gatedrnn
