#include "gatedrnn/threads.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "gatedrnn/machine.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define GATEDRNN_HAS_FORK 1
#endif

namespace gatedrnn {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kSpins = 300;  // some ten microseconds
// Calls that follow one upon the other as fast as this are a stream: workers wait for the next one awake. (Between forward and
// backward PyTorch takes some 100 microseconds for itself.) Those that come for a call which began without them wait until
// it must be over.
constexpr auto kBusyStream = std::chrono::microseconds(200), kLongestCall = std::chrono::microseconds(800);

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

// Spins, then yields, until `done()`.
template <class Done>
void wait_until(Done&& done) {
  for (int spins = 0; !done(); ++spins)
    if (spins < kSpins)
      relax();
    else
      std::this_thread::yield();
}

// Workers that take shares of one job at a time. The owner publishes a job by setting `open_`; a share is claimed by
// counting it down. Whoever has claimed a share may read the job's fields, since the owner waits for all that were claimed.
class Pool {
 public:
  bool run(int count, Shares shares, double patience, TeamFunction function, void* context) {
    const std::unique_lock owner(owner_, std::try_to_lock);
    if (!owner || !hire(count - 1)) return false;
    keep_workers_off_this_processor();
    function_ = function;
    context_ = context;
    decision_.store(shares == Shares::independent ? Decision::go : Decision::open, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    publish(count - 1);
    return shares == Shares::independent ? work_along(count) : work_together(count, patience);
  }

  Team team_of(int count) const {
    return hired_.load(std::memory_order_relaxed) - sleepers_.load(std::memory_order_relaxed) >= count - 1
               ? Team::awake
               : Team::asleep;
  }

  void miss_team(int count, Clock::time_point begun) {
    const Clock::time_point now = Clock::now();
    const Clock::duration last(missed_at_.exchange(now.time_since_epoch().count(), std::memory_order_relaxed));
    if (begun.time_since_epoch() - last > kBusyStream) return;
    const Clock::duration call = now - begun;
    stay_.store(kBusyStream + std::min<Clock::duration>(call + call / 4, kLongestCall), std::memory_order_relaxed);
    const std::unique_lock owner(owner_, std::try_to_lock);
    if (!owner || !hire(count - 1)) return;
    {
      const std::lock_guard lock(mutex_);
      ++calls_to_wake_;
    }
    wake_.notify_all();
  }

 private:
  enum class Decision { open, go, cancel };

  static constexpr std::uint64_t kShareBits = 16, kShareMask = (1u << kShareBits) - 1;

  bool hire(int workers) {
    if (workers > static_cast<int>(kShareMask)) return false;
    try {
      while (static_cast<int>(workers_.size()) < workers) {
        workers_.emplace_back([this] { serve(); });
        hired_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
        placed_for_ = -1;
      }
    } catch (const std::system_error&) {  // the system gives no more threads
      return false;
    }
    return true;
  }

  // The scheduler may wake a worker on the very processor that waits for it, and leave it there for milliseconds.
  void keep_workers_off_this_processor() {
#if defined(__linux__)
    const int here = sched_getcpu();
    if (here < 0 || here == placed_for_ || here >= CPU_SETSIZE) return;
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
    CPU_CLR(here, &allowed);
    for (std::thread& worker : workers_) pthread_setaffinity_np(worker.native_handle(), sizeof allowed, &allowed);
    placed_for_ = here;
#endif
  }

  void publish(int shares) {
    const std::uint64_t generation = (open_.load(std::memory_order_relaxed) >> kShareBits) + 1;
    open_.store(generation << kShareBits | static_cast<std::uint64_t>(shares));
    if (sleepers_.load() == 0) return;
    {
      const std::lock_guard lock(mutex_);
    }  // a worker between its last look and its sleep has the lock
    wake_.notify_all();
  }

  // A share's number, from the last to 1, or 0 when none is open.
  int claim() {
    std::uint64_t seen = open_.load(std::memory_order_acquire);
    while ((seen & kShareMask) != 0)
      if (open_.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel))
        return static_cast<int>(seen & kShareMask);
    return 0;
  }

  bool work_along(int count) {
    function_(context_, 0);
    int others = count - 1;
    while (const int share = claim()) {  // a worker that is late finds its share done
      function_(context_, share);
      --others;
    }
    wait_until([&] { return finished_.load(std::memory_order_acquire) == others; });
    return true;
  }

