// What the machine allows: the roofline's two measurements, in the instruction set of this translation unit.
#pragma once

#include "gatedrnn/kernel_table.h"
#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// As many sums as a tile has, up to those that hide the latency of a multiplication on every machine known to us. Factors are read anew
// in each round, lest the compiler take them out of it.
template <class Dot>
double multiply_rate(Index count, typename Dot::S::T* sink) noexcept {
  using S = typename Dot::S;
  constexpr int chains = Dot::accumulators < 12 ? Dot::accumulators : 12;
  typename Dot::Sum sums[chains];
#pragma GCC unroll 12
  for (auto& sum : sums) {
    auto start = Dot::zero();
    asm volatile("" : "+m"(start));  // equal sums would become one
    sum = start;
  }
  for (Index n = 0; n < count; ++n) {
    asm volatile("" ::: "memory");
    const auto x = Dot::set(*reinterpret_cast<const typename Dot::Word*>(sink));
    const auto w = Dot::load(reinterpret_cast<const unsigned char*>(sink));
#pragma GCC unroll 12
    for (auto& sum : sums) Dot::multiply(x, w, sum);
  }
  auto total = S::set(0);
#pragma GCC unroll 12
  for (const auto& sum : sums)
    if constexpr (Dot::layout.scaled)
      total = S::add(total, Dot::value(sum));
    else
      total = Dot::add(total, sum);
  S::store(sink, total);
  return 2.0 * S::lanes * Dot::layout.terms * chains * static_cast<double>(count);
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
