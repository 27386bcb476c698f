#include "gatedrnn/network.h"

#include <algorithm>
#include <new>
#include <tuple>
#include <utility>

#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

constexpr double kCyclesPerMicrosecond = 3000;

Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// Rows of features somewhere in memory, addressed by (time step, batch row).
template <class T>
struct Rows {
  T* data;
  Index step_stride, row_stride;
  T* at(Index step, Index row) const { return data + step * step_stride + row * row_stride; }
};

// What the threads that work on the same rows and direction share: the scratch of one layer at a time.
template <class T>
struct Group {
  T* h[2] = {};  // h[t-1] and h[t], in turns: [rows][state_stride]
  T* c = nullptr;
  T* reset_h = nullptr;
  T* update = nullptr;
  T* unprojected = nullptr;
  T* gates[2] = {};  // per stage: [panel][block row][slots]
  Barrier barrier;
};

// One call in flight: carves the workspace, then every thread of the plan runs work().
template <class T>
class Run {
 public:
  Run(const Network<T>& network, const Sequence<T>& sequence, const Plan& plan, int first_turn)
      : network_(network), spec_(network.spec()), sequence_(sequence), plan_(plan), first_turn_(first_turn) {}

  // Measures when the arena has no block, carves when it has one.
  void carve(Arena& arena) {
    const Index rows = ceil_div(sequence_.batch, plan_.row_groups);
    const Index state = rows * network_.state_stride();
    order_ = arena.take<Index>(sequence_.lengths ? sequence_.batch : 0);
    pointers_ = arena.take<const T*>(2 * plan_.block_rows * plan_.threads());
    groups_ = arena.take<Group<T>>(group_count());
    const bool in_place = spec_.directions == 1 || spec_.num_layers == 1;
    between_ = arena.take<T>(in_place ? 0 : sequence_.steps * sequence_.batch * spec_.output_size());
    for (int g = 0; g < group_count(); ++g) {
      Group<T> measured;
      Group<T>& group = groups_ ? *new (groups_ + g) Group<T> : measured;
      group.barrier.reset(plan_.unit_groups);
      for (T*& h : group.h) h = arena.take<T>(state);
      if (is_lstm(spec_.cell)) group.c = arena.take<T>(state);
      if (spec_.proj_size > 0) group.unprojected = arena.take<T>(state);
      if (spec_.cell == Cell::gru_reset_before) {
        group.reset_h = arena.take<T>(state);
        group.update = arena.take<T>(state);
      }
      const auto& stages = network_.layer(0, 0).stages;
      for (std::size_t s = 0; s < stages.size(); ++s)
        group.gates[s] = arena.take<T>(stages[s].panels * gates_panel_stride(stages[s]));
    }
  }

  // Longest rows first, so that the rows still running in any step are the first ones.
  void sort_rows() {
    if (!sequence_.lengths) return;
    for (Index row = 0; row < sequence_.batch; ++row) order_[row] = row;
    const Index* lengths = sequence_.lengths;
    std::sort(order_, order_ + sequence_.batch,
              [lengths](Index a, Index b) { return lengths[a] != lengths[b] ? lengths[a] > lengths[b] : a < b; });
  }

  bool start() {
    everyone_.reset(plan_.threads());
    if (plan_.threads() == 1) {
      work(0);
      return true;
    }
    const Shares shares = plan_.unit_groups > 1 || directions_meet() ? Shares::together : Shares::independent;
    // Sleeping threads come in some 30 microseconds, on a busy machine later; more is given to calls that take longer.
    const double patience = 60 + 0.1 * plan_.cycles / kCyclesPerMicrosecond;
    return run_team(
        plan_.threads(), shares, patience, [](void* self, int thread) { static_cast<Run*>(self)->work(thread); }, this);
  }

 private:
  // One thread's place in the plan's grid, for one layer and direction.
  struct Share {
    int thread, units, row_group;
    Group<T>& group;
    Index layer, direction;
  };

