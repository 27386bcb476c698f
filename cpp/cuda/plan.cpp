#include "plan.h"

#include <algorithm>

#include "gatedrnn/sizes.h"

namespace gatedrnn::cuda {
namespace {

// What a block of steps may take for the projected inputs: enough for products at full speed, little beside a device's memory.
constexpr Index kBlockBytes = Index(256) << 20;

// Estimates: fitted to some 500 plans of LSTM and GRU on an H200 (132 processors at 1.98 GHz). In ns, but for those in cycles.
constexpr double kCycle = 0.505;
constexpr double kSecondExchange = 0.75;  // of the first one: the reset-before GRU's
// Where blocks read until all is sent.
constexpr double kReadingStep = 1370, kReadingGroup = 0.92;  // a step, and more for each group of units
constexpr double kLoad = 0.56,
                 kReadingSum = 15.4;  // cycles: of those that shared memory takes; for 32 sums, to another thread
constexpr double kReadBytes = 9.6;    // a ns, by a block
// One row, which they read too: a step, and more where groups are so small that several write to a sector of 8 values; cycles of
// loads; and a unit of a warp.
constexpr double kRowStep = 1050, kSharedSector = 250, kRowLoad = 1.2, kRowUnit = 300;
// Where they count who has sent.
constexpr double kCountingStep = 1060, kCountingGroup = 7.75;
constexpr double kFma = 1.36, kCountingSum = 4.8, kConflictingSum = 3.3;  // cycles
constexpr double kChunk = 388, kPair = 541;  // a chunk that is fetched; a row and unit of each thread
// Where a block has all units, cycles: a product and what follows, and what multiplying and loading add to their own.
constexpr double kUndividedStep = 1050, kUndividedFma = 1.5, kUndividedLoad = 0.8;
// Where cuBLAS makes each product, and a kernel follows.
constexpr double kLaunchedStep = 12000, kLaunchedPair = 0.02;
constexpr double kOperations = 40e3, kReducedOperations = 200e3;  // a ns, in float32 and in smaller types

Index power_of_two(Index least) {
  Index power = 1;
  while (power < least) power *= 2;
  return power;
}

struct Shape {
  Index depth[2], gates[2];  // of the products
  Index slots;               // of values for each row and unit of a group
  Index constants;           // for each unit
};

Shape forward_shape(const Spec& spec) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size;
  return {{H, cell.two_stages() ? H : 0},
          {cell.stages[0].gates, cell.stages[1].gates},
          forward_slots(cell),
          cell.slots + cell.peephole_count};
}

Shape backward_shape(const Spec& spec) {
  const CellDescription& cell = spec.description();
  const Index H = spec.hidden_size;
  return {{cell.recurrent_slots() * H, cell.stages[1].gates * H}, {1, 1}, backward_slots(cell), cell.peephole_count};
}

// Until all have what others sent, and the cell.
double exchange_ns(const RecurrencePlan& plan) {
  if (plan.counts())
    return kCountingStep + kCountingGroup * plan.unit_groups +
           kPair * static_cast<double>(ceil_div(plan.pairs(), kRecurrenceThreads));
  return (plan.rows == 1 ? kRowStep : kReadingStep) + kReadingGroup * plan.unit_groups;
}

double product_ns(const RecurrencePlan& plan, const ProductPlan& product, Index value_bytes) {
  const Tiling& t = product.tiling;
  if (t.tile_rows == 1) {
    const auto weights = static_cast<double>(product.weights() * value_bytes);
    return kCycle * kRowLoad * weights / 128 + kRowUnit * plan.units_of_warp() +
           kSharedSector * std::max(0.0, 8.0 / plan.units - 1) +
           static_cast<double>(product.depth * value_bytes) / kReadBytes;
  }
  const double sums = static_cast<double>(t.rows) * product.vectors * t.parts / kWarp;
  if (t.tile_rows == 4) {
    const double turns = static_cast<double>(product.part) / t.k_turn();
    return kCycle * (kLoad * turns * kRecurrenceWarps * 8 + kReadingSum * sums) +
           static_cast<double>(t.rows * product.depth * value_bytes) / kReadBytes;
  }
  const double fma = static_cast<double>(t.parts) * product.part * t.rows * t.vector_lanes * t.tile_vectors / 128;
  const double conflicts = std::max(0.0, 4.0 / t.row_lanes - 1);
  return kCycle * (kFma * fma + (kCountingSum + kConflictingSum * conflicts) * sums) +
         kChunk * static_cast<double>(ceil_div(product.part, product.chunk));
}

RecurrencePlan plan_for(const Problem& p, const Shape& shape, Index rows, Index units, Index staged_bytes,
                        const DeviceLimits& device) {
  RecurrencePlan plan;
  plan.units = static_cast<int>(units);
  plan.unit_groups = static_cast<int>(ceil_div(p.spec.hidden_size, units));
  Index weights = 0;
  for (int i = 0; i < 2 && shape.depth[i] > 0; ++i) {
    ProductPlan& product = plan.products[i];
    product.tiling = tiling_of(rows, shape.gates[i] * units);
    const Tiling& t = product.tiling;
    if (t.parts == 0) return {};
    product.depth = static_cast<int>(shape.depth[i]);
    const bool one_row = t.tile_rows == 1;
    product.vectors = static_cast<int>(round_up(shape.gates[i] * units, one_row ? 1 : 4));
    const Index turn = std::max<Index>(t.k_turn(), kPackBytes / p.value_bytes);
    product.part = static_cast<int>(round_up(ceil_div(shape.depth[i], t.parts), turn));
    const Index room = staged_bytes / (t.warp_rows * p.value_bytes) / turn * turn;
    product.chunk = static_cast<int>(std::clamp<Index>(room, turn, product.part));
    plan.rows = t.rows;
    const Index sums =
        (one_row ? shape.gates[i] * plan.units_of_warp() : static_cast<Index>(t.sum_stride()) * product.vectors) *
        p.sum_bytes;
    const Index staged = one_row ? 0 : (plan.counts() ? 2 : 1) * t.warp_rows * product.chunk * p.value_bytes;
    if (one_row) plan.row_bytes = std::max<Index>(plan.row_bytes, 2 * t.parts * product.part * p.value_bytes);
    plan.warp_bytes = round_up(std::max({plan.warp_bytes, sums, staged}), kPackBytes);
    weights += round_up(product.weights() * p.value_bytes, kPackBytes);
    plan.step_ns += exchange_ns(plan) * (i == 0 ? 1 : kSecondExchange) + product_ns(plan, product, p.value_bytes);
  }

  plan.row_groups = static_cast<int>(ceil_div(p.batch, plan.rows));
  plan.shared_bytes = weights + kRecurrenceWarps * plan.warp_bytes + plan.row_bytes +
                      (plan.pairs() * shape.slots + units * shape.constants) * p.sum_bytes;
  plan.fits = plan.shared_bytes <= device.shared_bytes &&
              static_cast<Index>(plan.row_groups) * plan.unit_groups <= device.processors;
  return plan;
}

// Of all groups that fit, those that are expected to take the least time.
RecurrencePlan best_for(const Problem& p, const Shape& shape, const DeviceLimits& device) {
  RecurrencePlan best;
  for (const Index rows : {1, 4, 8, 16, 32, 64}) {
    const Index row_groups = ceil_div(p.batch, rows);
    if (rows >= 4 * p.batch || row_groups > device.processors) continue;
    Index units = 0;
    for (Index unit_groups = device.processors / row_groups; unit_groups >= 1; --unit_groups) {
      if (ceil_div(p.spec.hidden_size, unit_groups) == units) continue;
      units = ceil_div(p.spec.hidden_size, unit_groups);
      RecurrencePlan plan = plan_for(p, shape, rows, units, kStagedBytes, device);
      if (!plan.fits) plan = plan_for(p, shape, rows, units, kStagedBytes / 2, device);
      if (plan.fits && (!best.fits || plan.step_ns < best.step_ns)) best = plan;
    }
  }
  return best;
}

// Each block with all units.
RecurrencePlan undivided_for(const Problem& p, Index operands, int rows, const DeviceLimits& device) {
  RecurrencePlan plan;
  if (p.spec.hidden_size > kMostUndividedUnits) return plan;
  plan.undivided = true;
  plan.units = static_cast<int>(p.spec.hidden_size);
  plan.unit_groups = 1;
  plan.rows = rows;
  plan.row_groups = static_cast<int>(ceil_div(p.batch, rows));
  const Index vectors = p.spec.description().gates, threads = plan.undivided_threads();
  const Index fours = plan.fours() * kUnitsOfLanes * vectors,
              shared_fours = std::max<Index>(0, fours - fours_in_registers(vectors, rows, p.sum_bytes));
  const Index values = 2 * operands * rows * kMostUndividedUnits;
  plan.shared_bytes = (shared_fours * 4 * kMostUndividedThreads + values) * p.sum_bytes;
  const Index registers = threads * kUndividedRegisters;
  plan.fits = plan.shared_bytes <= device.shared_bytes && registers <= device.registers;
  if (!plan.fits) return plan;
  const Index blocks = ceil_div(plan.row_groups, device.processors);  // of a processor, some of them at a time
  const Index together = std::min(device.registers / registers, device.shared_bytes / plan.shared_bytes);
  const double products = p.spec.description().stage_count;
  const double multiplied = kUndividedFma * static_cast<double>(threads * fours * 4 * rows) / 128 +
                            kUndividedLoad * static_cast<double>(threads * shared_fours * 4 * p.sum_bytes) / 128;
  plan.step_ns = kCycle * (static_cast<double>(ceil_div(blocks, together)) * kUndividedStep * products +
                           static_cast<double>(blocks) * multiplied);
  return plan;
}

double launched_ns(const Problem& p, Index products) {
  const bool reduced = p.reduced_products || p.value_bytes == 2;
  const auto pairs = static_cast<double>(p.batch * p.spec.hidden_size);
  const double operations = 2 * pairs * static_cast<double>(p.spec.hidden_size * p.spec.description().gates);
  return static_cast<double>(products) * kLaunchedStep + pairs * kLaunchedPair +
         operations / (reduced ? kReducedOperations : kOperations);
}

}  // namespace

