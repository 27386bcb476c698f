// The one vector layer: the few operations that the kernels use, on the widest vector of the instruction set this
// translation unit is compiled for. The vectors and their arithmetic are Eigen's packets.
#pragma once

#include <cstdint>

#include "gatedrnn/spec.h"
#include "isa_namespace.h"

#ifdef GATEDRNN_TEST_SIMD
#include GATEDRNN_TEST_SIMD  // a vector that the machine at hand does not have, for tests of the tiles that it implies
#else

namespace gatedrnn::GATEDRNN_ISA {

namespace packet = Eigen::internal;

template <class Element>
struct Simd {
  using T = Element;
  using V = typename packet::packet_traits<T>::type;
  static constexpr int lanes = packet::unpacket_traits<V>::size;

  // Eigen 3.4 has no packet of 64-bit integers, so bits are moved by the compiler's vector extension.
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  typedef Bits BitVector __attribute__((vector_size(sizeof(T) * lanes)));
  static constexpr Bits sign_bit = Bits(1) << (8 * sizeof(T) - 1);

  static GATEDRNN_INLINE V set(T value) { return packet::pset1<V>(value); }
  static GATEDRNN_INLINE V load(const T* p) { return packet::ploadu<V>(p); }
  static GATEDRNN_INLINE void store(T* p, V v) { packet::pstoreu<T>(p, v); }
  // Values that far apart, fewer than 2^31 between the first and the last.
  static GATEDRNN_INLINE V gather(const T* p, Index stride) { return packet::pgather<T, V>(p, stride); }
  static GATEDRNN_INLINE void scatter(T* p, V v, Index stride) { packet::pscatter<T, V>(p, v, stride); }
  // Past the caches, where the machine can; `p` is aligned. Others see it once it is published (streaming_stores.h).
  static GATEDRNN_INLINE void stream(T* p, V v) {
#ifdef __AVX512F__
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
#else
    store(p, v);
#endif
  }
  static GATEDRNN_INLINE V madd(V a, V b, V c) { return packet::pmadd(a, b, c); }
  static GATEDRNN_INLINE V add(V a, V b) { return packet::padd(a, b); }
  static GATEDRNN_INLINE V sub(V a, V b) { return packet::psub(a, b); }
  static GATEDRNN_INLINE V mul(V a, V b) { return packet::pmul(a, b); }
  static GATEDRNN_INLINE V div(V a, V b) { return packet::pdiv(a, b); }
  // As std::min and std::max: a NaN in the first argument stays.
  static GATEDRNN_INLINE V min(V a, V b) { return packet::pmin(a, b); }
  static GATEDRNN_INLINE V max(V a, V b) { return packet::pmax(a, b); }
  static GATEDRNN_INLINE V negate(V a) { return -a; }
  static GATEDRNN_INLINE V abs(V a) { return V(BitVector(a) & ~sign_bit); }
  static GATEDRNN_INLINE V copy_sign(V magnitude, V sign) {
    return V((BitVector(magnitude) & ~sign_bit) | (BitVector(sign) & sign_bit));
  }
  static GATEDRNN_INLINE V where_positive(V condition, V value) {
    return packet::pand(packet::pcmp_lt(set(0), condition), value);
  }
  struct Block : packet::PacketBlock<V, lanes> {};  // as many vectors as lanes
  static GATEDRNN_INLINE void transpose(Block& block) { packet::ptranspose(block); }
  template <int bits>
  static GATEDRNN_INLINE V shift_left(V a) {
    return V(BitVector(a) << bits);
  }
  static GATEDRNN_INLINE V upper_half(V a) { return V(BitVector(a) >> 4 * sizeof(T) << 4 * sizeof(T)); }
};

}  // namespace gatedrnn::GATEDRNN_ISA

#endif