  // The next layer reads both directions of this one.
  bool directions_meet() const { return plan_.direction_groups > 1 && spec_.num_layers > 1; }

  int group_count() const { return plan_.direction_groups * plan_.row_groups; }

  // An odd number of cache lines, so that panels do not fall into the same cache sets.
  Index gates_panel_stride(const PackedStage<T>& stage) const {
    constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
    return round_up(plan_.block_rows * stage.slots_size(), 2 * line) + line;
  }

  void work(int thread) {
    const FlushDenormals flush;
    const int units = thread % plan_.unit_groups;
    const int row_group = thread / plan_.unit_groups % plan_.row_groups;
    const int direction_group = thread / plan_.unit_groups / plan_.row_groups;
    Group<T>& group = groups_[direction_group * plan_.row_groups + row_group];
    for (Index layer = 0; layer < spec_.num_layers; ++layer) {
      for (Index d = direction_group; d < spec_.directions; d += plan_.direction_groups)
        run_direction({thread, units, row_group, group, layer, d});
      if (directions_meet()) everyone_.wait();
    }
  }

  Index row_count(const Share& share) const {
    return (sequence_.batch - share.row_group + plan_.row_groups - 1) / plan_.row_groups;
  }
  Index row(const Share& share, Index i) const {
    const Index at = share.row_group + i * plan_.row_groups;
    return sequence_.lengths ? order_[at] : at;
  }
  Index length(Index row) const { return sequence_.lengths ? sequence_.lengths[row] : sequence_.steps; }

  void meet(const Share& share) {
    if (plan_.unit_groups > 1) share.group.barrier.wait();
  }

  // A layer writes where the next one reads. In one direction that can be the same memory, since a block's inputs are
  // projected before its outputs are written; two directions take turns between the caller's output and scratch.
  Rows<T> output_of(Index layer) const {
    const bool last_or_in_place = (spec_.num_layers - 1 - layer) % 2 == 0 || spec_.directions == 1;
    if (last_or_in_place) return {sequence_.y, sequence_.y_step, sequence_.y_row};
    return {between_, sequence_.batch * spec_.output_size(), spec_.output_size()};
  }
  Rows<const T> input_of(Index layer) const {
    if (layer == 0) return {sequence_.x, sequence_.x_step, sequence_.x_row};
    const Rows<T> rows = output_of(layer - 1);
    return {rows.data, rows.step_stride, rows.row_stride};
  }

  void run_direction(const Share& share) {
    const PackedLayer<T>& layer = network_.layer(share.layer, share.direction);
    const Rows<const T> in = input_of(share.layer);
    const Rows<T> out = output_of(share.layer);
    const Index column = share.direction * spec_.state_size();
    const T** x = pointers_ + 2 * plan_.block_rows * share.thread;
    T** y = const_cast<T**>(x + plan_.block_rows);

    meet(share);  // nobody is still in the layer before
    if (share.units == 0) load_state(share);
    meet(share);

    Index running = row_count(share);
    const auto still_running = [&](Index step) {
      while (running > 0 && length(row(share, running - 1)) <= step) --running;
      return running;
    };
    int turn = first_turn_;
    Index step = 0;
    while (still_running(step) > 0) {
      const Index first = step, rows_at_first = running;
      Index listed = 0;
      for (; still_running(step) > 0 && listed + running <= plan_.block_rows; ++step)
        for (Index i = 0; i < running; ++i, ++listed) {
          const Index b = row(share, i);
          const Index t = share.direction == 0 ? step : length(b) - 1 - step;
          x[listed] = in.at(t, b);
          y[listed] = out.at(t, b) + column;
        }
      project(share, layer, x, listed, turn);
      meet(share);  // in place: all inputs of the block are read
      running = rows_at_first;
      Index at = 0;
      for (Index s = first; s < step; ++s) {
        const Index rows = still_running(s);
        take_step(share, layer, rows, at, y + at, turn);
        at += rows;
        turn ^= 1;
        const Index next = still_running(s + 1);
        store_state(share, layer, share.group.h[turn], next, rows);
        running = next;
      }
    }
    if (share.units == 0 && share.layer == spec_.num_layers - 1 && sequence_.lengths)
      clear_past_lengths(share, out, column);
  }

