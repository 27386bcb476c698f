#include "plan.h"

#include <algorithm>

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
  const Index weights = gates * units * H * problem.value_bytes;
  // After the products, so that both are aligned.
  plan.forward_shared_bytes = problem.batch * gates * units * problem.sum_bytes + weights;
  plan.backward_shared_bytes = problem.batch * units * problem.sum_bytes + weights;
  plan.persistent = std::max(plan.forward_shared_bytes, plan.backward_shared_bytes) <= device.shared_bytes;
  plan.units_per_block = static_cast<int>(units);
  plan.grid = static_cast<int>(ceil_div(H, units));
  return plan;
}

}  // namespace gatedrnn::cuda
