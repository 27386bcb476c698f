// Numbers as bits, in loops that compilers turn into vectors.
#pragma once

#include <cstdint>

#include "../isa_namespace.h"

namespace gatedrnn::GATEDRNN_ISA {

GATEDRNN_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
GATEDRNN_INLINE float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// Operands that a product takes at a time; they are written one by one.
typedef std::uint32_t Pair __attribute__((may_alias));

constexpr std::uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000, kLeastNormal = 0x00800000;

// Whether one of the values is no number or infinite, and the largest magnitude if not.
struct Magnitude {
  std::uint32_t bits = 0;

  GATEDRNN_INLINE void add(float x) {
    const std::uint32_t magnitude = bits_of(x) & kMagnitude;
    bits = magnitude > bits ? magnitude : bits;
  }
  bool finite() const { return bits < kInfinity; }
  float value() const { return float_of(bits); }
};

// The nearest integer, of two the even one, for magnitudes below 2^22.
GATEDRNN_INLINE std::int32_t nearest(float x) {
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: what is left of the sum's bits is the integer
  return static_cast<std::int32_t>(bits_of(x + rounder) - 0x4b400000u);
}

}  // namespace gatedrnn::GATEDRNN_ISA