  std::pair<Index, Index> panels(const Share& share, const PackedStage<T>& stage) const {
    return {stage.panels * share.units / plan_.unit_groups, stage.panels * (share.units + 1) / plan_.unit_groups};
  }

  void project(const Share& share, const PackedLayer<T>& layer, const T* const* x, Index rows, int turn) const {
    for (std::size_t s = 0; s < layer.stages.size(); ++s) {
      const PackedStage<T>& stage = layer.stages[s];
      if (stage.stage == Stage::linear) continue;
      const auto [first, last] = panels(share, stage);
      network_.kernels().project[static_cast<int>(stage.stage)]({x, rows, stage.input_depth, first, last, turn == 1,
                                                                 stage.input.data(), stage.bias.data(),
                                                                 share.group.gates[s], gates_panel_stride(stage)});
    }
  }

  // h[turn] -> h[1 - turn], for the rows whose gates start at block row `at`.
  void take_step(const Share& share, const PackedLayer<T>& layer, Index rows, Index at, T* const* y, int turn) {
    const Group<T>& group = share.group;
    for (std::size_t s = 0; s < layer.stages.size(); ++s) {
      const PackedStage<T>& stage = layer.stages[s];
      const bool last_stage = s + 1 == layer.stages.size();
      StepArgs<T> args{};
      args.rows = rows;
      args.depth = stage.recurrent_depth;
      args.units = stage.units;
      std::tie(args.first_panel, args.last_panel) = panels(share, stage);
      args.backwards = turn == 1;  // what the last step left in the cache comes first in this one
      args.weights = stage.recurrent.data();
      args.gates = group.gates[s] + at * stage.slots_size();
      args.gates_panel_stride = gates_panel_stride(stage);
      args.state_stride = network_.state_stride();
      args.operand = stage.stage == Stage::gru_before_candidate ? group.reset_h
                     : stage.stage == Stage::linear             ? group.unprojected
                                                                : group.h[turn];
      args.h = group.h[turn];
      args.h_next = last_stage ? group.h[1 - turn] : group.unprojected;
      args.c = group.c;
      args.reset_h = group.reset_h;
      args.update = group.update;
      args.peephole = stage.peephole.data();
      args.y = last_stage ? y : nullptr;
      network_.kernels().step[static_cast<int>(stage.stage)](args);
      meet(share);
    }
  }

  // Row i's place in h_n or c_n of this layer and direction.
  Index state_at(const Share& share, Index i, Index width) const {
    return ((share.layer * spec_.directions + share.direction) * sequence_.batch + row(share, i)) * width;
  }

  static void copy_or_clear(const T* from, Index count, T* to) {
    if (from)
      std::copy_n(from, count, to);
    else
      std::fill_n(to, count, T(0));
  }

  // The initial state into scratch; a row of length 0 has its final state with that.
  void load_state(const Share& share) const {
    const Index P = spec_.state_size(), H = spec_.hidden_size, stride = network_.state_stride();
    for (Index i = 0; i < row_count(share); ++i) {
      const Index h_at = state_at(share, i, P), c_at = state_at(share, i, H);
      T* h = share.group.h[first_turn_] + i * stride;
      copy_or_clear(sequence_.h_0 ? sequence_.h_0 + h_at : nullptr, P, h);
      T* c = is_lstm(spec_.cell) ? share.group.c + i * stride : nullptr;
      if (c) copy_or_clear(sequence_.c_0 ? sequence_.c_0 + c_at : nullptr, H, c);
      if (length(row(share, i)) > 0) continue;
      std::copy_n(h, P, sequence_.h_n + h_at);
      if (c) std::copy_n(c, H, sequence_.c_n + c_at);
    }
  }

