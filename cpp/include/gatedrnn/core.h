// What tiles and plans have to know about a core of the machine.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

struct Core {
  Index l1, l2, l3;        // bytes of its first- and second-level data cache, and of the last level
  Index madd_bytes;        // of vectors that it multiplies and adds in a cycle
  Index madd_vectors = 2;  // so many of them at most

  // Whether one vector takes it a cycle and more, as Zen 4 takes for its widest.
  bool takes_a_cycle(Index vector_bytes) const { return madd_bytes <= vector_bytes; }
};

// Sizes of a product's weights from which it takes other paths. What fits here stays in the second-level cache of any current
// server core; more comes from afar.
constexpr Index kNearBytes = 448 << 10;

// What exceeds this comes from memory, where reading a panel in halves defeats the hardware's prefetcher.
constexpr Index kFarBytes = 8 << 20;

// This machine's.
const Core& core();

}  // namespace gatedrnn
