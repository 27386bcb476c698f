// Everything that is decided before touching data: how many threads, what they share out, and how far inputs are multiplied ahead. A
// plan never changes a result, only the time it takes. Forward and backward have plans of their own.
#pragma once

#include <mutex>
#include <vector>

#include "gatedrnn/core.h"
#include "gatedrnn/format.h"
#include "gatedrnn/spec.h"
#include "gatedrnn/threads.h"

namespace gatedrnn {

// What a plan is made for.
struct Workload {
  Spec spec;
  Index steps;  // of the longest row
  Index batch;
  Index valid;  // sum of the rows' lengths
  PanelLayout layout;
  // Each layer needs only the steps of the one before that it has come to, so that several may be under way.
  bool layers_overlap = false;
  bool backward = false;
  bool gradient_threads_allowed = false;  // see Plan
};

struct Plan {
  // Groups of threads, or of one thread each: directions and rows never meet within a layer, layers follow one another, a block of
  // steps behind. Or all threads share the units of the same rows, and meet in every stage of a step.
  int layer_groups = 1;
  int direction_groups = 1;
  int row_groups = 1;
  int unit_groups = 1;
  Index block_pairs =
      1;  // (step, row) pairs whose inputs are multiplied ahead together, or that gradient threads get at a time
  double cycles = 0;  // what the model expects
  // Backward: threads beside the groups, which add the pairs of a block to the gradients while those go back through the next. None: all do both
  // in turns.
  int gradient_threads = 0;
  // Its threads are far from each other: what one writes for others goes past the caches, not from cache to cache.
  bool far = false;

  int grid() const { return layer_groups * direction_groups * row_groups * unit_groups; }
  int threads() const { return grid() + gradient_threads; }
};

// For one thread; without what it costs.
Plan plan_alone(const Workload& workload, const Core& core);

// The plans that one network made last, since calls repeat and a search among many threads takes as long as a small call. Nobody
// waits: who does not get the lock at once searches again.
class PlanCache {
 public:
  // What decides a plan, beside the network and the machine.
  struct Key {
    Index steps, batch, valid;
    int threads;
    bool layers_overlap, backward, gradient_threads_allowed;
    Awake team;
    double meeting;
    bool operator==(const Key& other) const;
  };

  bool find(const Key& key, Plan& plan);
  void keep(const Key& key, const Plan& plan);

 private:
  static constexpr int kMost = 16;

  struct Entry {
    Key key;
    Plan plan;
  };

  std::mutex mutex_;
  std::vector<Entry> entries_;
  std::size_t oldest_ = 0;
};

// `meeting`: see meeting_cycles.
Plan make_plan(const Workload& workload, int max_threads, const Core& core, Awake team = Awake::no,
               double meeting = kUsualMeetingCycles, PlanCache* cache = nullptr);

}  // namespace gatedrnn