  bool work_together(int count, double patience) {
    const Clock::time_point start = Clock::now();
    while ((open_.load(std::memory_order_acquire) & kShareMask) != 0) {
      relax();
      if (std::chrono::duration<double, std::micro>(Clock::now() - start).count() > patience) break;
    }
    const int missing = static_cast<int>(open_.fetch_and(~kShareMask, std::memory_order_acq_rel) & kShareMask);
    decision_.store(missing == 0 ? Decision::go : Decision::cancel, std::memory_order_release);
    if (missing == 0) function_(context_, 0);
    wait_until([&] { return finished_.load(std::memory_order_acquire) == count - 1 - missing; });
    return missing == 0;
  }

  void serve() {
    for (;;) {
      await_work();
      if (const int share = claim()) {
        stay_.store(kBusyStream, std::memory_order_relaxed);
        wait_until([&] { return decision_.load(std::memory_order_acquire) != Decision::open; });
        if (decision_.load(std::memory_order_relaxed) == Decision::go) function_(context_, share);
        finished_.fetch_add(1, std::memory_order_acq_rel);
      }
    }
  }

  void await_work() {
    const auto work = [this] { return (open_.load() & kShareMask) != 0; };
    const Clock::time_point start = Clock::now();
    do {
      for (int spins = 0; spins < kSpins / 10; ++spins) {
        if (work()) return;
        relax();
      }
    } while (Clock::now() - start < stay_.load(std::memory_order_relaxed));
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1);
    wake_.wait(lock, [&, heard = calls_to_wake_] { return work() || heard != calls_to_wake_; });
    sleepers_.fetch_sub(1);
  }

  std::mutex owner_;  // one job at a time
  std::vector<std::thread> workers_;
  [[maybe_unused]] int placed_for_ = -1;  // the processor that the workers avoid
  TeamFunction function_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<std::uint64_t> open_{0};  // generation, and below it the shares nobody has claimed
  alignas(64) std::atomic<int> finished_{0};
  alignas(64) std::atomic<Decision> decision_{Decision::open};
  std::atomic<int> hired_{0}, sleepers_{0};
  std::atomic<Clock::rep> missed_at_{0};  // when the last call that would have used a team was over
  std::atomic<Clock::duration> stay_{Clock::duration(kBusyStream)};  // how long workers wait for work awake
  std::mutex mutex_;
  unsigned calls_to_wake_ = 0;
  std::condition_variable wake_;
};

// What the meetings of teams of one size took when that was last measured.
class MeasuredMeeting {
 public:
  // Or 0 where it is not known, or no longer.
  double cycles() const {
    const Clock::duration at(at_.load(std::memory_order_acquire));
    return Clock::now().time_since_epoch() - at < kLasts ? cycles_.load(std::memory_order_relaxed) : 0;
  }

  void measure(int count) {
    // A barrier's time in cycles of a server's core, and as much again for the lines that others wrote.
    constexpr double cycles_of_ns = 2 * 3.5;
    // Lines do not get from core to core and back in less: these threads are on one core, and one waits while the other works.
    constexpr double one_core_ns = 45, no_gain = 60000;
    const double ns = barrier_ns(count);
    const double cycles = ns < 0 ? kUsualMeetingCycles : ns < one_core_ns ? no_gain : cycles_of_ns * ns;
    cycles_.store(cycles, std::memory_order_relaxed);
    at_.store(Clock::now().time_since_epoch().count(), std::memory_order_release);
  }

 private:
  // Below 0 where no team came together.
  static double barrier_ns(int count) {
    constexpr int first_rounds = 2, rounds = 8;
    constexpr double patience = 20;
    struct Rounds {
      Barrier barrier;
      std::chrono::duration<double, std::nano> taken{0};
      void run(int thread) {
        for (int round = 0; round < first_rounds; ++round) barrier.wait();
        const Clock::time_point start = Clock::now();
        for (int round = 0; round < rounds; ++round) barrier.wait();
        if (thread == 0) taken = Clock::now() - start;
      }
    } all{Barrier(count)};
    const auto run = [](void* self, int thread) { static_cast<Rounds*>(self)->run(thread); };
    return run_team(count, Shares::together, patience, run, &all) ? all.taken.count() / rounds : -1;
  }

  static constexpr auto kLasts = std::chrono::milliseconds(50);
  std::atomic<double> cycles_{0};
  std::atomic<Clock::rep> at_{0};
};

