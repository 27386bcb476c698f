#include "gatedrnn/network.h"

#include <stdexcept>
#include <string>

#include "backward.h"
#include "backward_in_lanes.h"
#include "forward.h"
#include "gatedrnn/tape.h"

namespace gatedrnn {
namespace {

Index valid_steps(Index steps, Index batch, const Index* lengths) {
  if (!lengths) return steps * batch;
  Index sum = 0;
  for (Index row = 0; row < batch; ++row) sum += lengths[row];
  return sum;
}

// Carves the run's memory from the workspace, then starts it.
template <class Run>
bool start(Run& run, Workspace& workspace) {
  workspace.carve([&](Arena& arena) { run.carve(arena); });
  return run.start();
}

// The plan for threads that are awake. Where several would pay if they are near each other, it is measured how near they are.
Plan plan_for_awake(const Workload& workload, int threads, const Core& core, PlanCache& cache) {
  const Plan near = make_plan(workload, threads, core, Awake::yes, kLeastMeetingCycles, &cache);
  if (near.threads() == 1) return near;
  const double measured = meeting_cycles(near.threads());
  return measured > 0 ? make_plan(workload, threads, core, Awake::yes, measured, &cache) : near;
}

// Runs with the plan for now, and if its threads cannot be had, with one.
template <class RunWith>
void run_planned(const Workload& workload, const Core& core, PlanCache& cache, RunWith&& run_with) {
  if (num_threads() == 1) {
    run_with(plan_alone(workload, core));
    return;
  }
  const CallUnderWay under_way;
  const int threads = useful_threads(num_threads());
  const Plan wanted = threads > 1 ? plan_for_awake(workload, threads, core, cache) : plan_alone(workload, core);
  const bool asleep = wanted.threads() > 1 && team_of(wanted.threads()) == Awake::no;
  const Plan chosen = asleep ? make_plan(workload, threads, core, Awake::no, kUsualMeetingCycles, &cache) : wanted;
  const bool missed = asleep && chosen.threads() == 1;
  const auto begun = missed ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
  if (!run_with(chosen)) run_with(plan_alone(workload, core));
  if (missed) miss_team(wanted.threads(), begun);
}

// A plan made by hand has to have someone for every row, and room for a step of the rows of a group, or the walk would not go on.
const Plan& checked(const Plan& plan, Index batch) {
  if (std::min({plan.layer_groups, plan.direction_groups, plan.row_groups, plan.unit_groups}) < 1)
    throw std::invalid_argument("plan: at least one group of each kind");
  if (plan.gradient_threads < 0) throw std::invalid_argument("plan: gradient_threads: at least 0");
  const Index rows = ceil_div(batch, plan.row_groups);
  if (plan.block_pairs < rows)
    throw std::invalid_argument("plan: block_pairs: at least " + std::to_string(rows) + ", the rows of a group");
  return plan;
}

template <class T>
const Kernels<T>& kernels_of(const KernelTable& table, Format format) {
  const Kernels<T>* const kernels = table.find<T>(format);
  if (!kernels)
    throw std::invalid_argument(std::string("precision: expected one that ") + table.name + " has kernels for, got " +
                                kFormatNames[static_cast<int>(format)]);
  return *kernels;
}

template <class... Values>
Index bytes_of(const Buffer<Values>&... buffers) {
  return (... + (buffers.size() * static_cast<Index>(sizeof(Values))));
}

template <class T>
Index bytes_of(const PackedLayer<T>& layer) {
  Index bytes = bytes_of(layer.in_lanes);
  for (const PackedStage<T>& stage : layer.stages)
    bytes += bytes_of(stage.input.bytes, stage.recurrent.bytes, stage.bias, stage.peephole, stage.norm);
  return bytes;
}

template <class T>
Index bytes_of(const PackedBackLayer<T>& layer) {
  return bytes_of(layer.recurrent.weights.bytes, layer.second.weights.bytes, layer.projection.weights.bytes,
                  layer.input.weights.bytes, layer.peephole, layer.norm, layer.in_lanes, layer.peepholes_in_lanes);
}

template <class Layer>
Index bytes_of(const std::vector<Layer>& layers) {
  Index bytes = 0;
  for (const Layer& layer : layers) bytes += bytes_of(layer);
  return bytes;
}

}  // namespace

template <class T>
Network<T>::Network(const Spec& spec, const Parameters<T>& parameters, const KernelTable& table, const Core& core,
                    Format format)
    : spec_(spec),
      options_(spec.options.as<T>()),
      kernels_(kernels_of<T>(table, format_for<T>(spec, format))),
      plain_kernels_(kernels_of<T>(table, plain_format<T>)),
      core_(core),
      layers_(parameters.size()) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const Index layer = static_cast<Index>(i) / spec_.directions;
    pack_layer(spec_, layer, parameters[i], kernels_, input_kernels(layer), layers_[i]);
  }
}

