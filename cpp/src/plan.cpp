#include "gatedrnn/plan.h"

#include <algorithm>
#include <cmath>

#include "gatedrnn/core.h"
#include "gatedrnn/kernel_table.h"
#include "gatedrnn/sizes.h"
#include "gatedrnn/sums.h"

namespace gatedrnn {
namespace {

// The cost model, in processor cycles. Rough numbers of current x86 server cores: only their order of magnitude matters, and
// only near the points where one thread and several cost the same.
constexpr double kAsleepCycles = 140000;  // starting and joining threads that have gone to sleep
constexpr double kAwakeCycles = 400;     // the same for threads that wait for work, beside the ways of lines of memory:
constexpr double kAwakeMeetings = 5;     // as many as so many meetings have
constexpr double kMeetingAlone = 200;    // of a meeting, what is no line's way
constexpr double kBarrierCycles = 1200;  // one meeting of all threads of a group
constexpr double kGradientThreadsCycles =
    30000;  // gradient threads, in each layer: data change caches, in the next forward too
constexpr double kGradientThreadsPace = 1.15;  // blocks are short, and come from another cache
constexpr double kStageCycles = 150;           // calling one stage of a step
constexpr double kActivationCycles = 40;       // one vector of units through the cell
constexpr double kGain = 0.9;                  // several threads have to be worth it
constexpr double kFarCycles = 800;   // of a meeting, for each thread: more than between caches of one last level
constexpr double kChangeover = 1.1;  // overlapping layers that go from thread to thread with their weights

double bytes_per_cycle(double bytes, const Core& core) {
  if (bytes <= 0.75 * core.l1) return std::min(64.0, static_cast<double>(core.madd_bytes));
  if (bytes <= 0.75 * core.l2) return std::min(40.0, 0.5 * static_cast<double>(core.madd_bytes));
  if (bytes <= 0.75 * core.l3) return 12;
  return 5;
}

// The core, and its threads' meetings.
struct Machine {
  const Core& core;
  Awake team;
  double meeting;

