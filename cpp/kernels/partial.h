// The vector at the end of a row, where memory may end before the vector does.
#pragma once

#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// The first `count` values of p, then zeros; all of them where count is more than a vector.
template <class S>
GATEDRNN_INLINE typename S::V load_first(const typename S::T* p, Index count) {
  if (count >= S::lanes) return S::load(p);
  alignas(64) typename S::T values[S::lanes] = {};
  for (Index i = 0; i < count; ++i) values[i] = p[i];
  return S::load(values);
}

template <class S>
GATEDRNN_INLINE void store_first(typename S::T* p, typename S::V value, Index count) {
  if (count >= S::lanes) return S::store(p, value);
  alignas(64) typename S::T values[S::lanes];
  S::store(values, value);
  for (Index i = 0; i < count; ++i) p[i] = values[i];
}

// Past the caches where the vector is a line of them; a part of a line would go to memory on its own.
template <class S>
GATEDRNN_INLINE void stream_first(typename S::T* p, typename S::V value, Index count) {
  const bool whole_line = sizeof(value) == 64 && count >= S::lanes && reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
  return whole_line ? S::stream(p, value) : store_first<S>(p, value, count);
}

}  // namespace gatedrnn::GATEDRNN_ISA
