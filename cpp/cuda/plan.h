// What is decided before the device gets work.
#pragma once

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/spec.h"

namespace gatedrnn::cuda {

struct Problem {
  Spec spec;
  Index steps = 0, batch = 0;
  Index value_bytes = 4, sum_bytes = 4;  // of a stored value, and of a sum
  bool reduced_products = false;         // whether cuBLAS may multiply float32 as TF32
};

// What of the device decides.
struct DeviceLimits {
  int processors = 0;        // streaming multiprocessors
  Index shared_bytes = 0;    // that a block of the grid may have
  Index registers = 0;       // likewise
  bool cooperative = false;  // whether blocks may wait for each other
};

constexpr int kWarp = 32, kRecurrenceWarps = 8, kRecurrenceThreads = kRecurrenceWarps * kWarp;

// A block that has all units (undivided.cuh): its eights of lanes multiply the weights of four units each, in fours of k.
constexpr int kLanesOfUnits = 8, kUnitsOfLanes = 4, kUnitsOfWarp = kWarp / kLanesOfUnits * kUnitsOfLanes;
constexpr int kMostFours = 4, kMostUndividedUnits = kMostFours * kLanesOfUnits * 4;
constexpr int kMostUndividedThreads = kMostUndividedUnits / kUnitsOfWarp * kWarp, kUndividedRegisters = 256;
// Of a thread's 255 registers, those that weights may have: all but what the sums of so many rows and a cell need.
constexpr Index weight_registers(Index vectors, Index rows) {
  if (vectors < 4) return rows == 1 ? 192 : 176;
  return rows == 1 ? 168 : 144;
}
// Of its fours of weights, `vectors` for each unit, as many.
constexpr Index fours_in_registers(Index vectors, Index rows, Index sum_bytes) {
  const Index all = kMostFours * kUnitsOfLanes * vectors, fours = weight_registers(vectors, rows) / sum_bytes;
  return all < fours ? all : fours;
}

// What a warp stages at a time of a product's rows: so many packs of 16 bytes a lane.
constexpr int kPackBytes = 16, kStagedPacks = 8, kStagedBytes = kPackBytes * kStagedPacks * kWarp;

// How the warps of a block multiply the rows of its group with its weight vectors.
//
// Several rows: a thread makes a tile of `tile_rows` rows and `tile_vectors` vectors; `row_lanes` * `vector_lanes` threads of a warp all
// of its tiles, and the others of the warp those of other k. A warp has `warp_rows` rows and one of `parts` ranges of k.
//
// One row (`tile_rows` is 1): the warps share out the ranges of k while they wait for the values, and then the units; the
// lanes of a warp take k in turns.
struct Tiling {
  int rows = 0;  // in whole tiles, a power of two
  int tile_rows = 0, tile_vectors = 0;
  int vector_lanes = 0, row_lanes = 0, warp_rows = 0;
  int parts = 0;

  constexpr int row_tiles() const { return rows / warp_rows; }
  // Between the sums of two vectors in a warp's memory, so that lanes that write or read them together do not meet in a bank.
  constexpr int sum_stride() const { return warp_rows == 4 ? 12 : warp_rows + 4; }
  // Of k: those that the lanes of a warp have at a time.
  constexpr int k_turn() const { return tile_rows == 1 ? 1 : kWarp / (vector_lanes * row_lanes); }
};
Tiling tiling_of(Index rows, Index vectors);

// A product within the persistent kernel: `depth` values of each row with `vectors` weight vectors.
struct ProductPlan {
  Tiling tiling;
  int depth = 0, vectors = 0;  // in whole tiles
  int part = 0;                // range of k of each part
  int chunk = 0;               // of k: staged by a warp at a time

  constexpr Index weights() const { return static_cast<Index>(tiling.parts) * part * vectors; }
};

// Values that the persistent kernel keeps of each row and unit. Forward: the projected inputs, h, and c or what a first
// stage passes to the second. Backward: what forward kept, the value before, and the gradients of the output,
// of h and of c.
constexpr Index forward_slots(const CellDescription& cell) {
  return cell.gates + (cell.has_c || cell.two_stages() ? 2 : 1);
}
constexpr Index backward_slots(const CellDescription& cell) { return cell.kept + (cell.has_c ? 4 : 3); }

// What the products of a step multiply, where a block has all units, for each row and unit.
constexpr Index undivided_operands_forward(const CellDescription& cell) { return cell.stage_count; }
constexpr Index undivided_operands_backward(const CellDescription& cell) { return cell.gates; }

// One kernel for a block of steps: a grid of groups of rows by groups of units.
struct RecurrencePlan {
  bool fits = false;
  bool undivided = false;  // all units are one group, of a row or two; there may be more groups of rows than processors
  int row_groups = 0, rows = 0;  // rows of each
  int unit_groups = 0, units = 0;
  ProductPlan products[2];  // of each stage
  Index warp_bytes = 0;     // shared memory of a warp: what it stages, then what it has summed
  Index row_bytes = 0;      // shared memory of a block: twice the values of one row
  Index shared_bytes = 0;
  double step_ns = 0;  // an estimate

  // Where units are undivided: a thread's fours of weights for each vector, and a block's threads.
  constexpr int fours() const { return (units + 4 * kLanesOfUnits - 1) / (4 * kLanesOfUnits); }
  constexpr int undivided_threads() const { return (units + kUnitsOfWarp - 1) / kUnitsOfWarp * kWarp; }

  // Whether blocks count who has sent, instead of reading until all is sent.
  constexpr bool counts() const { return products[0].tiling.tile_rows == 8; }
  // Of one row, by a warp.
  constexpr int units_of_warp() const { return (units + kRecurrenceWarps - 1) / kRecurrenceWarps; }
  // Of a row and a unit, in whole eights of units where there are several rows.
  constexpr int pairs() const { return rows == 1 ? units : rows * ((units + 7) / 8 * 8); }
};

struct Plan {  // a pass whose recurrence does not fit: cuBLAS and a kernel for each step
  RecurrencePlan forward, backward;
  Index most_pairs = 0;  // (step, row) pairs of a block of steps
};

Plan make_plan(const Problem& problem, const DeviceLimits& device);

}  // namespace gatedrnn::cuda
