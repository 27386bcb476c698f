// A lock for which nobody waits, and which forked children do not find locked for ever.
#pragma once

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace gatedrnn {

// 1, and one more in every forked child than in its parent.
inline std::atomic<unsigned> process_generation{1};

#if defined(__unix__) || defined(__APPLE__)
inline const int generation_counter =
    pthread_atfork(nullptr, nullptr, [] { process_generation.fetch_add(1, std::memory_order_relaxed); });
#endif

// A thread that held it while another one forked does not exist in the child, where the lock is therefore free: what it protects
// may be half changed.
class TryLock {
 public:
  enum class Taken { no, yes, left_by_fork };

  Taken try_lock() {
    const unsigned now = process_generation.load(std::memory_order_relaxed);
    unsigned holder = holder_.load(std::memory_order_relaxed);
    if (holder == now || !holder_.compare_exchange_strong(holder, now, std::memory_order_acquire)) return Taken::no;
    return holder == 0 ? Taken::yes : Taken::left_by_fork;
  }
  void unlock() { holder_.store(0, std::memory_order_release); }

 private:
  std::atomic<unsigned> holder_{0};  // its generation, 0 for nobody
};

}  // namespace gatedrnn
