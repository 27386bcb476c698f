#include "crowd.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>

#include "gatedrnn/machine.h"
#include "gatedrnn/threads.h"

namespace gatedrnn {
namespace {

using Clock = std::chrono::steady_clock;

// How long teams stay small after a thread was lost: at first, some times what a loss costs, a time slice, and at most, where it happens
// again and again.
constexpr Clock::duration kShortest = std::chrono::milliseconds(10), kLongest = std::chrono::seconds(2);

std::atomic<int> calls{0};
std::atomic<int> most_threads{std::numeric_limits<int>::max()};
std::atomic<Clock::rep> small_until{0};
std::atomic<Clock::rep> small_for{0};

}  // namespace

void note_lost_thread(int count) {
  const Clock::rep now = Clock::now().time_since_epoch().count(), last = small_for.load(std::memory_order_relaxed);
  const Clock::rep well_for = now - small_until.load(std::memory_order_relaxed);
  const Clock::rep next = well_for < last ? 2 * last : well_for < 4 * last ? last : kShortest.count();
  const Clock::rep longer = std::clamp<Clock::rep>(next, kShortest.count(), kLongest.count());
  small_for.store(longer, std::memory_order_relaxed);
  most_threads.store(std::max(1, count - 1), std::memory_order_relaxed);
  small_until.store(now + longer, std::memory_order_relaxed);
}

int useful_threads(int wanted) {
  static const int processors = usable_processors();
  const int others = std::max(0, calls.load(std::memory_order_relaxed) - 1);
  if (others > 0) wanted = std::max(1, std::min(wanted, std::max(processors, num_threads()) - others));
  if (const Clock::rep until = small_until.load(std::memory_order_relaxed); until > 0) {
    if (Clock::now().time_since_epoch().count() < until)
      return std::min(wanted, most_threads.load(std::memory_order_relaxed));
  }
  return wanted;
}

void forget_other_calls() { calls.store(0, std::memory_order_relaxed); }

CallUnderWay::CallUnderWay() { calls.fetch_add(1, std::memory_order_relaxed); }
CallUnderWay::~CallUnderWay() { calls.fetch_sub(1, std::memory_order_relaxed); }

}  // namespace gatedrnn
