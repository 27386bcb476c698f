#include "gatedrnn/team.h"

#include <chrono>

#include "crowd.h"
#include "waiting.h"

namespace gatedrnn {

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// ---- Member --------------------------------------------------------------------------------------------------------------

void Member::run_phase(const Shares& shares) {
  ++phase_;
  shares(thread_);
  if (holds_others_) do_held(shares);
  if (parts_from_ >= 0) part(shares);
  finish(thread_);
  for (int i = 0; i < count_; ++i)
    while (!is_done(i))
      if (await(i)) do_held(shares);
}

void Member::do_held(const Shares& shares) {
  for (int i = 0; i < count_; ++i)
    if (i != thread_ && holder_of(i) == thread_ && !is_done(i)) {
      shares(i);
      finish(i);
    }
}

void Member::part(const Shares& shares) {
  if (await_rest(parts_from_)) do_held(shares);
  parts_from_ = -1;
}

// From here to `resume` the thread may lose its seat. The caller never does: it is its call.
void Member::rest() {
  if (!is_caller()) seats_[thread_].state.store(call_ | Seat::waiting, std::memory_order_release);
}

void Member::resume() {
  Stamp expected = call_ | Seat::waiting;
  if (!is_caller() &&
      !seats_[thread_].state.compare_exchange_strong(expected, call_ | Seat::active, std::memory_order_acq_rel))
    throw LeftTeam();
}

bool Member::await(int share) {
  using Clock = std::chrono::steady_clock;
  Clock::time_point begun;
  Clock::duration waited{0};
  bool taken = false;
  rest();
  for (int spins = 0; !is_done(share); ++spins) {
    if (spins < kSpins && patience_.late == Patience::wait) {
      relax();
      continue;
    }
    const Clock::time_point now = Clock::now();
    if (begun == Clock::time_point()) begun = now;
    waited = now - begun;
    if (waited > patience_.lost_after || patience_.late == Patience::take_at_once) {
      resume();
      taken = take_over(holder_of(share));
      if (!taken) rest();  // it was put to sleep in the middle of its share
    }
    if (taken) break;
    std::this_thread::yield();
    if (has_left()) throw LeftTeam();
  }
  if (!taken) resume();
  if (waited <= patience_.lost_after) return taken;
  note_lost_thread(count_, waited);
  if (!taken && is_caller()) parts_from_ = holder_of(share);
  return taken;
}

bool Member::await_rest(int thread) {
  bool taken = false;
  wait_until([&] {
    taken = take_over(thread);
    return taken || seats_[thread].state.load(std::memory_order_acquire) == (call_ | Seat::left);
  });
  return taken;
}

// The thread has to be at rest, or not to have come at all. All that it held goes along.
bool Member::take_over(int thread) {
  Stamp state = seats_[thread].state.load(std::memory_order_acquire);
  if (state != (call_ | Seat::waiting) && state != (call_ | Seat::absent)) return false;
  if (!seats_[thread].state.compare_exchange_strong(state, call_ | Seat::left, std::memory_order_acq_rel)) return false;
  for (int i = 0; i < count_; ++i)
    if (seats_[i].holder.load(std::memory_order_relaxed) == thread)
      seats_[i].holder.store(thread_, std::memory_order_relaxed);
  return holds_others_ = true;
}

// ---- Team ----------------------------------------------------------------------------------------------------------------

Member Team::open(int count, const Patience& patience, TeamFunction function, void* context) {
  if (count > most_) {
    memory_.push_back(std::make_unique<Seat[]>(count));
    most_ = count;
    seats_.store(memory_.back().get(), std::memory_order_release);
  }
  call_ += Stamp(1) << kPhaseBits;
  patience_ = patience;
  function_ = function;
  context_ = context;
  count_.store(count, std::memory_order_relaxed);
  Seat* const seats = seats_.load(std::memory_order_relaxed);
  for (int i = 0; i < count; ++i) {
    seats[i].holder.store(i, std::memory_order_relaxed);
    seats[i].done.store(call_, std::memory_order_relaxed);
    seats[i].state.store(call_ | (i == 0 ? Seat::active : Seat::absent), std::memory_order_release);
  }
  published_.store(call_);
  return member(0);
}

// Those who are awake are about to leave; to throw them out would take longer.
void Team::close() {
  Seat* const seats = seats_.load(std::memory_order_relaxed);
  for (int i = 1; i < count_.load(std::memory_order_relaxed); ++i) {
    int looks = 0;
    wait_until([&] {
      Stamp state = seats[i].state.load(std::memory_order_acquire);
      if (state == (call_ | Seat::left)) return true;
      if (state == (call_ | Seat::active) || (state == (call_ | Seat::waiting) && ++looks < kSpins)) return false;
      return seats[i].state.compare_exchange_strong(state, call_ | Seat::left, std::memory_order_acq_rel);
    });
  }
}

bool Team::help(Stamp call) {
  const int count = count_.load(std::memory_order_relaxed);
  for (int thread = 1; thread < count; ++thread)
    if (help(call, thread)) return true;
  return false;
}

// Whoever has a seat may read what the call consists of, since the call waits for all who have one.
bool Team::help(Stamp call, int thread) {
  Stamp expected = call | Seat::absent;
  if (!seats_.load(std::memory_order_acquire)[thread].state.compare_exchange_strong(expected, call | Seat::active,
                                                                                    std::memory_order_acq_rel))
    return false;
  Member member = this->member(thread);
  try {
    function_(context_, member);
  } catch (const LeftTeam&) {
  }
  member.leave();
  return true;
}

Member Team::member(int thread) const {
  return {seats_.load(std::memory_order_relaxed), count_.load(std::memory_order_relaxed), thread, call_, patience_};
}

}  // namespace gatedrnn