template <class T>
Index Network<T>::bytes() const {
  const BackLayers* const back_layers = back_layers_.load(std::memory_order_acquire);
  return bytes_of(layers_) + (back_layers ? bytes_of(*back_layers) : 0);
}

template <class T>
Index Network<T>::state_stride() const {
  // A line more than whole panels: rows a power of two apart would fall into the same few cache sets.
  constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
  return round_up(std::max(spec_.hidden_size, spec_.state_size()), kMostUnitVectors * kernels_.lanes()) + line;
}

template <class T>
Workload Network<T>::workload(Index steps, Index batch, Index valid) const {
  return {spec_, steps, batch, valid, kernels_.layout, spec_.directions == 1};
}

template <class T>
Workload Network<T>::backward_workload(Index steps, Index batch, Index valid, bool recomputing) const {
  Workload workload = this->workload(steps, batch, valid);
  workload.layers_overlap = false;
  workload.spec.directions = 1;  // one at a time: they add to the same gradients
  workload.backward = true;
  workload.gradient_threads_allowed = !recomputing;
  return workload;
}

template <class T>
Plan Network<T>::plan(Index steps, Index batch, Index valid, int max_threads) const {
  return make_plan(workload(steps, batch, valid), max_threads, core_);
}

template <class T>
Plan Network<T>::backward_plan(Index steps, Index batch, Index valid, bool recomputing, int max_threads) const {
  return make_plan(backward_workload(steps, batch, valid, recomputing), max_threads, core_);
}

template <class T>
bool Network<T>::forward(const Sequence<T>& sequence, Workspace& workspace, Tape<T>* tape,
                         const std::optional<Plan>& plan) const {
  const auto run_with = [&](const Plan& chosen) {
    ForwardRun<T> run(*this, sequence, chosen, next_turn(), tape);
    return start(run, workspace);
  };
  if (plan) return run_with(checked(*plan, sequence.batch));
  if (sequence.batch == 0) return true;
  Workload workload =
      this->workload(sequence.steps, sequence.batch, valid_steps(sequence.steps, sequence.batch, sequence.lengths));
  if (tape && tape->options.dropout.rate > 0) workload.layers_overlap = false;  // its masks are applied to whole layers
  run_planned(workload, core_, plans_, run_with);
  return true;
}

template <class T>
bool Network<T>::backward(const Tape<T>& tape, const BackwardCall<T>& call, Workspace& workspace,
                          const std::optional<Plan>& plan) const {
  const auto run_with = [&](const Plan& chosen) {
    if (tape.in_lanes()) {
      BackwardInLanes<T> run(*this, tape, call, chosen);
      return start(run, workspace);
    }
    BackwardRun<T> run(*this, tape, call, chosen);
    return start(run, workspace);
  };
  if (plan) return run_with(checked(*plan, tape.batch));
  const Index valid = valid_steps(tape.steps, tape.batch, tape.lengths.data());
  run_planned(backward_workload(tape.steps, tape.batch, valid, tape.recomputing()), core_, plans_, run_with);
  return true;
}

// Threads that come here at once may pack more than once; the first one's pack is kept. Nobody waits for anybody, so that a
// process may be forked meanwhile.
template <class T>
void Network<T>::pack_for_backward(const Parameters<T>& parameters) const {
  if (packed_for_backward()) return;
  auto packed = std::make_unique<BackLayers>(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i)
    pack_back_layer(spec_, static_cast<Index>(i) / spec_.directions, parameters[i], kernels_, (*packed)[i]);
  BackLayers* expected = nullptr;
  if (back_layers_.compare_exchange_strong(expected, packed.get(), std::memory_order_acq_rel)) packed.release();
}

template <class T>
Network<T>::~Network() {
  delete back_layers_.load();
}

template class Network<float>;
template class Network<double>;

}  // namespace gatedrnn
