// Sizes in memory, counted without overflow. Apart from sizes.h, which kernels need: they are compiled without exceptions.
#pragma once

#include <limits>
#include <new>

#include "gatedrnn/sizes.h"

namespace gatedrnn {

// Throws std::bad_alloc where that many bytes, with what alignment adds, could not be counted.
template <class T>
Index checked_bytes(Index count) {
  constexpr Index most = std::numeric_limits<Index>::max() / 2 - 2 * static_cast<Index>(kAlignment);
  if (count < 0 || count > most / static_cast<Index>(sizeof(T))) throw std::bad_alloc();
  return count * static_cast<Index>(sizeof(T));
}

}  // namespace gatedrnn
