// The gradients of parameters: sums over all (time step, row) pairs, each one chain in the order of the pairs.
#pragma once

#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// R columns of d by V vectors of x, whose sums stay in registers.
template <class S, int R, int V>
void outer_tile(const OuterArgs<typename S::T>& a, Index column) {
  typename S::V acc[R][V];
  typename S::T* sums = a.sums + column * V * S::lanes;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) acc[r][v] = S::load(sums + (r * V + v) * S::lanes);

  const typename S::T *d = a.d + column, *x = a.x;
#pragma GCC unroll 2
  for (Index n = 0; n < a.count; ++n, d += a.d_stride, x += V * S::lanes) {
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

#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) S::store(sums + (r * V + v) * S::lanes, acc[r][v]);
}

template <class S, int V>
void outer_columns(const OuterArgs<typename S::T>& a) {
  constexpr int R = kAccumulators / kOuterVectors;
  static_assert(kOuterColumns % R == 0);
  for (Index column = 0; column < a.columns; column += R) outer_tile<S, R, V>(a, column);
}

template <class S>
void outer(const OuterArgs<typename S::T>& a) noexcept {
  switch (a.vectors) {
    case 1: return outer_columns<S, 1>(a);
    case 2: return outer_columns<S, 2>(a);
    case 3: return outer_columns<S, 3>(a);
  }
}

template <class S>
void sum_columns(const ColumnArgs<typename S::T>& a) noexcept {
  for (Index unit = 0; unit < a.units; unit += S::lanes) {
    auto sum = S::load(a.sums + unit);
    for (Index n = 0; n < a.count; ++n) {
      const auto d = S::load(a.d + n * a.d_stride + unit);
      sum = a.factor ? S::madd(d, load_first<S>(a.factor + n * a.factor_stride + unit, a.units - unit), sum)
                     : S::add(sum, d);
    }
    S::store(a.sums + unit, sum);
  }
}

}  // namespace gatedrnn::GATEDRNN_ISA
