// Rearranging both sides of the gradients of weights.
#pragma once

#include "partial.h"

namespace gatedrnn::GATEDRNN_ISA {

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
    const typename S::T* from = a.from + group * kGemmColumns;
    for (Index n = 0; n < a.count; ++n, from += a.stride, to += kGemmColumns)
      __builtin_memcpy(to, from, kGemmColumns * sizeof(typename S::T));
  }
}

}  // namespace gatedrnn::GATEDRNN_ISA
