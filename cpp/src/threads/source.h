// Where the threads of teams come from.
#pragma once

#include "gatedrnn/threads.h"

namespace gatedrnn {

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
