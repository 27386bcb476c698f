// Teams, their phases, and the floating-point mode. With the argument "one": that OMP_NUM_THREADS=1 is respected; with "borrowed":
// teams of the threads of another runtime.
#include <dirent.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "gatedrnn/dispatch.h"
#include "gatedrnn/flush_denormals.h"
#include "gatedrnn/processors.h"
#include "gatedrnn/threads.h"
#include "gatedrnn/workspace.h"
#include "networks.h"

namespace gatedrnn::test {
namespace {

constexpr Patience kPatient{Patience::wait, std::chrono::minutes(1)};
constexpr Patience kEager{Patience::take_at_once};

// Runs `work(member)` on a team.
template <class Work>
bool run_on_team(int count, const Patience& patience, Work&& work) {
  return run_team(
      count, patience, [](void* self, Member& member) { (*static_cast<std::remove_reference_t<Work>*>(self))(member); },
      &work);
}

// Each share publishes its phase in plain memory; after the phase everybody has to see everybody's, each done once.
struct Phases {
  struct alignas(64) Slot {
    int phase = 0;
  };
  std::vector<Slot> slots;
  std::atomic<long> mistakes{0}, shares{0};

  explicit Phases(int count) : slots(count) {}

  void run(Member& member, int phases) {
    for (int phase = 1; phase <= phases; ++phase) {
      member.phase([&](int share) {
        mistakes += slots[share].phase != phase - 1;  // nobody did it before, nobody left the one before out
        slots[share].phase = phase;
        ++shares;
      });
      for (const Slot& slot : slots) mistakes += slot.phase != phase;
      member.phase([](int) {});  // nobody goes on before all have looked
    }
  }

  void check(int phases) {
    CHECK_EQUAL(0L, mistakes.load());
    CHECK_EQUAL(static_cast<long>(slots.size()) * phases, shares.load());
  }
};

void check_phases(int count, int phases) {
  Phases all(count);
  CHECK(run_on_team(count, kPatient, [&](Member& member) { all.run(member, phases); }));
  all.check(phases);
}

struct Job {
  std::vector<std::atomic<int>> calls = std::vector<std::atomic<int>>(16);
  int count = 0;
  std::atomic<int> arrived{0};

  // Every share once if it ran, none if it did not.
  void check(bool ran) {
    for (int i = 0; i < 16; ++i) CHECK_EQUAL(ran && i < count ? 1 : 0, calls[i].load());
  }

  static void share(void* context, Member& member) {
    member.phase([context](int i) { ++static_cast<Job*>(context)->calls[i]; });
  }

