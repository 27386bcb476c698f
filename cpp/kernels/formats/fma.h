// float32 and float64: fused multiply-adds, one k at a time.
#pragma once

#include "../dot_product.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Vectors>
struct FmaDot {
  using S = Vectors;
  using T = typename S::T;
  using V = typename S::V;
  using Word = T;
  using Factor = V;
  using Sum = V;
  static constexpr PanelLayout layout = {sizeof(T), sizeof(T), sizeof(T), 1, S::lanes};
  static constexpr bool trains = true;
  static constexpr int accumulators = kAccumulators;

  static GATEDRNN_INLINE Sum zero() { return S::set(0); }
  static GATEDRNN_INLINE Factor set(Word x) { return S::set(x); }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) { return S::load(reinterpret_cast<const T*>(w)); }
  static GATEDRNN_INLINE void multiply(Factor x, Factor w, Sum& sum) { sum = S::madd(x, w, sum); }
  static GATEDRNN_INLINE V add(V before, Sum sum) { return S::add(before, sum); }

  // A vector of units of one gate of a panel, whose lanes past the last unit get zeros.
  static void pack(const PackWeightsArgs<T>& a) {
    T* const to = static_cast<T*>(a.to);
    const Index stride = a.vectors * S::lanes;
    if (a.term_stride == 1)
      pack_rows_of_terms(a, to, stride);
    else
      for (Index k = 0; k < a.depth; ++k) S::store(to + k * stride, load_first<S>(a.from + k * a.term_stride, a.units));
  }

 private:
  static void pack_rows_of_terms(const PackWeightsArgs<T>& a, T* to, Index stride) {
    for (Index k = 0; k < a.depth; k += S::lanes) {
      const Index left = a.depth - k;
      typename S::Block block;
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        block.packet[i] = i < a.units ? load_first<S>(a.from + i * a.unit_stride + k, left) : S::set(0);
      S::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        if (i < left) S::store(to + (k + i) * stride, block.packet[i]);
    }
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
