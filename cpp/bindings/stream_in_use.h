// One thread at a time: a second one is told, not made to wait.
#pragma once

#include <stdexcept>

#include "gatedrnn/try_lock.h"

namespace gatedrnn::bindings {

class StreamInUse {
 public:
  explicit StreamInUse(TryLock& lock) : lock_(lock), taken_(lock.try_lock()) {
    if (taken_ == TryLock::Taken::no)
      throw std::runtime_error("stream: in use by another thread; give each thread a stream of its own");
  }
  ~StreamInUse() { lock_.unlock(); }
  StreamInUse(const StreamInUse&) = delete;
  StreamInUse& operator=(const StreamInUse&) = delete;

  // Whether a step was under way in another thread when this process was forked.
  bool interrupted() const { return taken_ == TryLock::Taken::left_by_fork; }

 private:
  TryLock& lock_;
  const TryLock::Taken taken_;
};

}  // namespace gatedrnn::bindings
