// Threads: how many, a team for the length of one call, and its barrier.
//
// The threads are our own and not OpenMP's: OpenMP's wait by spinning for milliseconds, for which a library cannot set a
// limit of its own, and when the system puts two of them on one processor a call of 0.3 ms takes 12. These wait briefly and
// then let others run, never hold a call up for a thread that does not come, and start anew in a forked child. Where OpenMP's
// spin anyway, because another library uses them, they can be borrowed.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>

namespace gatedrnn {

// The most threads a call may use. The default respects affinity, control-group quota and OMP_NUM_THREADS.
void set_num_threads(int count);
int num_threads();

using TeamFunction = void (*)(void* context, int thread);

enum class Shares {
  independent,  // each can be done by any thread at any time: whoever is free takes the next
  together      // they meet at barriers, so all must be under way at once
};

// Runs function(context, 0 .. count-1), the caller taking part. Returns false, having run nothing, when there is no such team
// now: another call has the threads, the system gives none, or those that have to work together do not come within
// `patience` microseconds.
bool run_team(int count, Shares shares, double patience, TeamFunction function, void* context);

// Calls work(i) for each i below `count`, in any order and on as many threads as pay for reading that many bytes.
template <class Work>
void share_out(std::ptrdiff_t count, std::ptrdiff_t bytes, Work&& work) {
  constexpr std::ptrdiff_t worth_a_thread = 128 << 10;
  struct Parts {
    Work& work;
    std::ptrdiff_t count;
    int threads;
    void run(int thread) const {
      for (std::ptrdiff_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) work(i);
    }
  };
  const auto most = std::min<std::ptrdiff_t>({num_threads(), count, bytes / worth_a_thread});
  Parts parts{work, count, std::max(1, static_cast<int>(most))};
  const auto run = [](void* self, int thread) { static_cast<Parts*>(self)->run(thread); };
  if (parts.threads > 1 && run_team(parts.threads, Shares::independent, 0, run, &parts)) return;
  parts.threads = 1;
  parts.run(0);
}

// An OpenMP runtime: the functions that GNU's has and others provide too.
struct OpenMp {
  void (*parallel)(void (*function)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
  int (*thread_num)();                                                                      // omp_get_thread_num
  int (*num_threads)();                                                                     // omp_get_num_threads
  int (*max_threads)();                                                                     // omp_get_max_threads
};

// From now on teams are of this runtime's threads and not of our own, but for those of more threads than there are processors
// and than the runtime has for others. For a process in which another library (PyTorch) keeps
// them spinning for milliseconds after each of its regions: ours would have to share the processors with them. Forked
// children, where these threads do not exist, go back to threads of our own.
void borrow_threads(const OpenMp& from);

// What the threads of a team are doing. Those that served a moment ago are still awake, and come at once.
enum class Team { asleep, awake };
Team team_of(int count);

// Says that a call, now over, would have used a team of `count`, had it been awake. Where such calls follow one upon the other,
// as the steps of a busy stream do, the team wakes up for the next one. Borrowed threads are left alone.
void miss_team(int count, std::chrono::steady_clock::time_point begun);

// Processor cycles until what one thread of an awake team of `count` has written is what the others work on. Measured on the spot,
// but not again for a while; 0 where no such team is awake. Virtual processors move: on one machine it was 700 at most times, and
// for seconds 2600.
double meeting_cycles(int count);
constexpr double kUsualMeetingCycles = 1800, kLeastMeetingCycles = 700;

// Tells the processor that this thread waits for another.
void relax();

// Waits for everybody, spinning: steps are microseconds apart. After a while it lets others run, since the threads may share
// a processor.
class Barrier {
 public:
  explicit Barrier(int count = 1) : count_(count) {}
  void reset(int count) {
    count_ = count;
    waiting_.store(0, std::memory_order_relaxed);
  }
  void wait();

 private:
  int count_;
  alignas(64) std::atomic<int> waiting_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

// How many parts of its work a thread has done, for others who wait for that.
class Progress {
 public:
  void advance_to(std::ptrdiff_t parts) { parts_.store(parts, std::memory_order_release); }
  // Waits as a barrier does.
  void await(std::ptrdiff_t parts) const;

 private:
  alignas(64) std::atomic<std::ptrdiff_t> parts_{0};
};

}  // namespace gatedrnn
