// One thread at a time: a second one is told, not made to wait.
#pragma once

#include <atomic>
#include <stdexcept>

namespace gatedrnn::bindings {

class StreamInUse {
 public:
  explicit StreamInUse(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire))
      throw std::runtime_error("stream: in use by another thread; give each thread a stream of its own");
  }
  ~StreamInUse() { busy_.store(false, std::memory_order_release); }
  StreamInUse(const StreamInUse&) = delete;
  StreamInUse& operator=(const StreamInUse&) = delete;

 private:
  std::atomic<bool>& busy_;
};

}  // namespace gatedrnn::bindings