Tiling tiling_of(Index rows, Index vectors) {
  Tiling t;
  if (rows == 1) return {1, 1, 1, 1, 1, 1, kRecurrenceWarps};
  t.tile_rows = rows <= 4 ? 4 : 8;
  t.tile_vectors = rows <= 4 ? 4 : 8;
  t.rows = static_cast<int>(std::max<Index>(t.tile_rows, power_of_two(rows)));
  t.vector_lanes = static_cast<int>(power_of_two(ceil_div(vectors, t.tile_vectors)));
  if (t.vector_lanes > kWarp) return {};
  t.row_lanes = std::min(t.rows / t.tile_rows, kWarp / t.vector_lanes);
  t.warp_rows = t.row_lanes * t.tile_rows;
  if (t.row_tiles() > kRecurrenceWarps) return {};
  t.parts = kRecurrenceWarps / t.row_tiles();
  return t;
}

Plan make_plan(const Problem& problem, const DeviceLimits& device) {
  const Spec& spec = problem.spec;
  const CellDescription& cell = spec.description();
  Plan plan;
  plan.most_pairs = std::max<Index>(
      problem.batch, kBlockBytes / std::max<Index>(1, cell.gates * spec.hidden_size * problem.sum_bytes));
  if (cell.is_general()) return plan;  // not compiled: each would take minutes for a few models
  if (device.processors < 1 || spec.proj_size > 0 || problem.batch < 1 || problem.steps < 2) return plan;
  const double launched = launched_ns(problem, cell.stage_count);
  const auto fastest = [&](const Shape& shape, Index operands) {
    RecurrencePlan divided = device.cooperative ? best_for(problem, shape, device) : RecurrencePlan();
    divided.fits &= divided.step_ns < launched;
    RecurrencePlan best = divided;
    for (const int rows : {1, 2}) {
      const RecurrencePlan undivided = undivided_for(problem, operands, rows, device);
      if (undivided.fits && undivided.step_ns < (best.fits ? best.step_ns : launched)) best = undivided;
    }
    return best;
  };
  plan.forward = fastest(forward_shape(spec), undivided_operands_forward(cell));
  plan.backward = fastest(backward_shape(spec), undivided_operands_backward(cell));
  return plan;
}

}  // namespace gatedrnn::cuda
