// A vector of 64 bytes made of scalars, so that the tiles, panels and tails of AVX-512 are tested on any machine.
#pragma once

#include <utility>

#include "gatedrnn/cells/scalar.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Element>
struct Simd {
  using T = Element;
  using One = cells::Scalar<T>;
  static constexpr int lanes = 64 / sizeof(T);
  struct V {
    T lane[lanes];
  };

  template <class Function>
  static V each(Function&& value) {
    V result;
    for (int i = 0; i < lanes; ++i) result.lane[i] = value(i);
    return result;
  }
  static V set(T value) {
    return each([&](int) { return value; });
  }
  static V load(const T* p) {
    return each([&](int i) { return p[i]; });
  }
  static V gather(const T* p, Index stride) {
    return each([&](int i) { return p[i * stride]; });
  }
  static void scatter(T* p, V v, Index stride) {
    for (int i = 0; i < lanes; ++i) p[i * stride] = v.lane[i];
  }
  static void stream(T* p, V v) { store(p, v); }
  static void store(T* p, V v) {
    for (int i = 0; i < lanes; ++i) p[i] = v.lane[i];
  }
  static V madd(V a, V b, V c) {
    return each([&](int i) { return One::madd(a.lane[i], b.lane[i], c.lane[i]); });
  }
  static V add(V a, V b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static V sub(V a, V b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static V mul(V a, V b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static V div(V a, V b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static V min(V a, V b) {
    return each([&](int i) { return One::min(a.lane[i], b.lane[i]); });
  }
  static V max(V a, V b) {
    return each([&](int i) { return One::max(a.lane[i], b.lane[i]); });
  }
  static V negate(V a) {
    return each([&](int i) { return -a.lane[i]; });
  }
  static V abs(V a) {
    return each([&](int i) { return One::abs(a.lane[i]); });
  }
  static V copy_sign(V magnitude, V sign) {
    return each([&](int i) { return One::copy_sign(magnitude.lane[i], sign.lane[i]); });
  }
  static V where_positive(V condition, V value) {
    return each([&](int i) { return One::where_positive(condition.lane[i], value.lane[i]); });
  }
  struct Block {
    V packet[lanes];
  };
  static void transpose(Block& block) {
    for (int i = 0; i < lanes; ++i)
      for (int j = 0; j < i; ++j) std::swap(block.packet[i].lane[j], block.packet[j].lane[i]);
  }
  template <int bits>
  static V shift_left(V a) {
    return each([&](int i) { return One::template shift_left<bits>(a.lane[i]); });
  }
  static V upper_half(V a) {
    return each([&](int i) { return One::upper_half(a.lane[i]); });
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
