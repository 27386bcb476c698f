// Threads of an OpenMP runtime.
#pragma once

#include "source.h"

namespace gatedrnn {

class OpenMpThreads final : public ThreadSource {
 public:
  explicit OpenMpThreads(const OpenMp& runtime) : runtime_(runtime) {}

  const char* name() const override { return "openmp"; }
  // Not more than the runtime would start for others: where the system gives it none, it ends the process.
  bool takes(int count) const override;
  bool run(int count, const Patience& patience, TeamFunction function, void* context) override;
  Awake team(int count) const override;
  void miss_team(int, std::chrono::steady_clock::time_point) override {}

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr auto kSpinning = std::chrono::milliseconds(1);  // the least that runtimes do by default

  struct Region;

  const OpenMp runtime_;
  std::atomic<bool> taken_{false};
  Team team_;
  std::atomic<Clock::rep> ended_at_{0};
};

#if defined(GATEDRNN_OPENMP)
// The runtime that this build is linked with.
OpenMp linked_openmp();
#endif

}  // namespace gatedrnn
