// What the threads of calls have to share the processors with: other calls of the process, and others' work.
#pragma once

namespace gatedrnn {

// A team of `count` has lost one of its threads for longer than it may wait: for a while, teams are smaller.
void note_lost_thread(int count);

// In a forked child, where the threads that made them do not exist.
void forget_other_calls();

}  // namespace gatedrnn
