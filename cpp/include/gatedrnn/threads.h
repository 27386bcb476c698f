// Threads: how many a call may use, and where they come from. How those of one call work together stands in team.h.
//
// They come from our own pool, unless an OpenMP runtime lends its own: the one that another library brought into the process, or
// the one that this build was linked with. OpenMP's threads wait for their next region by spinning for milliseconds, for which a
// library cannot set a limit of its own; the pool's wait briefly, and start anew in a forked child.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>

#include "gatedrnn/team.h"

namespace gatedrnn {

// The most threads a call may use, in the whole process. The default respects affinity, control-group quota and OMP_NUM_THREADS.
void set_num_threads(int count);
// The most that a call made by this thread may use.
int num_threads();
// From now on calls made by this thread may use so many; 0: as many as the process.
void limit_this_thread(int count);

// Runs function(context, member) for each of up to `count` threads, the caller taking part. They share their work by phases. Returns
// false, having run nothing, when another call has the threads or the system gives none. What the caller's function throws comes out
// of here.
bool run_team(int count, const Patience& patience, TeamFunction function, void* context);

// Calls work(i) for each i below `count`, in any order and on as many threads as pay for reading that many bytes.
template <class Work>
void share_out(std::ptrdiff_t count, std::ptrdiff_t bytes, Work&& work) {
  constexpr std::ptrdiff_t worth_a_thread = 128 << 10;
  struct Parts {
    Work& work;
    std::ptrdiff_t count;
    int threads;
    void run(int part) const {
      for (std::ptrdiff_t i = count * part / threads; i < count * (part + 1) / threads; ++i) work(i);
    }
  };
  const auto most = std::min<std::ptrdiff_t>({num_threads(), count, bytes / worth_a_thread});
  Parts parts{work, count, std::max(1, static_cast<int>(most))};
  const auto run = [](void* self, Member& member) {
    member.phase([self](int part) { static_cast<Parts*>(self)->run(part); });
  };
  if (parts.threads > 1 && run_team(parts.threads, {Patience::take_at_once}, run, &parts)) return;
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

// From now on teams are of this runtime's threads and not of our own, but for those of more threads than there are processors and
// than the runtime has for others. For a process in which another library (PyTorch) keeps them spinning for milliseconds after
// each of its regions: ours would have to share the processors with them. Forked children, where these threads do not exist, go
// back to threads of our own.
void borrow_threads(const OpenMp& from);

// Where teams of two come from now: "pool", or "openmp".
const char* thread_source();

// What the threads of a team are doing. Those that served a moment ago are still awake, and come at once.
enum class Awake { no, yes };
Awake team_of(int count);

// Says that a call, now over, would have used a team of `count`, had it been awake. Where such calls follow one upon the other,
// as the steps of a busy stream do, the team wakes up for the next one. Threads of an OpenMP runtime are left alone.
void miss_team(int count, std::chrono::steady_clock::time_point begun);

// How many threads may be of use just now: fewer than the processors while other calls are under way, and for a while after a team
// has lost one of its threads to somebody else's work.
int useful_threads(int wanted);

// A call is under way while an instance lives.
class CallUnderWay {
 public:
  CallUnderWay();
  ~CallUnderWay();
  CallUnderWay(const CallUnderWay&) = delete;
  CallUnderWay& operator=(const CallUnderWay&) = delete;
};

// Processor cycles until what one thread of an awake team of `count` has written is what the others work on. Measured on the spot,
// but not again for a while; 0 where no such team is awake. Virtual processors move: on one machine it was 700 at most times, and
// for seconds 2600.
double meeting_cycles(int count);
constexpr double kUsualMeetingCycles = 1800, kLeastMeetingCycles = 700;

}  // namespace gatedrnn
