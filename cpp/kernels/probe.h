// What the machine allows: the roofline's two measurements, in the instruction set of this translation unit.
#pragma once

#include "gatedrnn/kernel_table.h"
#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class S>
double fma_chain(Index count, typename S::T* sink) noexcept {
  using V = typename S::V;
  V acc[kFmaChains];
#pragma GCC unroll 12
  for (int i = 0; i < kFmaChains; ++i) acc[i] = S::set(static_cast<typename S::T>(i));
  const V a = S::load(sink), b = S::load(sink + S::lanes);
  for (Index n = 0; n < count; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < kFmaChains; ++i) acc[i] = S::madd(acc[i], a, b);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kFmaChains; ++i) S::store(sink + i * S::lanes, acc[i]);
  return 2.0 * S::lanes * kFmaChains * static_cast<double>(count);
}

// Reads n values (a multiple of kReadVectors vectors) once.
template <class S>
void read(const typename S::T* data, Index n, typename S::T* sink) noexcept {
  using V = typename S::V;
  V acc[kReadVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kReadVectors; ++i) acc[i] = S::set(0);
  for (Index k = 0; k < n; k += kReadVectors * S::lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kReadVectors; ++i) acc[i] = S::add(acc[i], S::load(data + k + i * S::lanes));
  }
#pragma GCC unroll 8
  for (int i = 0; i < kReadVectors; ++i) S::store(sink + i * S::lanes, acc[i]);
}

}  // namespace gatedrnn::GATEDRNN_ISA