  // The units that this thread computed, of the rows begin .. end that have just had their last step.
  void store_state(const Share& share, const PackedLayer<T>& layer, const T* h, Index begin, Index end) const {
    if (begin == end) return;
    store_units(share, layer.stages.back(), h, spec_.state_size(), begin, end, sequence_.h_n);
    if (is_lstm(spec_.cell))
      store_units(share, layer.stages.front(), share.group.c, spec_.hidden_size, begin, end, sequence_.c_n);
  }

  void store_units(const Share& share, const PackedStage<T>& stage, const T* from, Index width, Index begin, Index end,
                   T* to) const {
    const auto [first, last] = panels(share, stage);
    const Index unit = first * stage.units_per_panel();
    const Index count = std::min(last * stage.units_per_panel(), stage.units) - unit;
    for (Index i = begin; i < end; ++i)
      std::copy_n(from + i * network_.state_stride() + unit, count, to + state_at(share, i, width) + unit);
  }

  void clear_past_lengths(const Share& share, const Rows<T>& out, Index column) const {
    for (Index i = 0; i < row_count(share); ++i) {
      const Index b = row(share, i);
      for (Index t = length(b); t < sequence_.steps; ++t) std::fill_n(out.at(t, b) + column, spec_.state_size(), T(0));
    }
  }

  const Network<T>& network_;
  const Spec& spec_;
  const Sequence<T>& sequence_;
  const Plan plan_;
  const int first_turn_;
  Index* order_ = nullptr;        // [B] rows, longest first
  const T** pointers_ = nullptr;  // [thread][2][block row] of inputs, outputs
  Group<T>* groups_ = nullptr;
  T* between_ = nullptr;
  Barrier everyone_;
};

}  // namespace

template <class T>
Network<T>::Network(const Spec& spec, const Parameters<T>& parameters, const KernelTable& table)
    : spec_(spec), kernels_(table.of<T>()) {
  layers_.reserve(parameters.size());
  for (std::size_t i = 0; i < parameters.size(); ++i)
    layers_.push_back(pack_layer(spec, static_cast<Index>(i) / spec.directions, parameters[i], kernels_.lanes));
}

template <class T>
Index Network<T>::state_stride() const {
  // A line more than whole panels: rows a power of two apart would fall into the same few cache sets.
  constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
  return round_up(std::max(spec_.hidden_size, spec_.state_size()), 4 * kernels_.lanes) + line;
}

template <class T>
Plan Network<T>::plan(Index steps, Index batch, Index valid, int max_threads, Team team) const {
  return make_plan({spec_, steps, batch, valid, static_cast<int>(sizeof(T)), kernels_.lanes}, max_threads, caches(),
                   team);
}

template <class T>
void Network<T>::run(const Sequence<T>& sequence, Workspace& workspace) const {
  if (sequence.batch == 0) return;
  Index valid = sequence.steps * sequence.batch;
  if (sequence.lengths) {
    valid = 0;
    for (Index row = 0; row < sequence.batch; ++row) valid += sequence.lengths[row];
  }
  const auto plan_for = [&](int threads, Team team) {
    return plan(sequence.steps, sequence.batch, valid, threads, team);
  };
  const int threads = num_threads();
  const Team team = team_of(threads);
  const Plan chosen = plan_for(threads, team);
  if (team == Team::asleep && chosen.threads() == 1 && plan_for(threads, Team::awake).threads() > 1) miss_team(threads);
  if (!run(sequence, workspace, chosen)) run(sequence, workspace, plan_for(1, team));
}

template <class T>
bool Network<T>::run(const Sequence<T>& sequence, Workspace& workspace, const Plan& plan) const {
  Run<T> run(*this, sequence, plan, workspace.next_turn());
  Arena measure;
  run.carve(measure);
  Arena arena(workspace.reserve(measure.used()));
  run.carve(arena);
  run.sort_rows();
  return run.start();
}

template class Network<float>;
template class Network<double>;

}  // namespace gatedrnn
