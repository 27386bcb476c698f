// What the threads of calls have to share the processors with: other calls of the process, and others' work.
#pragma once

#include <chrono>

namespace gatedrnn {

// A team of `count` has waited in vain for one of its threads, or for longer than it should: for a while, teams are smaller.
void note_lost_thread(int count, std::chrono::steady_clock::duration waited);

// In a forked child, where the threads that made them do not exist.
void forget_other_calls();

}  // namespace gatedrnn
