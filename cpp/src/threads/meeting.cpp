// How long threads take to meet.
#include <algorithm>
#include <cmath>

#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

using Clock = std::chrono::steady_clock;

// What the meetings of teams of one size took when that was last measured.
class MeasuredMeeting {
 public:
  // Or 0 where it is not known, or no longer.
  double cycles() const {
    const Clock::duration at(at_.load(std::memory_order_acquire));
    return Clock::now().time_since_epoch() - at < kLasts ? cycles_.load(std::memory_order_relaxed) : 0;
  }

  // Where no team comes together nothing is known.
  void measure(int count) {
    // A phase's time in cycles of a server's core, and as much again for the lines that others wrote.
    constexpr double cycles_of_ns = 2 * 3.5;
    // Lines do not get from core to core and back in less: these threads are on one core, and one waits while the other works.
    constexpr double one_core_ns = 45, no_gain = 60000;
    const double ns = phase_ns(count);
    if (ns < 0) return;
    // The same plan for times that are nearly the same.
    const double rounded = std::exp2(std::round(8 * std::log2(cycles_of_ns * std::max(ns, 1.0))) / 8);
    cycles_.store(ns < one_core_ns ? no_gain : rounded, std::memory_order_relaxed);
    at_.store(Clock::now().time_since_epoch().count(), std::memory_order_release);
  }

 private:
  // Of an empty phase; below 0 where no team came together.
  static double phase_ns(int count) {
    constexpr int first_rounds = 2, rounds = 8;
    struct Rounds {
      std::atomic<int> came{0};
      std::chrono::duration<double, std::nano> taken{0};
      void run(Member& member) {
        ++came;
        for (int round = 0; round < first_rounds; ++round) member.phase([](int) {});
        const Clock::time_point start = Clock::now();
        for (int round = 0; round < rounds; ++round) member.phase([](int) {});
        if (member.is_caller()) taken = Clock::now() - start;
      }
    } all;
    const auto run = [](void* self, Member& member) { static_cast<Rounds*>(self)->run(member); };
    const Patience patience{Patience::wait, std::chrono::microseconds(20)};
    return run_team(count, patience, run, &all) && all.came == count ? all.taken.count() / rounds : -1;
  }

  static constexpr auto kLasts = std::chrono::milliseconds(50);
  std::atomic<double> cycles_{0};
  std::atomic<Clock::rep> at_{0};
};

}  // namespace

double meeting_cycles(int count) {
  constexpr int most = 16;  // larger teams' meetings take as long as that of the largest here
  static MeasuredMeeting measured[most];
  count = std::min(count, most);
  MeasuredMeeting& meeting = measured[count - 1];
  if (const double known = meeting.cycles(); known > 0 || team_of(count) == Awake::no) return known;
  meeting.measure(count);
  return meeting.cycles();
}

}  // namespace gatedrnn
