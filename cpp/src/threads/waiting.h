// How a thread waits for another.
#pragma once

#include <thread>

#include "gatedrnn/team.h"

namespace gatedrnn {

constexpr int kSpins = 300;  // some ten microseconds

// Spins, then lets others run, until `done()`: phases are microseconds apart, but the threads may share a processor.
template <class Done>
void wait_until(Done&& done) {
  for (int spins = 0; !done(); ++spins)
    if (spins < kSpins)
      relax();
    else
      std::this_thread::yield();
}

}  // namespace gatedrnn
