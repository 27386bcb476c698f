// The border between the engine (compiled once, for any machine) and the kernels (compiled once per instruction set).
// Only plain structs and function pointers cross it.
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
#include "gatedrnn/rows_in_lanes.h"
#include "gatedrnn/spec.h"

namespace gatedrnn {

// gates[panel][row] = bias[panel] + x[row] W[panel], for the panels first_panel .. last_panel.
template <class T>
struct InputGemmArgs {
  const Core* core;
  const T* x;
  const Index* x_at;  // [rows]: where the `depth` values of each row begin, counted from x
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
  Index state_stride;   // of every [rows][state_stride] array below
  const void* operand;  // of the format, left side of the product: h[t-1]; the second operand; what is projected
  const T* h;           // h[t-1]
  T* h_next;            // h[t]
  T* c;                 // c[t-1] on entry, c[t] on exit; or null
  T* second_operand;    // of a cell of two stages: what the first one makes for the second
  T* carried;           // likewise, beside it
  const T* peephole;    // [panel][peephole][unit vector][lane]
  T* const* y;          // [rows] pointers to the output rows of this step, or null
  Write y_write;
  T* kept;  // for training: [rows][kept_stride], each row as kept_offset says
  Write kept_write;
  Index kept_stride, kept_slots;
};

// Sizes of a product's weights from which it takes other paths. What fits here stays in the second-level cache of any current
// server core; more comes from afar.
constexpr Index kNearBytes = 448 << 10;

// What exceeds this comes from memory, where reading a panel in halves defeats the hardware's prefetcher.
constexpr Index kFarBytes = 8 << 20;

// ---- Backward -----------------------------------------------------------------------------------------------------------
//
// A step's backward is one or two stages too, each a matrix product, with the transposed weights, followed by pointwise
// mathematics. The product brings the gradient of h from the pre-activations of the step after; the mathematics turns it into
// the gradients of this step's pre-activations. These stand in rows [slot][unit], a slot as wide as whole vectors. The slots
// are those of the gates buffer above, so that for the reset-after GRU the first three belong to W_ih and the last three to
// W_hh.

// Where a slot of the vector that begins with `unit` stands in a row of `units` units: [unit vector][slot][lane], so that what
// a cell needs at a time is together. The last vector is as wide as the units that are left: nothing is kept for others.
constexpr Index kept_offset(Index slots, Index slot, Index unit, Index units, int lanes) {
  return unit * slots + slot * (units - unit < lanes ? units - unit : lanes);
}

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
  bool panels_reversed;  // visit the panels from the last to the first
  const void* weights;   // panels of the format
  const void* operand;   // of the format, left side of the product: [rows][operand_stride]
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
  T* const* out;  // linear, [rows] pointers: the result
  bool add;       // linear: to what is there
};

// sums[column][k] += the sums over the n of each block of d[n][column] x[n][k]: the gradient of a matrix of weights. x is packed
// in parts of up to kGemmVectors vectors; d may be packed in groups of kGemmColumns columns, or rows as they are.
constexpr int kGemmVectors = 3;
constexpr Index kGemmColumns = 8;

template <class T>
struct TransposedGemmArgs {
  const Index* ends;               // of the blocks, counted like `first`
  Index blocks, first;             // the n of the first of them
  Index columns;                   // the last group may cover more
  Index width;                     // of sums; the last vector may cover more
  const T* d;                      // the first group's first row of kGemmColumns values
  Index d_group_stride, d_stride;  // from group to group, from row to row
  Index d_ahead;                   // how far ahead d is fetched; 0: not at all
  const T* x;                      // [count][vectors][lanes]
  int vectors;                     // 1 .. kGemmVectors
  T* sums;                         // [columns][sums_stride]
  Index sums_stride;
  bool from_zero;  // sums hold nothing yet
};

// Packs `vectors` vectors of each row, `width` of whose values exist, for the right side above.
template <class T>
struct PackRowsArgs {
  const T* const* rows;  // [count] pointers
  Index count, first;    // the first value of a row
  Index width;
  int vectors;
  T* to;  // [count][vectors][lanes]
};

