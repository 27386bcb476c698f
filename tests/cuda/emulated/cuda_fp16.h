// Half precision: stored bits and conversions, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  std::uint16_t bits = 0;
};

inline float __half2float(__half value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  float magnitude;
  if (exponent == 31) {
    const std::uint32_t bits = 0x7f800000u | mantissa << 13;
    std::memcpy(&magnitude, &bits, 4);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  } else {
    const std::uint32_t bits = (exponent + 112) << 23 | mantissa << 13;
    std::memcpy(&magnitude, &bits, 4);
  }
  std::uint32_t bits;
  std::memcpy(&bits, &magnitude, 4);
  bits |= sign;
  std::memcpy(&magnitude, &bits, 4);
  return magnitude;
}

inline __half __float2half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  const auto made = [sign](std::uint32_t rest) { return __half{static_cast<std::uint16_t>(sign | rest)}; };
  if (bits > 0x7f800000u) return made(0x7fff);
  if (bits >= 0x477ff000u) return made(0x7c00);  // rounds to infinity
  if (bits < 0x38800000u) {                      // below the smallest normal: a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    const float shifted = magnitude + 0.5f;  // whose last place is 2^-24
    std::memcpy(&bits, &shifted, 4);
    return made(bits - 0x3f000000u);
  }
  bits += 0xfffu + (bits >> 13 & 1);
  return made((bits - 0x38000000u) >> 13);
}
