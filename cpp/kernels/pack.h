// Rearranging what products read: weights, once, and both sides of the gradients of weights.
#pragma once

#include "partial.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class S>
void pack_units(const PackUnitsArgs<typename S::T>& a) noexcept {
  for (Index k = 0; k < a.depth; k += S::lanes) {
    const Index left = a.depth - k;
    typename S::Block block;
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      block.packet[i] = i < a.units ? load_first<S>(a.from + i * a.depth + k, left) : S::set(0);
    S::transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      if (i < left) S::store(a.to + (k + i) * a.to_stride, block.packet[i]);
  }
}

template <class S>
void pack_rows(const PackRowsArgs<typename S::T>& a) noexcept {
  typename S::T* to = a.to;
  for (Index n = 0; n < a.count; ++n)
    for (int v = 0; v < a.vectors; ++v, to += S::lanes)
      S::store(to, load_first<S>(a.rows[n] + a.first + v * S::lanes, a.width - v * S::lanes));
}

template <class S>
void pack_columns(const PackColumnsArgs<typename S::T>& a) noexcept {
  typename S::T* to = a.to;
  for (Index group = 0; group < a.groups; ++group) {
    const typename S::T* from = a.from + group * kOuterColumns;
    for (Index n = 0; n < a.count; ++n, from += a.stride, to += kOuterColumns)
      __builtin_memcpy(to, from, kOuterColumns * sizeof(typename S::T));
  }
}

}  // namespace gatedrnn::GATEDRNN_ISA