// Packs groups of kGemmColumns columns for the left side.
template <class T>
struct PackColumnsArgs {
  const T* from;  // [count][stride]
  Index stride, count, groups;
  T* to;  // [group][count][kGemmColumns]
};

// sums[unit] += the sum over n of d[n][unit] times, if given, factor[n][unit].
template <class T>
struct ColumnArgs {
  Index count, units;
  const T* d;       // [count][d_stride], whole vectors
  const T* factor;  // [count][factor_stride], each row as kept_offset says, the last of factor_slots; or null
  Index d_stride, factor_stride, factor_slots;
  T* sums;  // whole vectors
};

// Packs the weights of the units of one vector, for one gate of a panel. Either units or terms are side by side.
template <class T>
struct PackWeightsArgs {
  const T* from;
  Index unit_stride, term_stride;
  Index units;  // that exist, the rest of the lanes being zero
  Index depth;
  void* to;       // the gate's first vector in the panel
  Index vectors;  // of the panel
};

// For each cell one of each stage, in their order; and kLinear, backward for all products without a cell's mathematics.
template <class Args>
struct StageKernels {
  using Kernel = void (*)(const Args&) noexcept;
  struct OfCell {
    Kernel stages[kMostStages + 1];
  };
  OfCell cells[kCellCount];

  void operator()(Cell cell, int stage, const Args& args) const { cells[static_cast<int>(cell)].stages[stage](args); }
};

// The kernels of one format, whose states and sums are of T.
template <class T>
struct Kernels {
  PanelLayout layout;
  StageKernels<InputGemmArgs<T>> input_gemm;
  StageKernels<StepArgs<T>> step;
  StageKernels<StepArgs<T>> step_keeping;  // the same for training
  StageKernels<BackStepArgs<T>> back_step;
  void (*pack_weights)(const PackWeightsArgs<T>&) noexcept;
  void (*pack_rows)(const PackRowsArgs<T>&) noexcept;
  void (*pack_columns)(const PackColumnsArgs<T>&) noexcept;
  void (*transposed_gemm)(const TransposedGemmArgs<T>&) noexcept;
  void (*sum_columns)(const ColumnArgs<T>&) noexcept;
  LaneKernels<T> rows_in_lanes;

  int lanes() const { return layout.lanes; }
};

// n values: the activations exactly as the cells compute them.
template <class T>
struct Elementwise {
  void (*sigmoid)(const T* x, T* y, Index n) noexcept;
  void (*tanh)(const T* x, T* y, Index n) noexcept;
};

// What the roofline measures: independent chains, which hide the latency of a fused multiply-add on every machine known to us, and
// vectors read in one round. A sink has room for as many vectors.
constexpr int kFmaChains = 12;
constexpr int kReadVectors = 8;

template <class T>
struct Probes {
  int lanes;
  double (*fma_chain)(Index count, T* sink) noexcept;  // `count` rounds; returns their floating-point operations
  void (*read)(const T* data, Index n, T* sink) noexcept;
};

constexpr int kHashBlock = 512;  // bytes

struct KernelTable {
  template <class T>
  struct ByFormat {
    const Kernels<T>* kernels[kFormatCount];  // null where the table, or T, has none
  };
  template <class T>
  struct OfType {
    Elementwise<T> elementwise;
    Probes<T> probes;
  };

  const char* name;
  ByFormat<float> with_float;
  ByFormat<double> with_double;
  OfType<float> of_float;
  OfType<double> of_double;
  // Goes on with the hashes of a block's 32-bit words; the same on every machine.
  void (*hash_blocks)(const unsigned char* data, Index blocks, std::uint32_t* lanes) noexcept;

  // Null where there are none.
  template <class T>
  const Kernels<T>* find(Format format) const {
    if constexpr (sizeof(T) == sizeof(float))
      return with_float.kernels[static_cast<int>(format)];
    else
      return with_double.kernels[static_cast<int>(format)];
  }
  template <class T>
  const OfType<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return of_float;
    else
      return of_double;
  }
};

}  // namespace gatedrnn
