// The gradients of parameters: sums over all (time step, row) pairs, block by block.
#pragma once

#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// R columns of d by V vectors of x, whose sums stay in registers.
template <class S, int R, int V, bool fetch>
void gemm_tile(const TransposedGemmArgs<typename S::T>& a, Index column) {
  using T = typename S::T;
  T* sums = a.sums + column * a.sums_stride;
  const Index rows = a.columns - column;
  // The next tile's sums, which otherwise come from afar when they are wanted at once.
  for (int r = R; r < 2 * R && r < rows; ++r)
    for (int v = 0; v < V; ++v) __builtin_prefetch(sums + r * a.sums_stride + v * S::lanes, 1, 3);

  const T *d = a.d + column / kGemmColumns * a.d_group_stride + column % kGemmColumns, *x = a.x;
  Index n = a.first;
  for (Index block = 0; block < a.blocks; ++block) {
    typename S::V acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = S::set(0);
    const Index end = a.ends[block];
#pragma GCC unroll 2
    for (; n < end; ++n, d += a.d_stride, x += V * S::lanes) {
      if constexpr (fetch) prefetch_line(d + a.d_ahead);
      typename S::V xv[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) xv[v] = S::load(x + v * S::lanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const typename S::V dv = S::set(d[r]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) acc[r][v] = S::madd(dv, xv[v], acc[r][v]);
      }
    }

    const bool from_zero = a.from_zero && block == 0;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if (r >= rows) break;
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        T* to = sums + r * a.sums_stride + v * S::lanes;
        const Index width = a.width - v * S::lanes;
        store_first<S>(to, S::add(from_zero ? S::set(0) : load_first<S>(to, width), acc[r][v]), width);
      }
    }
  }
}

template <class S, int V>
void gemm_columns(const TransposedGemmArgs<typename S::T>& a) {
  constexpr int R = kAccumulators / kGemmVectors;
  static_assert(kGemmColumns % R == 0);
  for (Index column = 0; column < a.columns; column += R)
    if (a.d_ahead > 0 && column % line<typename S::T> == 0)
      gemm_tile<S, R, V, true>(a, column);
    else
      gemm_tile<S, R, V, false>(a, column);
}

template <class S>
void transposed_gemm(const TransposedGemmArgs<typename S::T>& a) noexcept {
  switch (a.vectors) {
    case 1: return gemm_columns<S, 1>(a);
    case 2: return gemm_columns<S, 2>(a);
    case 3: return gemm_columns<S, 3>(a);
  }
}

// The sums of N vectors of columns. Rows may be pages apart, so each visit takes several lines.
template <class S, int N>
void sum_vectors(const ColumnArgs<typename S::T>& a, Index unit) {
  typename S::V sums[N];
  for (int v = 0; v < N; ++v) sums[v] = S::load(a.sums + unit + v * S::lanes);
  for (Index n = 0; n < a.count; ++n)
    for (int v = 0; v < N; ++v) {
      const Index column = unit + v * S::lanes;
      const auto d = S::load(a.d + n * a.d_stride + column);
      if (a.factor) {
        const Index at =
            n * a.factor_stride + kept_offset(a.factor_slots, a.factor_slots - 1, column, a.units, S::lanes);
        sums[v] = S::madd(d, load_first<S>(a.factor + at, a.units - column), sums[v]);
      } else {
        sums[v] = S::add(sums[v], d);
      }
    }
  for (int v = 0; v < N; ++v) S::store(a.sums + unit + v * S::lanes, sums[v]);
}

template <class S>
void sum_columns(const ColumnArgs<typename S::T>& a) noexcept {
  constexpr int several = 4;
  Index unit = 0;
  for (; unit + (several - 1) * S::lanes < a.units; unit += several * S::lanes) sum_vectors<S, several>(a, unit);
  for (; unit < a.units; unit += S::lanes) sum_vectors<S, 1>(a, unit);
}

}  // namespace gatedrnn::GATEDRNN_ISA
