// Threads of our own, which wait for calls.
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>

#include "source.h"

namespace gatedrnn {

// One call has the workers at a time. It publishes itself by opening the team's seats; workers take them as they come.
class Pool final : public ThreadSource {
 public:
  const char* name() const override { return "pool"; }
  bool takes(int) const override { return true; }
  bool run(int count, const Patience& patience, TeamFunction function, void* context) override;
  Awake team(int count) const override;
  void miss_team(int count, std::chrono::steady_clock::time_point begun) override;

 private:
  using Clock = std::chrono::steady_clock;

  // Calls that follow one upon the other as fast as this are a stream: workers wait for the next one awake. (Between forward and
  // backward PyTorch takes some 100 microseconds for itself.) Those that come for a call which began without them wait until it
  // must be over.
  static constexpr auto kBusyStream = std::chrono::microseconds(200), kLongestCall = std::chrono::microseconds(800);

  bool hire(int workers);
  void keep_workers_off_this_processor();
  void wake(int workers);
  void serve();
  Stamp await_call(Stamp last);

  Team team_;
  std::atomic<bool> taken_{false};
  std::vector<std::thread> workers_;

  // For whom the workers' processors were chosen, and when.
  int placed_for_processor_ = -1;
  std::thread::id placed_for_thread_;
  Clock::time_point placed_at_;

  std::atomic<int> hired_{0}, sleepers_{0};
  std::atomic<Clock::rep> missed_at_{0};  // when the last call that would have used a team was over
  std::atomic<Clock::duration> stay_{Clock::duration(kBusyStream)};  // how long workers wait for a call awake
  std::mutex mutex_;
  int to_wake_ = 0;
  std::condition_variable wake_;
};

}  // namespace gatedrnn