// Threads of an OpenMP runtime, one job at a time.
class BorrowedTeam {
 public:
  explicit BorrowedTeam(const OpenMp& from) : from_(from) {}

  // Not more than the runtime would start for others: where the system gives it none, it ends the process.
  bool takes(int count) const {
    static const int processors = usable_processors();
    return count <= std::max(processors, from_.max_threads());
  }

  bool run(int count, TeamFunction function, void* context) {
    const std::unique_lock owner(owner_, std::try_to_lock);
    if (!owner) return false;
    Region region{from_, count, function, context};
    // A runtime asked for fewer threads than the time before may end the others, to start them anew for its next region.
    const int threads = std::max(count, from_.max_threads());
    from_.parallel([](void* self) { static_cast<Region*>(self)->enter(); }, &region, static_cast<unsigned>(threads), 0);
    ended_at_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    return region.ran;
  }

  Team team() const {
    const Clock::duration ended_at(ended_at_.load(std::memory_order_relaxed));
    return Clock::now().time_since_epoch() - ended_at < kSpinning ? Team::awake : Team::asleep;
  }

 private:
  static constexpr auto kSpinning = std::chrono::milliseconds(1);  // the least that runtimes do by default

  struct Region {
    const OpenMp& from;
    const int count;
    const TeamFunction function;
    void* const context;
    bool ran = false;

    void enter() {
      if (from.num_threads() < count) return;  // within another region, or the runtime has a limit: the same for all
      const int thread = from.thread_num();
      if (thread == 0) ran = true;
      if (thread < count) function(context, thread);
    }
  };

  const OpenMp from_;
  std::mutex owner_;
  std::atomic<Clock::rep> ended_at_{0};
};

// Never destroyed, as below.
std::atomic<BorrowedTeam*> borrowed_team{nullptr};

// Never destroyed: the workers use it for as long as the process lives.
std::atomic<Pool*> shared_pool{nullptr};

Pool& pool() {
  Pool* current = shared_pool.load(std::memory_order_acquire);
  if (current) return *current;
  auto* fresh = new Pool;
  if (shared_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;  // another thread was first; this one has no workers yet
  return *current;
}

#if defined(GATEDRNN_HAS_FORK)
// No threads but the forking one exist in a child, and the pool's locks are in whatever state the fork found them: the child gets
// a new pool and borrows nothing.
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
  shared_pool.store(nullptr);
  borrowed_team.store(nullptr);
});
#endif

// Null: ours are used.
BorrowedTeam* borrowed_for(int count) {
  BorrowedTeam* const borrowed = borrowed_team.load(std::memory_order_acquire);
  return borrowed && borrowed->takes(count) ? borrowed : nullptr;
}

}  // namespace

void set_num_threads(int count) { thread_setting().store(count); }
int num_threads() { return thread_setting().load(std::memory_order_relaxed); }

bool run_team(int count, Shares shares, double patience, TeamFunction function, void* context) {
  if (BorrowedTeam* const borrowed = borrowed_for(count)) return borrowed->run(count, function, context);
  return pool().run(count, shares, patience, function, context);
}

void borrow_threads(const OpenMp& from) { borrowed_team.store(new BorrowedTeam(from), std::memory_order_release); }

Team team_of(int count) {
  if (count == 1) return Team::asleep;
  if (const BorrowedTeam* const borrowed = borrowed_for(count)) return borrowed->team();
  return pool().team_of(count);
}

double meeting_cycles(int count) {
  constexpr int most = 16;  // larger teams' meetings take as long as that of the largest here
  static MeasuredMeeting measured[most];
  count = std::min(count, most);
  MeasuredMeeting& meeting = measured[count - 1];
  if (const double known = meeting.cycles(); known > 0 || team_of(count) == Team::asleep) return known;
  meeting.measure(count);
  return meeting.cycles();
}

void miss_team(int count, Clock::time_point begun) {
  if (!borrowed_for(count)) pool().miss_team(count, begun);
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

void Barrier::wait() {
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (waiting_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    waiting_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  wait_until([&] { return round_.load(std::memory_order_acquire) != round; });
}

void Progress::await(std::ptrdiff_t parts) const {
  wait_until([&] { return parts_.load(std::memory_order_acquire) >= parts; });
}

}  // namespace gatedrnn
