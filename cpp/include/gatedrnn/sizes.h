// Sizes in memory, rounded up and aligned.
#pragma once

#include <cstddef>

#include "gatedrnn/spec.h"

namespace gatedrnn {

constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index value, Index multiple) { return ceil_div(value, multiple) * multiple; }

// An odd number of cache lines with room for so many values and a line more: rows that far apart do not all fall into
// the same sets of a cache.
template <class T>
Index odd_lines(Index count) {
  constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
  return round_up(count, 2 * line) + line;
}

}  // namespace gatedrnn
