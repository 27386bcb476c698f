#include "pool.h"

#include <algorithm>
#include <system_error>

#include "waiting.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace gatedrnn {
namespace {

// Closes the team whatever the caller's part in the call throws.
class Closing {
 public:
  explicit Closing(Team& team) : team_(team) {}
  ~Closing() { team_.close(); }
  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;

 private:
  Team& team_;
};

}  // namespace

bool Pool::run(int count, const Patience& patience, TeamFunction function, void* context) {
  const OneCall call(taken_);
  if (!call || !hire(count - 1)) return false;
  keep_workers_off_this_processor();
  Member caller = team_.open(count, patience, function, context);
  const Closing closing(team_);
  wake(count - 1);
  function(context, caller);
  return true;
}

Awake Pool::team(int count) const {
  const int awake = hired_.load(std::memory_order_relaxed) - sleepers_.load(std::memory_order_relaxed);
  return awake >= count - 1 ? Awake::yes : Awake::no;
}

void Pool::miss_team(int count, Clock::time_point begun) {
  const Clock::time_point now = Clock::now();
  const Clock::duration last(missed_at_.exchange(now.time_since_epoch().count(), std::memory_order_relaxed));
  if (begun.time_since_epoch() - last > kBusyStream) return;
  const Clock::duration took = now - begun;
  stay_.store(kBusyStream + std::min<Clock::duration>(took + took / 4, kLongestCall), std::memory_order_relaxed);
  const OneCall call(taken_);
  if (call && hire(count - 1)) wake(count - 1);
}

bool Pool::hire(int workers) {
  try {
    while (static_cast<int>(workers_.size()) < workers) {
      workers_.emplace_back([this] { serve(); });
      hired_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
      placed_for_processor_ = -1;
    }
  } catch (const std::system_error&) {  // the system gives no more threads
    return false;
  }
  return true;
}

// The scheduler may wake a worker on the very processor that waits for it, and leave it there for milliseconds. The caller's own
// affinity may be another than that of the last one, or change. Workers of a caller that has been put on one processor stay where they
// are: there they would only take it from the caller.
void Pool::keep_workers_off_this_processor() {
#if defined(__linux__)
  constexpr auto lasts = std::chrono::milliseconds(100);
  const int here = sched_getcpu();
  const std::thread::id thread = std::this_thread::get_id();
  const Clock::time_point now = Clock::now();
  if (here == placed_for_processor_ && thread == placed_for_thread_ && now - placed_at_ < lasts) return;
  placed_for_processor_ = here;
  placed_for_thread_ = thread;
  placed_at_ = now;
  cpu_set_t allowed;
  if (here < 0 || here >= CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  if (CPU_COUNT(&allowed) == 1) return;
  CPU_CLR(here, &allowed);
  for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof allowed, &allowed);
#endif
}

// As many of those that sleep as are wanted, and no more.
void Pool::wake(int workers) {
  const int sleepers = sleepers_.load();
  if (sleepers == 0) return;
  const int wanted = std::min(sleepers, workers);
  {
    const std::lock_guard lock(mutex_);  // a worker between its last look and its sleep has the lock
    to_wake_ = wanted;
  }
  for (int i = 0; i < wanted; ++i) wake_.notify_one();
}

void Pool::serve() {
  for (Stamp last = 0;;) {
    last = await_call(last);
    if (team_.help(last)) stay_.store(kBusyStream, std::memory_order_relaxed);
  }
}

// Returns what is published, when it is another call than the last one, or the worker was woken up.
Stamp Pool::await_call(Stamp last) {
  const Clock::time_point start = Clock::now();
  do {
    for (int spins = 0; spins < kSpins / 10; ++spins) {
      if (const Stamp call = team_.published(); call != last) return call;
      relax();
    }
  } while (Clock::now() - start < stay_.load(std::memory_order_relaxed));
  std::unique_lock lock(mutex_);
  sleepers_.fetch_add(1);
  if (team_.published() == last) wake_.wait(lock, [&] { return to_wake_ > 0 || team_.published() != last; });
  to_wake_ = std::max(0, to_wake_ - 1);
  sleepers_.fetch_sub(1);
  return team_.published();
}

}  // namespace gatedrnn
