// The layout for networks smaller than a vector, beside the one of kernel_table.h: lanes hold rows, not units. A block of as many
// rows as lanes goes through its steps by itself. Weights are single values, which are broadcast, in the order in which the kernel
// reads them; states, pre-activations and what is kept for backward stand in vectors, [unit][lane]. So no lane is without work,
// nothing is multiplied ahead, and no part of a vector is read or written but at the border, where rows of features are turned into
// lanes and back. The order of sums is that of sums.h, so that the bits are those of the other layout.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

constexpr int kMostLanes = 16;

// Whether lanes hold rows. They do where that takes fewer vectors than a vector or more for every row: with few rows, as in a
// stream, it does not. A projection stays with units in lanes: its networks are large. So does layer normalisation.
inline bool has_rows_in_lanes(const Spec& spec, int lanes) {
  return spec.hidden_size < lanes && spec.proj_size == 0 && !spec.description().is_normalized();
}
inline bool has_rows_in_lanes(const Spec& spec, int lanes, Index batch) {
  return has_rows_in_lanes(spec, lanes) && (batch + lanes - 1) / lanes * spec.hidden_size < batch;
}

// Rows of features, one for each lane.
template <class T>
struct LaneRows {
  T* data = nullptr;          // null: none
  Index stride = 0;           // from row to row
  const Index* at = nullptr;  // or where each of them begins, if they are not evenly spaced
};

// How many outputs of a product are computed together when so many are left: each has `gates` sums, which stay in registers.
constexpr Index lane_tile(Index left, Index gates) {
  Index most = gates > 1 ? 2 : 8;
  while (most > left) most /= 2;
  return most;
}

// Some steps of one block of rows.
template <class T>
struct LaneStepsArgs {
  Index steps;
  Index rows;  // of the block, that run in all these steps; other lanes are computed with, and used by nobody
  Index input_size, units;
  const T*
      weights;  // of each stage: [tile], and in it bias [unit][slot], inputs and operand [k][unit][gate], peepholes [unit][i]
  LaneRows<const T> x;
  LaneRows<T> y;
  Index x_step, y_step;  // from step to step
  Index list_step;       // likewise, in their lists of places: 0, or each step has lists of its own
  T* h;                  // [unit][lane]: before on entry, after on exit
  T* c;
  bool streams;  // what is kept goes past the caches
  T* kept;       // for training: [the cell's kept values, then h][unit][lane], `kept_step` apart; or null
  Index kept_step;
  T* scratch;                     // of lane_scratch() vectors
  const CellOptions<T>* options;  // of a general cell
};

constexpr Index lane_scratch(Index input_size, Index units) { return input_size + 4 * units; }

// One step of one block of rows, backward.
template <class T>
struct LaneBackArgs {
  Index rows;     // that run in this step
  Index running;  // of them, those that run in the step after too
  Index input_size, units;
  const T*
      weights;  // transposed: recurrent, second operand's, inputs': each [tile], and in it [slot][unit] of the depth, [output]
  const T* peepholes;                             // [peephole][unit]
  const T* next_kept;                             // what will be wanted next
  const T *kept, *c_before, *h_before, *h_after;  // [unit][lane], as forward left them
  LaneRows<const T> x, d_y;
  LaneRows<T> d_x;
  bool add;  // to what stands in d_x
  // Room for a pair in lanes. On entry the gradients of the pre-activations of the step after, on exit of this one: [slot][unit][lane]
  T* d_a;
  T* carry;  // the gradient of h that does not come through a product
  T* d_c;
  T* pairs;  // [row][lane_pair().size()]; null: no step, only the gradient of h that arrives, to scratch
  T* scratch;
  const CellOptions<T>* options;  // of a general cell
};

// What the gradients of weights are sums of products of, for one (step, row) pair: the gradients of its pre-activations, and all
// that was multiplied.
struct LanePair {
  Index d_a, h, second, c_before, c_after, one, x, end;  // where they begin, in values

  LanePair(const Spec& spec, Index input_size) {
    const CellDescription& cell = spec.description();
    const Index H = spec.hidden_size, with_second = cell.two_stages() ? H : 0, with_c = cell.peephole_count > 0 ? H : 0;
    d_a = 0;
    h = cell.slots * H;
    second = h + H;
    c_before = second + with_second;
    c_after = c_before + with_c;
    one = c_after + with_c;
    x = one + 1;
    end = x + input_size;
  }
};

// sums[operand][column] += the sum over n of pairs[n][columns + operand] pairs[n][column], in one chain from zero. Operands are
// taken so many at a time, and columns in whole vectors: beyond the last ones there is room in `sums`, and after the pairs.
constexpr int kLaneOperands = 8;

template <class T>
struct LaneGemmArgs {
  Index count, columns, operands;
  const T* pairs;
  Index stride;  // from pair to pair
  T* sums;
  Index sums_stride;  // whole vectors
};

template <class Args>
struct CellKernels {
  void (*cells[kCellCount])(const Args&) noexcept;
  void operator()(Cell cell, const Args& args) const { cells[static_cast<int>(cell)](args); }
};

template <class T>
struct LaneKernels {
  CellKernels<LaneStepsArgs<T>> steps, steps_keeping;
  CellKernels<LaneBackArgs<T>> back_step;
  void (*transposed_gemm)(const LaneGemmArgs<T>&) noexcept;
  // The border. Lanes past the last row get zeros, and are not written to rows.
  void (*rows_to_lanes)(const LaneRows<const T>& rows, Index count, Index width, T* to) noexcept;
  void (*lanes_to_rows)(const T* from, Index count, Index width, const LaneRows<T>& rows) noexcept;
};

}  // namespace gatedrnn
