#include "openmp.h"

#include <algorithm>
#include <exception>

#include "gatedrnn/processors.h"

#if defined(GATEDRNN_OPENMP)
#include <omp.h>
#endif

namespace gatedrnn {

// One parallel region. Nothing may be thrown out of it.
struct OpenMpThreads::Region {
  const OpenMp& runtime;
  Team& team;
  const int count;
  const TeamFunction function;
  void* const context;
  Member caller;
  const Stamp opened;
  bool ran = false;
  std::exception_ptr thrown = nullptr;

  void enter() {
    if (runtime.num_threads() < count) return;  // within another region, or the runtime has a limit: the same for all
    const int thread = runtime.thread_num();
    if (thread == 0)
      call();
    else if (thread < count)
      team.help(opened, thread);  // one that comes late finds no seat; the region waits for it all the same
  }

  void call() {
    ran = true;
    try {
      function(context, caller);
    } catch (...) {
      thrown = std::current_exception();
    }
    team.close();
  }
};

bool OpenMpThreads::takes(int count) const {
  static const int processors = usable_processors();
  return count <= std::max(processors, runtime_.max_threads());
}

bool OpenMpThreads::run(int count, const Patience& patience, TeamFunction function, void* context) {
  const OneCall call(taken_);
  if (!call) return false;
  Member caller = team_.open(count, patience, function, context);
  Region region{runtime_, team_, count, function, context, caller, team_.published()};
  // A runtime asked for fewer threads than the time before may end the others, to start them anew for its next region.
  const int threads = std::max(count, runtime_.max_threads());
  runtime_.parallel([](void* self) { static_cast<Region*>(self)->enter(); }, &region, static_cast<unsigned>(threads),
                    0);
  ended_at_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  if (region.thrown) std::rethrow_exception(region.thrown);
  return region.ran;
}

Awake OpenMpThreads::team(int) const {
  const Clock::duration ended_at(ended_at_.load(std::memory_order_relaxed));
  return Clock::now().time_since_epoch() - ended_at < kSpinning ? Awake::yes : Awake::no;
}

#if defined(GATEDRNN_OPENMP)
OpenMp linked_openmp() {
  const auto parallel = [](void (*function)(void*), void* data, unsigned threads, unsigned) {
#pragma omp parallel num_threads(threads)
    function(data);
  };
  return {parallel, omp_get_thread_num, omp_get_num_threads, omp_get_max_threads};
}
#endif

}  // namespace gatedrnn
