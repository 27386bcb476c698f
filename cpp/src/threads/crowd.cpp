#include "crowd.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "gatedrnn/processors.h"
#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

using Clock = std::chrono::steady_clock;

// Time that calls have lost waiting is forgotten at this rate: as much as they may lose before they are better off with a thread less.
// Also where nobody is beside, a virtual machine's processors stop for some tenths of a millisecond now and then, which is a
// hundredth of the time.
constexpr int kForgottenIn = 16;  // times as long
// Teams are small from so much lost time on (a time slice or two), until so little is left.
constexpr Clock::duration kMost = std::chrono::milliseconds(4), kLittle = std::chrono::milliseconds(1);

std::atomic<int> calls{0};
std::atomic<int> most_threads{std::numeric_limits<int>::max()};
std::atomic<Clock::rep> lost_time{0}, lost_at{0}, small_until{0};

}  // namespace

// Of several that come at once one may be lost.
void note_lost_thread(int count, Clock::duration waited) {
  const Clock::rep now = Clock::now().time_since_epoch().count();
  const Clock::rep forgotten = (now - lost_at.exchange(now, std::memory_order_relaxed)) / kForgottenIn;
  const Clock::rep lost =
      std::max<Clock::rep>(0, lost_time.load(std::memory_order_relaxed) - forgotten) + waited.count();
  lost_time.store(lost, std::memory_order_relaxed);
  if (lost < kMost.count()) return;
  most_threads.store(std::max(1, count - 1), std::memory_order_relaxed);
  small_until.store(now + (lost - kLittle.count()) * kForgottenIn, std::memory_order_relaxed);
}

int useful_threads(int wanted) {
  static const int processors = usable_processors();
  const int others = std::max(0, calls.load(std::memory_order_relaxed) - 1);
  if (others > 0) wanted = std::max(1, std::min(wanted, std::max(processors, num_threads()) - others));
  if (Clock::rep until = small_until.load(std::memory_order_relaxed); until > 0) {
    if (Clock::now().time_since_epoch().count() < until)
      return std::min(wanted, most_threads.load(std::memory_order_relaxed));
    small_until.compare_exchange_strong(until, 0, std::memory_order_relaxed);  // so that the next calls need no clock
  }
  return wanted;
}

void forget_other_calls() { calls.store(0, std::memory_order_relaxed); }

CallUnderWay::CallUnderWay() { calls.fetch_add(1, std::memory_order_relaxed); }
CallUnderWay::~CallUnderWay() { calls.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace gatedrnn
