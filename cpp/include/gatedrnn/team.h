// The threads of one call, and how they share its work.
//
// All of them go through the same phases. A phase has one share for each of them, which can be done by any of them. Nobody goes on
// to the next phase before all shares are done, but nobody waits for a thread that does not come: whoever has waited for long for
// one that has not begun its share does that share, and all later ones of that thread, which leaves the call when it comes. Only
// for a share that somebody is in the middle of all have to wait: it cannot be taken over, since the thread would wake up and write
// an old step's values over a later one's.
//
// So a thread may find itself out of a call that is long over. What it looks at while it waits (the seats) outlives calls, and it
// touches nothing else before it is sure that it still has its seat.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace gatedrnn {

// Counts calls in the upper bits and the phases of a call in the lower ones, so that no two phases ever have the same. A seat's state
// has what its thread is doing in the place of the phase.
using Stamp = std::uint64_t;
constexpr int kPhaseBits = 36;

// What others see of one thread of a team.
struct Seat {
  enum State : Stamp { absent, active, waiting, left };

  alignas(64) std::atomic<Stamp> state{left};
  std::atomic<int> holder{0};              // who does its shares
  alignas(64) std::atomic<Stamp> done{0};  // the last phase whose share is done
};

// When a thread does the shares of another one that has not begun them.
struct Patience {
  enum Late { take_at_once, wait } late = wait;
  // How long it waits for others before it takes them for lost.
  std::chrono::duration<double, std::micro> lost_after{60};
};

// Ends the part of a thread in a call that goes on, or is over, without it.
struct LeftTeam {};

// One thread's place in a team.
class Member {
 public:
  Member() = default;  // a thread alone
  Member(Seat* seats, int count, int thread, Stamp call, const Patience& patience)
      : seats_(seats), count_(count), thread_(thread), call_(call), patience_(patience) {}

  int thread() const { return thread_; }
  bool is_caller() const { return thread_ == 0; }

  // Calls share(i) for those of the team's shares 0 .. count-1 that are this thread's, and returns when all are done. Throws
  // LeftTeam where others go on without this thread; between phases `share`, and what comes after, may rely on not being left
  // behind.
  template <class Share>
  void phase(Share&& share) {
    if (count_ == 1) return share(0);
    const auto call = [](void* self, int i) { (*static_cast<std::remove_reference_t<Share>*>(self))(i); };
    run_phase({const_cast<void*>(static_cast<const void*>(&share)), call});
  }

  double unseen_work = 0;  // what the thread has done since it last looked whether the call has to end

  // The thread is done with the call, if it still has its seat.
  void leave() {
    Stamp expected = call_ | Seat::active;
    seats_[thread_].state.compare_exchange_strong(expected, call_ | Seat::left, std::memory_order_acq_rel);
  }

 private:
  bool is_done(int share) const {
    return static_cast<std::int64_t>(seats_[share].done.load(std::memory_order_acquire) - stamp()) >= 0;
  }
  void finish(int share) { seats_[share].done.store(stamp(), std::memory_order_release); }
  Stamp stamp() const { return call_ + phase_; }

  struct Shares {
    void* self;
    void (*call)(void* self, int share);
    void operator()(int share) const { call(self, share); }
  };

  void run_phase(const Shares& shares);
  // What this thread has taken over and is not done with.
  void do_held(const Shares& shares);
  // The team is left by the thread that it has lost time for: this is the moment when it does nothing but wait for the caller.
  void part(const Shares& shares);

  int holder_of(int share) const { return seats_[share].holder.load(std::memory_order_relaxed); }

  bool has_left() const { return seats_[thread_].state.load(std::memory_order_relaxed) == (call_ | Seat::left); }

  // Until a share is done (false), or has become this thread's.
  bool await(int share);
  bool await_rest(int thread);
  bool take_over(int thread);
  void rest();
  void resume();

  Seat* seats_ = nullptr;
  int count_ = 1, thread_ = 0;
  Stamp call_ = 0, phase_ = 0;
  Patience patience_;
  bool holds_others_ = false;
  int parts_from_ = -1;
};

// What each thread of a team does.
using TeamFunction = void (*)(void* context, Member& member);

// The seats of one source of threads, for one call at a time.
class Team {
 public:
  // By the thread that makes the call, whose place is returned.
  Member open(int count, const Patience& patience, TeamFunction function, void* context);
  // Takes the seats of all who have not come or who wait, and waits for those in the middle of something.
  void close();

  // The call that was opened last.
  Stamp published() const { return published_.load(); }
  // By another thread: does the part of a thread in that call, if it has a seat left. False where it has none.
  bool help(Stamp call);
  // The same for one particular seat.
  bool help(Stamp call, int thread);

 private:
  Member member(int thread) const;

  // A thread that waits for the next call looks at this line again and again; what a call consists of is on another one.
  alignas(64) std::atomic<Stamp> published_{0};
  alignas(64) std::atomic<Seat*> seats_{nullptr};
  std::atomic<int> count_{0};
  Stamp call_ = 0;
  Patience patience_;
  TeamFunction function_ = nullptr;
  void* context_ = nullptr;
  alignas(
      64) std::vector<std::unique_ptr<Seat[]>> memory_;  // a late thread may still look at the seats of a smaller team
  int most_ = 0;
};

// Tells the processor that this thread waits for another.
void relax();

}  // namespace gatedrnn
