// What the machine allows: the roofline's two measurements, in the instruction set of this translation unit.
#pragma once

#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// Twelve independent chains hide the latency of a fused multiply-add on every machine known to us.
template <class S>
double fma_chain(Index count, typename S::T* sink) noexcept {
  using V = typename S::V;
  constexpr int chains = 12;
  V acc[chains];
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) acc[i] = S::set(static_cast<typename S::T>(i));
  const V a = S::load(sink), b = S::load(sink + S::lanes);
  for (Index n = 0; n < count; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = S::madd(acc[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 0; i < chains; ++i) S::store(sink + i * S::lanes, acc[i]);
  return 2.0 * S::lanes * chains * static_cast<double>(count);
}

// Reads n values (a multiple of eight vectors) once.
template <class S>
void read(const typename S::T* data, Index n, typename S::T* sink) noexcept {
  using V = typename S::V;
  V acc[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) acc[i] = S::set(0);
  for (Index k = 0; k < n; k += 8 * S::lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) acc[i] = S::add(acc[i], S::load(data + k + i * S::lanes));
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) S::store(sink + i * S::lanes, acc[i]);
}

}  // namespace gatedrnn::GATEDRNN_ISA