  // Ends only if all shares are under way at once.
  static void meeting_share(void* context, Member& member) {
    Job& job = *static_cast<Job*>(context);
    member.phase([&](int i) {
      ++job.calls[i];
      ++job.arrived;
      while (job.arrived < job.count) std::this_thread::yield();
    });
  }
};

void check_team(int count) {
  Job apart, together;
  apart.count = together.count = count;
  CHECK(run_team(count, kEager, Job::share, &apart));
  apart.check(true);
  CHECK(run_team(count, kPatient, Job::meeting_share, &together));
  together.check(true);
}

// ---- Threads that do not come -----------------------------------------------------------------------------------------------

// A thread that never takes its seat: the others do its shares, from the first one that is waited for on. Whoever comes late is out.
void check_absent_thread() {
  struct Work {
    Phases all{3};
    static void run(void* self, Member& member) { static_cast<Work*>(self)->all.run(member, 50); }
  } work;
  Team team;
  Member caller = team.open(3, {Patience::wait, std::chrono::microseconds(200)}, Work::run, &work);
  const Stamp call = team.published();
  std::thread helper([&] { team.help(call); });  // on a busy machine it may be late, or lose its seat on the way
  Work::run(&work, caller);
  team.close();
  helper.join();
  work.all.check(50);
  CHECK(!team.help(call));
  CHECK(!team.help(call, 1));
  CHECK(!team.help(call, 2));
}

// Where the call ends in the middle, its threads leave it, wherever they wait.
void check_ended_call() {
  for (int i = 0; i < 200; ++i) {
    bool caught = false;
    std::atomic<long> after{0};
    try {
      run_on_team(3, kPatient, [&](Member& member) {
        for (int phase = 0; phase < i % 7; ++phase) member.phase([](int) {});
        if (member.is_caller()) throw std::runtime_error("the end");
        member.phase([](int) {});
        ++after;  // nobody gets here: the caller's share is never done
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    CHECK(caught);
    CHECK_EQUAL(0L, after.load());
  }
  check_team(3);
}

// Puts all threads of the process but the one that makes calls, and itself, to sleep again and again, in the middle of whatever they
// are doing, as a system does that has other work.
class BusySystem {
 public:
  BusySystem() : caller_(tid()) {
    struct sigaction action{};
    action.sa_handler = [](int) {
      const timespec slice{0, 2000000};
      nanosleep(&slice, nullptr);
    };
    action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, nullptr);
    thread_ = std::thread([this] { disturb(); });
  }
  ~BusySystem() {
    done_ = true;
    thread_.join();
  }

 private:
  static pid_t tid() { return static_cast<pid_t>(syscall(SYS_gettid)); }

  void disturb() {
    std::mt19937 random(7);
    const pid_t self = tid();
    while (!done_) {
      DIR* tasks = opendir("/proc/self/task");
      while (const dirent* entry = readdir(tasks)) {
        const pid_t task = std::atoi(entry->d_name);
        if (task > 0 && task != caller_ && task != self && random() % 2) syscall(SYS_tgkill, getpid(), task, SIGUSR1);
      }
      closedir(tasks);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    }
  }

  const pid_t caller_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

// Every share of every phase is done once, by whomever, and nothing is written late. Memory of calls goes at once.
void check_sleepy_threads() {
  const BusySystem busy;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  for (int i = 0; std::chrono::steady_clock::now() < end; ++i) {
    const int count = 2 + i % 3, phases = 1 + i * 37 % 400;
    const auto all = std::make_unique<Phases>(count);
    const Patience patience{i % 2 ? Patience::wait : Patience::take_at_once, std::chrono::microseconds(i % 5 * 50)};
    CHECK(run_on_team(count, patience, [run = all.get(), phases](Member& member) { run->run(member, phases); }));
    all->check(phases);
  }
}

// Until losses of before are forgotten.
void forget_losses() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (useful_threads(2) == 1 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK_EQUAL(2, useful_threads(2));
}

// A team that has lost a thread for long is smaller for a while.
void check_small_teams_after_a_loss() {
  CHECK_EQUAL(1, useful_threads(1));
  Team team;
  Member caller = team.open(2, {Patience::wait, std::chrono::milliseconds(50)}, nullptr, nullptr);
  caller.phase([](int) {});
  team.close();
  CHECK_EQUAL(1, useful_threads(2));
  forget_losses();
}

// As many threads as the other calls leave processors.
void check_threads_beside_calls() {
  const int before = num_threads(), processors = usable_processors();
  set_num_threads(processors);
  forget_losses();
  std::vector<std::unique_ptr<CallUnderWay>> calls;
  for (int count = 1; count <= processors + 2; ++count) {
    calls.push_back(std::make_unique<CallUnderWay>());
    CHECK_EQUAL(std::max(1, processors - (count - 1)), useful_threads(processors));
  }
  calls.clear();
  set_num_threads(before);
}

// Each piece once, whatever their number and that of the threads; several threads only for much.
void check_share_out() {
  const int before = num_threads();
  for (const int threads : {1, 2, 3, 5})
    for (const int count : {0, 1, 2, 7, 100})
      for (const std::ptrdiff_t bytes : {0, 1 << 30}) {
        set_num_threads(threads);
        std::vector<std::atomic<int>> calls(count);
        std::atomic<int> by_others{0};
        const auto caller = std::this_thread::get_id();
        share_out(count, bytes, [&](std::ptrdiff_t i) {
          ++calls[i];
          by_others += std::this_thread::get_id() != caller;
        });
        for (const std::atomic<int>& times : calls) CHECK_EQUAL(1, times.load());
        if (bytes == 0 || threads == 1) CHECK_EQUAL(0, by_others.load());
      }
  // Somebody else does come: the first piece waits for the second.
  set_num_threads(2);
  std::atomic<int> arrived{0};
  std::atomic<long> met{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  share_out(2, 1 << 30, [&](std::ptrdiff_t) {
    ++arrived;
    while (arrived < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    met += arrived == 2;
  });
  CHECK_EQUAL(2L, met.load());
  set_num_threads(before);
}

// Several callers at once: each call runs whole or not at all, and at least one of them gets the threads.
void check_teams_at_once() {
  std::atomic<long> ran{0}, mistakes{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 500; ++i) {
        Job job;
        job.count = 2 + i % 3;
        const bool complete = run_team(job.count, (i + caller) % 2 ? kEager : kPatient, Job::share, &job);
        ran += complete;
        for (int s = 0; s < 16; ++s) mistakes += job.calls[s] != (complete && s < job.count ? 1 : 0);
      }
    });
  for (std::thread& caller : callers) caller.join();
  CHECK_EQUAL(0L, mistakes.load());
  CHECK(ran > 0);
}

// Does the team get into this state when such calls go on?
template <class Call>
bool comes_to(Awake state, Call&& call) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (std::chrono::steady_clock::now() < end) {
    call();
    if (team_of(2) == state) return true;
  }
  return false;
}

// Workers fall asleep without calls, are not woken by calls that come seldom, and are woken by calls that follow each other.
void check_waking() {
  CHECK(team_of(1) == Awake::no);
  const auto nothing = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  const auto seldom = [&] {
    nothing();
    miss_team(2, std::chrono::steady_clock::now());
  };
  CHECK(comes_to(Awake::no, nothing));
  for (int i = 0; i < 3; ++i) {
    seldom();
    CHECK(team_of(2) == Awake::no);
  }
  CHECK(comes_to(Awake::yes, [] { miss_team(2, std::chrono::steady_clock::now()); }));
  CHECK(comes_to(Awake::no, nothing));
}

// Measured when a team is awake, and then known for a while.
void check_meetings() {
  const auto nothing = [] { std::this_thread::sleep_for(std::chrono::milliseconds(5)); };
  const auto forgotten = [] { std::this_thread::sleep_for(std::chrono::milliseconds(60)); };
  CHECK(comes_to(Awake::no, nothing));
  forgotten();
  CHECK_EQUAL(0.0, meeting_cycles(2));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  double cycles = 0;
  while (cycles == 0 && std::chrono::steady_clock::now() < end) {
    miss_team(2, std::chrono::steady_clock::now());
    cycles = meeting_cycles(2);
  }
  CHECK(cycles > 0);
  // A process that was stopped for longer than a measure lasts has to measure again.
  bool same = false;
  while (!same && std::chrono::steady_clock::now() < end) same = meeting_cycles(2) == meeting_cycles(2);
  CHECK(same);
  CHECK(comes_to(Awake::no, nothing));
  forgotten();
  CHECK_EQUAL(0.0, meeting_cycles(2));
}

// A measure that failed, since another call has the threads, is not taken for one.
void check_failed_measure() {
  std::this_thread::sleep_for(std::chrono::milliseconds(60));  // what was measured is forgotten
  std::atomic<bool> taken{false}, released{false};
  std::thread other([&] {
    CHECK(run_on_team(2, kPatient, [&](Member& member) {
      member.phase([](int) {});
      taken = true;
      while (!released) std::this_thread::yield();
    }));
  });
  while (!taken) std::this_thread::yield();
  CHECK(team_of(2) == Awake::yes);
  CHECK_EQUAL(0.0, meeting_cycles(2));
  released = true;
  other.join();
}

void check_thread_setting() {
  const int before = num_threads();
  CHECK(before >= 1);
  CHECK(before <= usable_processors());
  set_num_threads(5);
  CHECK_EQUAL(5, num_threads());
  set_num_threads(before);
}

// ---- Denormals --------------------------------------------------------------------------------------------------------------

// Are denormals both made and read?
bool denormals_live() {
  volatile float smallest = std::numeric_limits<float>::min(), half = 0.5f, grow = 1e30f;
  volatile float made = smallest * half;
  volatile float denormal = std::numeric_limits<float>::denorm_min();
  volatile float read = denormal * grow;
  return made > 0.0f && read > 0.0f;
}

// Is neither?
bool denormals_flushed() {
  volatile float smallest = std::numeric_limits<float>::min(), half = 0.5f, grow = 1e30f;
  volatile float made = smallest * half;
  volatile float denormal = std::numeric_limits<float>::denorm_min();
  volatile float read = denormal * grow;
  return made == 0.0f && read == 0.0f;
}

void check_flush_denormals() {
  CHECK(denormals_live());
  {
    const FlushDenormals outer;
    CHECK(denormals_flushed());
    {
      const FlushDenormals inner;
      CHECK(denormals_flushed());
    }
    CHECK(denormals_flushed());  // as it was before the inner one
  }
  CHECK(denormals_live());

  CHECK_EQUAL(0, std::fesetround(FE_UPWARD));
  {
    const FlushDenormals flush;
    CHECK_EQUAL(FE_UPWARD, std::fegetround());
  }
  CHECK_EQUAL(FE_UPWARD, std::fegetround());
  CHECK_EQUAL(0, std::fesetround(FE_TONEAREST));
}

// A call leaves every thread's mode as it was, and runs in its own.
void check_mode_after_run() {
  const Problem<float> problem(all_cells()[0], {9, 67, 4, 6, 1, 1});
  const Network<float> network(problem.spec, problem.parameters, *available_tables().back());
  Workspace workspace;
  Results<float> results;
  const Sequence<float> sequence = problem.sequence(results);
  for (const int threads : {1, 2, 3}) {
    CHECK(network.forward(sequence, workspace, nullptr,
                          Plan{1, 1, 1, threads, 6, 2e12}));  // cycles: it waits for its threads
    CHECK(denormals_live());
    std::atomic<int> live{0};
    CHECK(
        run_on_team(threads, kPatient, [&](Member& member) { member.phase([&](int) { live += denormals_live(); }); }));
    CHECK_EQUAL(threads, live.load());
  }
}

// ---- fork ---------------------------------------------------------------------------------------------------------------------

// What a call needs of memory.
struct Room {
  Workspace workspace;
  Results<float> results;
};

struct Child {
  const Network<float>& network;
  const Problem<float>& problem;
  const Results<float>& expected;

  bool right(const Plan& plan) const {
    Room room;
    return right(plan, room);
  }

  bool right(const Plan& plan, Room& room) const {
    return network.forward(problem.sequence(room.results), room.workspace, nullptr, plan) &&
           expected.difference(room.results).empty();
  }

  // One thread, several, and a child of its own. 0, or which of them went wrong.
  int run(int generation) const {
    alarm(120);  // instead of hanging
    if (!right({1, 1, 1, 1, 6, 0})) return 1;
    if (!right({1, 1, 1, 2, 6, 2e12}) || !right({1, 1, 2, 1, 3, 0})) return 2;
    return generation > 0 && fork_and_run(generation - 1) != 0 ? 3 : 0;
  }

  // The child's status; -1 where it did not end by itself.
  int fork_and_run(int generation) const {
    const pid_t child = fork();
    if (child == 0) _exit(run(generation));
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return -1;
    return WEXITSTATUS(status);
  }
};

// A child has none of the parent's threads, whatever these were doing, and has to compute all the same, with threads again.
void check_fork() {
  const Problem<float> problem(all_cells()[0], {17, 129, 20, 6, 1, 1});
  const Network<float> network(problem.spec, problem.parameters, *available_tables().back());
  const Results<float> expected = [&] {
    Results<float> results;
    Workspace workspace;
    CHECK(network.forward(problem.sequence(results), workspace, nullptr, Plan{1, 1, 1, 1, 6, 0}));
    return results;
  }();
  const Child child{network, problem, expected};
  CHECK(child.right({1, 1, 1, 2, 6, 2e12}));  // there are threads
  CHECK_EQUAL(0, child.fork_and_run(1));
  CHECK(child.right({1, 1, 1, 2, 6, 2e12}));  // the parent goes on as before

  std::atomic<bool> done{false};
  std::atomic<long> wrong{0};
  const Plan by_rows{1, 1, 2, 1, 3, 0};
  Room room;  // the busy thread allocates nothing: AddressSanitizer's allocator may not be forked with its locks held
  CHECK(child.right(by_rows, room));
  std::thread busy([&] {  // forks come in the middle of its calls
    while (!done) wrong += !child.right(by_rows, room);
  });
  for (int i = 0; i < 10; ++i) CHECK_EQUAL(0, child.fork_and_run(0));
  done = true;
  busy.join();
  CHECK_EQUAL(0L, wrong.load());
}

// A runtime like OpenMP's, whose threads are new in each region. Within a region it gives one thread, as OpenMP does.
namespace lender {
thread_local int this_thread = 0, threads_here = 1;
std::atomic<long> regions{0};
std::atomic<unsigned> asked{0}, limit{100};
constexpr int kMost = 3;

void enter(void (*function)(void*), void* data, int thread, int threads) {
  const int outer_thread = this_thread, outer_threads = threads_here;
  this_thread = thread;
  threads_here = threads;
  function(data);
  this_thread = outer_thread;
  threads_here = outer_threads;
}

void parallel(void (*function)(void*), void* data, unsigned threads, unsigned) {
  ++regions;
  asked = threads;
  const int count = threads_here > 1 ? 1 : static_cast<int>(std::min<unsigned>(threads, limit));
  std::vector<std::thread> others;
  for (int thread = 1; thread < count; ++thread) others.emplace_back(enter, function, data, thread, count);
  enter(function, data, 0, count);
  for (std::thread& other : others) other.join();
}

int thread_num() { return this_thread; }
int num_threads() { return threads_here; }
int max_threads() { return kMost; }
}  // namespace lender

void check_borrowed_threads() {
  borrow_threads({lender::parallel, lender::thread_num, lender::num_threads, lender::max_threads});
  // More than the runtime would start for others are our own.
  const int most = std::max(usable_processors(), lender::kMost);
  for (int count = most + 2; count >= 1; --count) {
    const bool lent = count <= most;
    const long before = lender::regions;
    check_team(count);
    CHECK_EQUAL(before + (lent ? 2 : 0), lender::regions.load());
    CHECK_EQUAL(lent ? static_cast<unsigned>(std::max(count, lender::kMost)) : 0u, lender::asked.load());
  }
  CHECK(team_of(2) == Awake::yes);
  CHECK(team_of(1) == Awake::no);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(team_of(2) == Awake::no);
  miss_team(2, std::chrono::steady_clock::now());

  // Where the runtime gives fewer threads nothing runs.
  Job refused;
  refused.count = 3;
  lender::limit = 2;
  CHECK(!run_team(3, kPatient, Job::meeting_share, &refused));
  refused.check(false);
  lender::limit = 100;
  struct Within {
    Job job;
    bool ran = true;
  } within;
  lender::parallel(
      [](void* self) {
        Within& w = *static_cast<Within*>(self);
        if (lender::thread_num() == 0) w.ran = run_team(2, kPatient, Job::meeting_share, &w.job);
      },
      &within, 2, 0);
  CHECK(!within.ran);
  within.job.check(false);

  check_teams_at_once();
  check_fork();
  // A forked child has threads of its own.
  const long before = lender::regions;
  const pid_t child = fork();
  if (child == 0) {
    Job job;
    job.count = 2;
    const bool ran = run_team(2, kPatient, Job::meeting_share, &job);
    _exit(ran && lender::regions == before ? 0 : 1);
  }
  int status = -1;
  CHECK_EQUAL(child, waitpid(child, &status, 0));
  CHECK_EQUAL(0, status);
}

}  // namespace
}  // namespace gatedrnn::test

int main(int argc, char** argv) {
  using namespace gatedrnn;
  using namespace gatedrnn::test;
  if (argc == 2 && std::string(argv[1]) == "one") {
    CHECK_EQUAL(1, num_threads());
    return finish("test_threads one");
  }
  if (argc == 2 && std::string(argv[1]) == "borrowed") {
    check_borrowed_threads();
    return finish("test_threads borrowed");
  }
  check_thread_setting();
  check_phases(1, 1000);
  check_phases(2, 20000);
  check_phases(3, 3000);
  check_phases(4, 3000);
  for (int count = 1; count <= 6; ++count) check_team(count);
  check_share_out();
  check_absent_thread();
  check_ended_call();
  check_teams_at_once();
  check_waking();
  check_meetings();
  check_failed_measure();
  check_flush_denormals();
  check_mode_after_run();
  check_fork();
  check_sleepy_threads();
  check_small_teams_after_a_loss();
  check_threads_beside_calls();
  return finish("test_threads");
}
