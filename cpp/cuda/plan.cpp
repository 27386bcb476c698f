#include "plan.h"

#include <algorithm>

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/memory.h"

namespace gatedrnn::cuda {
namespace {

// What a block of steps may take for the projected inputs: enough for products at full speed, little beside a device's memory.
constexpr Index kBlockBytes = Index(64) << 20;

// Batches from which cuBLAS's products, which read the weights once for all rows, beat dot products by single warps.
constexpr Index kMostPersistentRows = 32;

}  // namespace

Plan make_plan(const Problem& problem, const DeviceLimits& device) {
  const Spec& spec = problem.spec;
  const Index H = spec.hidden_size, gates = gate_count(spec.cell);
  Plan plan;
  plan.most_pairs = std::max<Index>(problem.batch, kBlockBytes / std::max<Index>(1, gates * H * problem.sum_bytes));
  if (!device.cooperative || device.processors < 1 || spec.proj_size > 0 || problem.batch > kMostPersistentRows ||
      problem.steps < 2)
    return plan;
  const Index units = ceil_div(H, std::min<Index>(H, device.processors));
  // Weights, then a part of the operand, then the products, each aligned.
  const Index pack = 16 / problem.value_bytes;
  const auto fill = [&](Index weights, Index products, Index depth, int& staged, Index& bytes) {
    const Index fixed = weights * problem.value_bytes + products * problem.sum_bytes;
    const Index room = (device.shared_bytes - fixed) / (problem.batch * problem.value_bytes) / pack * pack;
    if (device.shared_bytes < fixed || room < std::min(round_up(depth, pack), 32 * pack)) return false;
    // whole turns of a warp where it does not all fit
    staged = static_cast<int>(room >= depth ? round_up(depth, pack) : room / (32 * pack) * (32 * pack));
    bytes = fixed + problem.batch * staged * problem.value_bytes;
    return true;
  };
  const Index row = round_up(H, pack), recurrent = recurrent_slots(spec.cell) * H;
  const Index back_row = round_up(recurrent, pack) + (spec.cell == Cell::gru_reset_before ? row : 0);
  plan.persistent =
      fill(gates * units * row, problem.batch * gates * units, H, plan.forward_staged, plan.forward_shared_bytes) &&
      fill(units * back_row, problem.batch * units, recurrent, plan.backward_staged, plan.backward_shared_bytes);
  plan.units_per_block = static_cast<int>(units);
  plan.grid = static_cast<int>(ceil_div(H, units));
  return plan;
}

}  // namespace gatedrnn::cuda
