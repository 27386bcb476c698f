// A plan never changes a bit: any split of directions, rows and units among threads, and any number of rows whose inputs are multiplied ahead.
// And what make_plan promises, and what happens when there are no threads to be had. With the argument "threads": the part of
// this in which some threads compute, for ThreadSanitizer, under which all of it takes too long.
#include <algorithm>
#include <atomic>
#include <thread>

#include "check.h"
#include "gatedrnn/tape.h"
#include "gatedrnn/threads.h"
#include "networks.h"

namespace gatedrnn::test {
namespace {

// A call waits for its threads a tenth of the time that it expects to take: these are given a minute.
constexpr double kPatientCycles = 2e12;

// What is compared: these kernels, with so many threads.
struct Scope {
  std::vector<const KernelTable*> tables;
  int fewest_threads, most_threads;
};

std::string text(const Plan& plan) {
  std::ostringstream out;
  out << "plan " << plan.layer_groups << "x" << plan.direction_groups << "x" << plan.row_groups << "x"
      << plan.unit_groups << " block " << plan.block_pairs << (plan.far ? " far" : "");
  return out.str();
}

std::vector<Plan> plans_for(const Shape& shape) {
  std::vector<Plan> plans;
  const auto add = [&](int layers, int directions, int rows, int units) {
    const Index fewest = std::max<Index>(1, (shape.batch + rows - 1) / rows);
    for (const Index block_pairs : {fewest, fewest + 1, 3 * fewest + 2, Index(1001)})
      plans.push_back({layers, directions, rows, units, block_pairs, kPatientCycles});
    if (layers * directions * rows * units > 1)
      plans.push_back({layers, directions, rows, units, fewest + 1, kPatientCycles, 0, true});
  };
  for (const int units : {2, 3}) add(1, 1, 1, units);
  for (int directions = 1; directions <= shape.directions; ++directions)
    for (const int rows : {1, 2, 3}) add(1, directions, rows, 1);
  if (shape.directions == 1 && shape.layers > 1) {
    add(static_cast<int>(shape.layers), 1, 1, 1);
    add(2, 1, 1, 1);
    add(2, 1, 2, 1);
  }
  return plans;
}

template <class T>
void compare_plans(const NamedCell& cell, const Scope& scope, const Shape& shape) {
  const Problem<T> problem(cell, shape);
  for (const KernelTable* table : scope.tables) {
    const Network<T> network(problem.spec, problem.parameters, *table);
    Workspace workspace;
    Results<T> expected;
    CHECK(network.forward(problem.sequence(expected), workspace, nullptr, Plan{1, 1, 1, 1, 1001, 0}));
    if (has_fused_multiply_add(*table))
      CHECK_NOTHING_WRONG(problem.reference().difference(expected), std::string(table->name) + ", " + problem.name());
    for (const Plan& plan : plans_for(shape)) {
      if (plan.threads() < scope.fewest_threads || plan.threads() > scope.most_threads) continue;
      Results<T> got;
      CHECK(network.forward(problem.sequence(got), workspace, nullptr, plan));
      CHECK_NOTHING_WRONG(expected.difference(got),
                          std::string(table->name) + ", " + problem.name() + ", " + text(plan));
    }
    Results<T> chosen;
    network.forward(problem.sequence(chosen), workspace);
    CHECK_NOTHING_WRONG(expected.difference(chosen), "the plan of its own choice, " + problem.name());
  }
}

template <class T>
void compare_plans(const NamedCell& cell, const Scope& scope) {
  for (const Index layers : {1, 3})
    for (const Index directions : {1, 2}) {
      compare_plans<T>(cell, scope, {9, 67, 6, 5, layers, directions, {6, 0, 1, 3, 6}});
      compare_plans<T>(cell, scope, {17, 33, 3, 4, layers, directions});
      compare_plans<T>(cell, scope, {5, 2, 6, 37, layers, directions, ragged(37, 6)});  // rows in lanes
    }
  compare_plans<T>(cell, scope, {9, 33, 6, 5, 3, 1, {6, 0, 1, 3, 6}, true, true, true});
  compare_plans<T>(cell, scope, {5, 2, 6, 37, 2, 1, ragged(37, 6), true, true, true});
  compare_plans<T>(cell, scope, {7, 33, 5, 1, 2, 2});
  compare_plans<T>(cell, scope, {7, 9, 5, 2, 2, 1, {2, 5}});
  compare_plans<T>(cell, scope, {7, 129, 4, 3, 2, 2, {0, 0, 0}});
  compare_plans<T>(cell, scope, {7, 17, 0, 3, 2, 2});
}

// ---- make_plan ------------------------------------------------------------------------------------------------------------

constexpr PanelLayout floats(int lanes) { return {4, 4, 4, 1, lanes}; }
constexpr PanelLayout kFloats = floats(16);  // of AVX-512

constexpr Core kCores[] = {
    {32 << 10, 512 << 10, 8 << 20, 64}, {48 << 10, 2 << 20, 32 << 20, 128}, {16 << 10, 16 << 10, 16 << 10, 16}};

struct PlanSpace {
  long several_threads = 0, several_units = 0, several_rows = 0, several_directions = 0, several_layers = 0,
       gradient_threads = 0;
};

void check_promises(const Workload& problem, int threads, const Core& core, PlanSpace& seen) {
  const Plan plan = make_plan(problem, threads, core);
  const Index batch = std::max<Index>(1, problem.batch);
  CHECK(plan.layer_groups >= 1 && plan.direction_groups >= 1 && plan.row_groups >= 1 && plan.unit_groups >= 1);
  CHECK(plan.threads() <= threads);
  CHECK(plan.unit_groups == 1 || plan.unit_groups == plan.threads());
  CHECK(plan.gradient_threads == 0 || (problem.gradient_threads_allowed && plan.gradient_threads > 0));
  CHECK(plan.layer_groups <= (problem.layers_overlap ? problem.spec.num_layers : 1));
  CHECK(plan.direction_groups <= problem.spec.directions);
  CHECK(plan.row_groups <= batch);
  // Every thread has a whole panel, however wide the panel; two share what is one vector wide.
  const Index vectors = problem.spec.state_size() / problem.layout.lanes;
  const bool one_vector = problem.spec.description().stages[0].unit_vectors() == 1;
  const bool small = plan.unit_groups == 2 && one_vector && !problem.backward && vectors >= 4;
  CHECK(plan.unit_groups == 1 || plan.unit_groups * kMostUnitVectors <= vectors || small);
  CHECK(plan.block_pairs >= (problem.batch + plan.row_groups - 1) / plan.row_groups);
  CHECK(plan.block_pairs <= std::max<Index>(1, problem.batch) * std::max<Index>(1, problem.steps));
  const Plan alone = make_plan(problem, 1, core);
  CHECK_EQUAL(1, alone.threads());
  CHECK(plan.cycles <= alone.cycles);
  const bool empty = problem.batch == 0 || problem.valid == 0;
  if (empty) CHECK_EQUAL(1, plan.threads());
  seen.several_threads += plan.threads() > 1;
  seen.several_units += plan.unit_groups > 1;
  seen.several_rows += plan.row_groups > 1;
  seen.several_directions += plan.direction_groups > 1;
  seen.several_layers += plan.layer_groups > 1;
  seen.gradient_threads += plan.gradient_threads > 0;
}

void check_make_plan() {
  PlanSpace seen;
  for (const NamedCell& cell : all_cells())
    for (const Index hidden : {1, 31, 64, 257, 1024})
      for (const Index batch : {0, 1, 3, 16, 255})
        for (const Index steps : {0, 1, 25, 1000})
          for (const Index directions : {1, 2})
            for (const int threads : {1, 2, 3, 7, 64})
              for (const Core& core : kCores)
                for (const int lanes : {4, 16}) {
                  const Spec spec{cell.cell, hidden, hidden, 2, directions, cell.projection ? (hidden + 1) / 2 : 0};
                  for (const Index valid : {steps * batch, steps * batch / 3}) {
                    check_promises({spec, steps, batch, valid, floats(lanes), directions == 1}, threads, core, seen);
                    if (directions > 1) continue;  // backward goes through one at a time
                    for (const bool gradient_threads : {false, true})
                      check_promises({spec, steps, batch, valid, floats(lanes), false, true, gradient_threads}, threads,
                                     core, seen);
                  }
                }
  // The sweep reached plans of every kind.
  CHECK(seen.several_threads > 0 && seen.several_units > 0 && seen.several_rows > 0 && seen.several_directions > 0);
  CHECK(seen.several_layers > 0 && seen.gradient_threads > 0);

  const Core& core = kCores[1];
  for (const NamedCell& cell : all_cells()) {
    const Spec small{cell.cell, 16, 16, 1, 1, cell.projection ? 8 : 0};
    CHECK_EQUAL(1, make_plan({small, 1, 1, 1, floats(8)}, 64, core).threads());
    CHECK_EQUAL(1, make_plan({small, 2, 4, 8, floats(8)}, 64, core).threads());
    const Spec large{cell.cell, 1024, 1024, 1, 1, cell.projection ? 512 : 0};
    CHECK_EQUAL(2, make_plan({large, 25, 64, 25 * 64, floats(8)}, 2, core).threads());
    // A row that is normalised belongs to one thread.
    CHECK_EQUAL(description(cell.cell).is_normalized() ? 1 : 2,
                make_plan({large, 25, 1, 25, floats(8)}, 2, core).unit_groups);
  }
  // One step of some microseconds: not worth waking threads for, but worth those that are awake.
  const Workload step{Spec{Cell::lstm, 256, 256, 1, 1, 0}, 1, 1, 1, kFloats};
  CHECK_EQUAL(1, make_plan(step, 2, core).threads());
  CHECK_EQUAL(2, make_plan(step, 2, core, Awake::yes, 700).threads());
  // A small network's row, where threads are near each other.
  for (const Cell cell : {Cell::lstm, Cell::gru}) {
    const Workload small_row{Spec{cell, 64, 64, 1, 1, 0}, 100, 1, 100, kFloats};
    CHECK_EQUAL(1, make_plan(small_row, 2, kCores[0], Awake::yes, 2600).threads());
    CHECK_EQUAL(2, make_plan(small_row, 2, kCores[0], Awake::yes, 700).unit_groups);
    CHECK_EQUAL(2, make_plan(small_row, 64, kCores[0], Awake::yes, 700).unit_groups);
  }
  // Backward, one long row of a small layer: others add up its gradients, many rows are shared.
  Workload long_row{Spec{Cell::lstm, 64, 64, 1, 1, 0}, 1000, 1, 1000, kFloats, false, true, true};
  CHECK_EQUAL(1, make_plan(long_row, 2, core).gradient_threads);
  CHECK_EQUAL(1, make_plan(long_row, 64, core).gradient_threads);  // who keeps up
  long_row.gradient_threads_allowed = false;
  CHECK_EQUAL(1, make_plan(long_row, 2, core).threads());
  const Workload rows{Spec{Cell::lstm, 64, 64, 1, 1, 0}, 100, 64, 6400, kFloats, false, true, true};
  CHECK_EQUAL(2, make_plan(rows, 2, core).row_groups);
  // Threads are far from each other where their meetings say so, and whole lines can be written past the caches.
  CHECK(make_plan(rows, 2, core, Awake::yes, 2600).far);
  CHECK(!make_plan(rows, 2, core, Awake::yes, 900).far);
  CHECK(!make_plan(rows, 1, core, Awake::yes, 2600).far);
  CHECK(!make_plan(rows, 2, core, Awake::no, 2600).far);
  Workload half_lines = rows;
  half_lines.layout.lanes = 8;
  CHECK(!make_plan(half_lines, 2, core, Awake::yes, 2600).far);
}

// A plan that was kept is the one that would be made, also after more of them than are kept.
void check_plan_cache() {
  PlanCache cache;
  for (int round = 0; round < 3; ++round)
    for (const Index batch : {1, 3, 16})
      for (const Index steps : {25, 1000, 1001, 1002})
        for (const bool backward : {false, true})
          for (const int threads : {2, 64})
            for (const Awake team : {Awake::no, Awake::yes})
              for (const double meeting : {700.0, 2600.0}) {
                const Spec spec{Cell::lstm, 512, 512, 2, 1, 0};
                const Workload problem{spec, steps, batch, steps * batch, kFloats, !backward, backward, backward};
                const Plan plan = make_plan(problem, threads, kCores[1], team, meeting);
                const Plan kept = make_plan(problem, threads, kCores[1], team, meeting, &cache);
                CHECK_EQUAL(text(plan), text(kept));
                CHECK(plan.cycles == kept.cycles && plan.gradient_threads == kept.gradient_threads);
              }
}

// ---- No threads -----------------------------------------------------------------------------------------------------------

// Another call has the threads, for as long as an instance lives.
class ThreadsTaken {
 public:
  ThreadsTaken()
      : thread_([this] {
          const auto hold = [](void* self, Member&) {
            static_cast<ThreadsTaken*>(self)->taken_ = true;
            while (!static_cast<ThreadsTaken*>(self)->released_) relax();
          };
          CHECK(run_team(2, {}, hold, this));
        }) {
    while (!taken_) relax();
  }
  ~ThreadsTaken() {
    released_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> taken_{false}, released_{false};
  std::thread thread_;
};

// With a plan that cannot be had nothing runs; a call without a plan finds another way.
void check_without_threads() {
  const Shape shape{65, 129, 200, 6, 1, 2};
  const Problem<float> problem(all_cells()[0], shape);
  const Network<float> network(problem.spec, problem.parameters, *available_tables().back());
  Workspace workspace;
  Results<float> expected, untouched;
  CHECK(network.forward(problem.sequence(expected), workspace, nullptr, Plan{1, 1, 1, 1, 6, 0}));
  problem.sequence(untouched);
  const int before = num_threads();
  set_num_threads(4);
  CHECK(network.plan(shape.steps, shape.batch, shape.steps * shape.batch, num_threads()).threads() > 1);
  {
    const ThreadsTaken taken;
    for (const Plan& plan : {Plan{1, 2, 1, 1, 6, kPatientCycles}, Plan{1, 1, 2, 1, 3, 0}, Plan{1, 1, 1, 2, 6, 0}}) {
      Results<float> got;
      CHECK(!network.forward(problem.sequence(got), workspace, nullptr, plan));
      CHECK_NOTHING_WRONG(untouched.difference(got), "after a refused " + text(plan));
    }
    Results<float> got;
    network.forward(problem.sequence(got), workspace);
    CHECK_NOTHING_WRONG(expected.difference(got), "without threads");
  }
  for (int i = 0; i < 200; ++i) {  // without patience others' parts are done by whoever is there
    Results<float> got;
    CHECK(network.forward(problem.sequence(got), workspace, nullptr, Plan{1, 1, 1, 3, 6, -1e9}));
    CHECK_NOTHING_WRONG(expected.difference(got), "without patience");
    if (i % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));  // workers have gone to sleep
  }
  set_num_threads(before);
}

// Plans with which a call would never end, or that have nobody for some rows.
void check_refused_plans() {
  const Shape shape{5, 7, 3, 6, 1, 1};
  const Problem<float> problem(all_cells()[0], shape);
  const Network<float> network(problem.spec, problem.parameters, *available_tables().back());
  network.pack_for_backward(problem.parameters);
  Workspace workspace, memory;
  Results<float> results;
  const Sequence<float> sequence = problem.sequence(results);
  Tape<float> tape(network, sequence, {}, memory);
  for (const Plan& plan : {Plan{1, 1, 1, 1, 5}, Plan{1, 1, 2, 1, 2}, Plan{1, 1, 1, 1, 0}, Plan{0, 1, 1, 1, 6},
                           Plan{1, 0, 1, 1, 6}, Plan{1, 1, 0, 1, 6}, Plan{1, 1, 1, 0, 6}, Plan{1, 1, 1, 1, 6, 0, -1}}) {
    CHECK_THROWS(std::invalid_argument, network.forward(sequence, workspace, nullptr, plan));
    CHECK_THROWS(std::invalid_argument, network.forward(sequence, workspace, &tape, plan));
    CHECK_THROWS(std::invalid_argument, network.backward(tape, {}, workspace, plan));
  }
  CHECK(network.forward(sequence, workspace, &tape, Plan{1, 1, 1, 1, 6}));
}

}  // namespace
}  // namespace gatedrnn::test

int main(int argc, char** argv) {
  using namespace gatedrnn;
  using namespace gatedrnn::test;
  check_without_threads();
  if (argc == 2 && std::string(argv[1]) == "threads") {
    for (const NamedCell& cell : all_cells()) compare_plans<float>(cell, {{available_tables().back()}, 2, 4});
    return finish("test_plans threads");
  }
  check_refused_plans();
  check_make_plan();
  check_plan_cache();
  const Scope all{available_tables(), 1, 1000};
  for (const NamedCell& cell : all_cells()) {
    compare_plans<float>(cell, all);
    if (cell.projection || description(cell.cell).two_stages())
      compare_plans<double>(cell, all);  // those of two stages
  }
  return finish("test_plans");
}
