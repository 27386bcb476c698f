// Sizes in memory: rounded up, aligned, and counted without overflow.
#pragma once

#include <limits>
#include <new>

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

// Throws std::bad_alloc where that many bytes, with what alignment adds, could not be counted.
template <class T>
Index checked_bytes(Index count) {
  constexpr Index most = std::numeric_limits<Index>::max() / 2 - 2 * static_cast<Index>(kAlignment);
  if (count < 0 || count > most / static_cast<Index>(sizeof(T))) throw std::bad_alloc();
  return count * static_cast<Index>(sizeof(T));
}

}  // namespace gatedrnn