  double start_cycles() const {
    return team == Awake::yes ? kAwakeCycles + kAwakeMeetings * std::max(0.0, meeting - kMeetingAlone) : kAsleepCycles;
  }
  // Whether several threads may pay, even with twice as much of the cache for each.
  bool may_pay(double alone, int threads) const { return (kGain - 0.5 / threads) * alone > start_cycles(); }
};

int stage_count(const Spec& spec) { return spec.description().stage_count + (spec.proj_size > 0 ? 1 : 0); }

// As many vectors in a cycle as the core can; in some formats more.
double macs_per_cycle(const Workload& p, const Core& core) {
  return p.layout.pace *
         static_cast<double>(std::min(core.madd_vectors * p.layout.lanes, core.madd_bytes / p.layout.sum_bytes));
}

// Of one group of threads.
Index most_rows(const Workload& p, const Plan& plan) { return ceil_div(p.batch, plan.row_groups); }

// What cannot begin before the step before is done.
double step_cycles(const Workload& p, const Plan& plan, const Machine& machine) {
  const Spec& spec = p.spec;
  const double rows = static_cast<double>(most_rows(p, plan));
  const double H = static_cast<double>(spec.hidden_size), units = H / plan.unit_groups;
  const double gates = static_cast<double>(spec.description().gates);
  const double recurrent_weights =
      gates * units * static_cast<double>(spec.state_size()) + units * static_cast<double>(spec.proj_size);
  const double bytes = recurrent_weights * static_cast<double>(p.layout.weight_bytes);

  const double multiply = rows * recurrent_weights / macs_per_cycle(p, machine.core);
  const double stream = bytes / bytes_per_cycle(bytes, machine.core);
  const double activate = rows * units / p.layout.lanes * kActivationCycles;
  const double meet = plan.unit_groups > 1 ? machine.meeting : 0;
  return std::max(multiply, stream) + activate + stage_count(spec) * (kStageCycles + meet);
}

// What is multiplied for many (step, row) pairs at once: forward the inputs, backward the gradients of inputs and of weights.
double pair_cycles(const Workload& p, Index input_size, const Core& core) {
  const double gradients = static_cast<double>(p.spec.description().gates * p.spec.hidden_size);
  const Index width = p.backward ? 2 * input_size + p.spec.state_size() : input_size;
  return gradients * static_cast<double>(width) / macs_per_cycle(p, core);
}

// Of a step's rows, forward: the weights are read once for a block of steps.
double input_cycles(const Workload& p, const Plan& plan, Index input_size, const Core& core) {
  const auto rows = static_cast<double>(most_rows(p, plan)), groups = static_cast<double>(plan.unit_groups);
  const double bytes =
      static_cast<double>(p.spec.description().gates * p.spec.hidden_size * input_size * p.layout.weight_bytes) /
      groups;
  const double steps = std::clamp(static_cast<double>(plan.block_pairs) / rows, 1.0, static_cast<double>(p.steps));
  return std::max(rows * pair_cycles(p, input_size, core) / groups, bytes / bytes_per_cycle(bytes, core) / steps);
}

double layer_cycles(const Workload& p, const Plan& plan, Index input_size, const Machine& machine) {
  const double rows = static_cast<double>(p.batch), steps = static_cast<double>(p.valid) / rows;  // of the average row
  const double step = step_cycles(p, plan, machine), pair = pair_cycles(p, input_size, machine.core);
  if (plan.gradient_threads > 0) {
    const double blocks = std::max(1.0, static_cast<double>(p.valid) / static_cast<double>(plan.block_pairs));
    const double gradients = kGradientThreadsPace * rows * pair;
    const double beside = (blocks - 1) * std::max(step, gradients / plan.gradient_threads);
    const double last = gradients / plan.threads();  // all add the last block
    return steps / blocks * (step + beside + last) + blocks * kBarrierCycles + kGradientThreadsCycles;
  }
  if (p.backward) return steps * (step + rows * pair / plan.threads());
  const double directions = std::max(1.0, static_cast<double>(p.spec.directions / plan.direction_groups));
  return directions * steps * (step + input_cycles(p, plan, input_size, machine.core));
}

// So many rows that reading the input weights once for all of them costs nothing beside the arithmetic. Fewer where their
// gates would not stay in the second-level cache until the steps use them up, or where others wait for the block: the next
// layer, or backward those who add it to the gradients.
Index choose_block_pairs(const Workload& p, const Plan& plan, const Core& core) {
  constexpr Index most = 128, fewest = 64, fewest_overlapping = 12, overlapping_blocks = 12;
  constexpr Index most_beside = 256, fewest_beside = kBlockPairs;  // which is not cut
  const Index rows = most_rows(p, plan);
  const Index row_bytes = (p.spec.description().gates + 1) * p.spec.hidden_size * p.layout.sum_bytes;
  Index wanted = most * row_bytes <= core.l2 ? most : fewest;
  if (plan.layer_groups > 1)
    wanted = std::min(wanted, std::max(fewest_overlapping, rows * p.steps / overlapping_blocks));
  if (plan.gradient_threads > 0) wanted = std::clamp(rows * p.steps / overlapping_blocks, fewest_beside, most_beside);
  return std::max(rows, std::min(wanted, rows * p.steps));
}

double total_cycles(const Workload& p, const Plan& plan, const Machine& machine) {
  const double start = plan.threads() > 1 ? machine.start_cycles() : 0;
  double cycles = 0;
  for (Index layer = 0; layer < p.spec.num_layers; ++layer)
    cycles += layer_cycles(p, plan, p.spec.layer_input_size(layer), machine);
  if (plan.layer_groups == 1) return start + cycles;
  // Blocks of all layers are shared out; at the beginning and the end some groups have none.
  const double groups = plan.layer_groups, layers = static_cast<double>(p.spec.num_layers);
  const double blocks =
      std::max(1.0, static_cast<double>(p.steps * p.batch) / static_cast<double>(plan.block_pairs * plan.row_groups));
  const double moving = p.spec.num_layers % plan.layer_groups == 0 ? 1 : kChangeover;
  return start + moving * cycles / groups * (1 + groups * (groups - 1) / (layers * blocks)) +
         layers * blocks * kBarrierCycles;
}

// As many as keep up with the grid, in the first layer.
int enough_gradient_threads(const Workload& p, const Plan& plan, int most, const Machine& machine) {
  const double gradients =
      kGradientThreadsPace * static_cast<double>(p.batch) * pair_cycles(p, p.spec.input_size, machine.core);
  return static_cast<int>(std::min<double>(most, std::ceil(gradients / step_cycles(p, plan, machine))));
}

// So that every thread has a whole panel, however wide the panel. Where all panels are one vector of units, two threads may also
// share fewer units: those of the smallest networks, which gain most where threads are near each other.
Index most_unit_groups(const Workload& p) {
  if (p.spec.description().is_normalized()) return 1;  // rows are, as a whole
  const Index most = std::max<Index>(1, p.spec.state_size() / (kMostUnitVectors * p.layout.lanes));
  const bool narrow_panels = !p.backward && p.spec.proj_size == 0 && p.spec.description().stages[0].unit_vectors() == 1;
  return narrow_panels ? std::max(most, std::min<Index>(2, p.spec.hidden_size / (2 * p.layout.lanes))) : most;
}

// The best plan with several threads, if it is enough better than one.
Plan plan_for_several(const Workload& p, const Plan& alone, int max_threads, const Machine& machine) {
  Plan best = alone;
  const Index most_layers = p.layers_overlap ? p.spec.num_layers : 1;
  const Index most_units = most_unit_groups(p);
  for (int layers = 1; layers <= std::min<Index>(most_layers, max_threads); ++layers)
    for (int directions = 1; directions <= std::min<Index>(p.spec.directions, max_threads / layers); ++directions)
      for (int rows = 1; rows <= std::min<Index>(max_threads / layers / directions, p.batch); ++rows) {
        const bool together = layers * directions * rows == 1;  // or apart: never both
        for (const int units : {1, together ? static_cast<int>(std::min<Index>(max_threads, most_units)) : 1}) {
          Plan plan{layers, directions, rows, units, 1, 0};
          const int spare = p.gradient_threads_allowed && units == 1 ? max_threads - plan.threads() : 0;
          const int gradient_threads = spare > 0 ? enough_gradient_threads(p, plan, spare, machine) : 0;
          for (plan.gradient_threads = 0; plan.gradient_threads <= gradient_threads;
               plan.gradient_threads += std::max(1, gradient_threads)) {
            if (plan.threads() == 1) continue;
            plan.block_pairs = choose_block_pairs(p, plan, machine.core);
            plan.cycles = total_cycles(p, plan, machine);
            if (plan.cycles < best.cycles && plan.cycles < kGain * alone.cycles) best = plan;
          }
        }
      }
  return best;
}

}  // namespace

Plan plan_alone(const Workload& p, const Core& core) {
  Plan plan;
  plan.block_pairs = choose_block_pairs(p, plan, core);
  return plan;
}

Plan make_plan(const Workload& p, int max_threads, const Core& core, Awake team, double meeting, PlanCache* cache) {
  const Machine machine{core, team, meeting};
  Plan plan = plan_alone(p, core);
  if (p.batch == 0 || p.valid == 0) return plan;
  plan.cycles = total_cycles(p, plan, machine);
  if (max_threads == 1 || !machine.may_pay(plan.cycles, max_threads)) return plan;
  const PlanCache::Key key{
      p.steps, p.batch, p.valid, max_threads, p.layers_overlap, p.backward, p.gradient_threads_allowed, team, meeting};
  if (cache && cache->find(key, plan)) return plan;
  plan = plan_for_several(p, plan, max_threads, machine);
  plan.far = plan.threads() > 1 && team == Awake::yes &&
             p.layout.lanes * p.layout.sum_bytes == kAlignment &&  // whole lines
             meeting > kFarCycles * plan.threads();
  if (cache) cache->keep(key, plan);
  return plan;
}

bool PlanCache::Key::operator==(const Key& other) const {
  return steps == other.steps && batch == other.batch && valid == other.valid && threads == other.threads &&
         layers_overlap == other.layers_overlap && backward == other.backward &&
         gradient_threads_allowed == other.gradient_threads_allowed && team == other.team && meeting == other.meeting;
}

bool PlanCache::find(const Key& key, Plan& plan) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return false;
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.key == key; });
  if (found == entries_.end()) return false;
  plan = found->plan;
  return true;
}

void PlanCache::keep(const Key& key, const Plan& plan) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return;
  if (entries_.size() < kMost) {
    entries_.push_back({key, plan});
    return;
  }
  entries_[oldest_] = {key, plan};
  oldest_ = (oldest_ + 1) % kMost;
}

}  // namespace gatedrnn
