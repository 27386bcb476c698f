// One value's arithmetic, for the reference and for whoever wants to see what a vector does in each lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace gatedrnn::cells {

template <class Element>
struct Scalar {
  using T = Element;
  using V = T;
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

  static V set(T value) { return value; }
  static V madd(V a, V b, V c) { return std::fma(a, b, c); }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V min(V a, V b) { return b < a ? b : a; }  // a NaN in the first argument stays
  static V max(V a, V b) { return a < b ? b : a; }
  static V negate(V a) { return -a; }
  static V abs(V a) { return std::fabs(a); }
  static V copy_sign(V magnitude, V sign) { return std::copysign(magnitude, sign); }
  static V where_positive(V condition, V value) { return condition > 0 ? value : V(0); }
  template <int count>
  static V shift_left(V a) {
    Bits bits;
    std::memcpy(&bits, &a, sizeof bits);
    bits <<= count;
    std::memcpy(&a, &bits, sizeof bits);
    return a;
  }
  static V upper_half(V a) {
    Bits bits;
    std::memcpy(&bits, &a, sizeof bits);
    bits = bits >> 4 * sizeof(T) << 4 * sizeof(T);
    std::memcpy(&a, &bits, sizeof bits);
    return a;
  }
};

}  // namespace gatedrnn::cells
