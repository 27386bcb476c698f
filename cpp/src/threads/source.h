// Where the threads of teams come from.
#pragma once

#include <atomic>

#include "gatedrnn/threads.h"

namespace gatedrnn {

// One call at a time has a source's threads. Nobody waits for them, nor could it: a signal's handler may call in the middle of the
// call that has them.
class OneCall {
 public:
  explicit OneCall(std::atomic<bool>& taken) : taken_(taken), mine_(!taken.exchange(true, std::memory_order_acquire)) {}
  ~OneCall() {
    if (mine_) taken_.store(false, std::memory_order_release);
  }
  OneCall(const OneCall&) = delete;
  OneCall& operator=(const OneCall&) = delete;
  explicit operator bool() const { return mine_; }

 private:
  std::atomic<bool>& taken_;
  const bool mine_;
};

class ThreadSource {
 public:
  ThreadSource() = default;
  virtual ~ThreadSource() = default;
  ThreadSource(const ThreadSource&) = delete;
  ThreadSource& operator=(const ThreadSource&) = delete;

  virtual const char* name() const = 0;
  // Whether it may be asked for teams of so many.
  virtual bool takes(int count) const = 0;
  // As run_team and the functions after it.
  virtual bool run(int count, const Patience& patience, TeamFunction function, void* context) = 0;
  virtual Awake team(int count) const = 0;
  virtual void miss_team(int count, std::chrono::steady_clock::time_point begun) = 0;
};

}  // namespace gatedrnn
