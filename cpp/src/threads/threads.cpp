#include "gatedrnn/threads.h"

#include <cstdlib>

#include "crowd.h"
#include "gatedrnn/processors.h"
#include "openmp.h"
#include "pool.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define GATEDRNN_HAS_FORK 1
#endif

namespace gatedrnn {
namespace {

// ---- How many ------------------------------------------------------------------------------------------------------------
int default_threads() {
  int count = usable_processors();
  if (const char* text = std::getenv("OMP_NUM_THREADS")) {
    const int wanted = std::atoi(text);
    if (wanted > 0) count = std::min(count, wanted);
  }
  return count;
}

std::atomic<int>& thread_setting() {
  static std::atomic<int> count{default_threads()};
  return count;
}

thread_local int limit_here = 0;

// ---- Where from ----------------------------------------------------------------------------------------------------------
// What is set up is never destroyed: the workers use it for as long as the process lives.
std::atomic<Pool*> shared_pool{nullptr};

Pool& pool() {
  Pool* current = shared_pool.load(std::memory_order_acquire);
  if (current) return *current;
  auto* fresh = new Pool;
  if (shared_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; this one has no workers yet
  return *current;
}

OpenMpThreads* linked_threads() {
#if defined(GATEDRNN_OPENMP)
  return new OpenMpThreads(linked_openmp());
#else
  return nullptr;
#endif
}

std::atomic<OpenMpThreads*> openmp_threads{linked_threads()};

ThreadSource& source_of(int count) {
  OpenMpThreads* const openmp = openmp_threads.load(std::memory_order_acquire);
  if (openmp && openmp->takes(count)) return *openmp;
  return pool();
}

#if defined(GATEDRNN_HAS_FORK)
// No threads but the forking one exist in a child, and the locks are in whatever state the fork found them: the child gets a new pool
// and uses no OpenMP.
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  shared_pool.store(nullptr);
  openmp_threads.store(nullptr);
  forget_other_calls();
});
#endif

}  // namespace

void set_num_threads(int count) { thread_setting().store(count); }
int num_threads() { return limit_here > 0 ? limit_here : thread_setting().load(std::memory_order_relaxed); }
void limit_this_thread(int count) { limit_here = count; }

void borrow_threads(const OpenMp& from) { openmp_threads.store(new OpenMpThreads(from), std::memory_order_release); }
const char* thread_source() { return source_of(2).name(); }

bool run_team(int count, const Patience& patience, TeamFunction function, void* context) {
  return source_of(count).run(count, patience, function, context);
}

Awake team_of(int count) { return count == 1 ? Awake::no : source_of(count).team(count); }

void miss_team(int count, std::chrono::steady_clock::time_point begun) { source_of(count).miss_team(count, begun); }

}  // namespace gatedrnn
