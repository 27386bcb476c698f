// The gradients of parameters: sums over all (time step, row) pairs, block by block. Weights' in formats that round are in
// rounded_gradients.h.
#pragma once

#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// x is packed in parts of up to so many vectors: [part][pair][vectors][lanes].
constexpr int kGemmVectors = 3;

// `visit(part)` for all values, in parts that differ by at most a vector.
struct GemmPart {
  Index first, width;  // values; the last vector may cover more
  int vectors;
};
template <class S, class Visit>
GATEDRNN_INLINE void for_each_part(Index depth, Visit&& visit) {
  const EvenParts parts(ceil_div(depth, S::lanes), kGemmVectors);
  for (Index p = 0; p < parts.parts; ++p) {
    const Index first = parts.begin(p) * S::lanes, end = parts.begin(p + 1) * S::lanes;
    visit(GemmPart{first, (end < depth ? end : depth) - first, static_cast<int>((end - first) / S::lanes)});
  }
}

template <class S>
void pack_rows(const PackRowsArgs<typename S::T>& a) noexcept {
  auto* to = static_cast<typename S::T*>(a.to);
  for_each_part<S>(a.depth, [&](const GemmPart& part) {
    for (Index n = 0; n < a.pairs.count(); ++n)
      for (int v = 0; v < part.vectors; ++v, to += S::lanes)
        S::store(to, load_first<S>(a.rows[n] + part.first + v * S::lanes, part.width - v * S::lanes));
  });
}

// [group][pair][kGemmColumns]
template <class S>
void pack_columns(const PackColumnsArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  auto* to = static_cast<T*>(a.to);
  for (Index column = 0; column < a.columns; column += kGemmColumns) {
    const T* from = a.from + column;
    for (Index n = 0; n < a.pairs.count(); ++n, from += a.stride, to += kGemmColumns)
      __builtin_memcpy(to, from, kGemmColumns * sizeof(T));
  }
}

// One part of the right side.
template <class T>
struct GemmArgs {
  const TransposedGemmArgs<T>& whole;
  const T* x;
  T* sums;
  Index width, d_ahead;
};

// R columns of d by V vectors of x, whose sums stay in registers.
template <class S, int R, int V, bool fetch>
void gemm_tile(const GemmArgs<typename S::T>& part, Index column) {
  using T = typename S::T;
  const TransposedGemmArgs<T>& a = part.whole;
  T* sums = part.sums + column * a.sums_stride;
  const Index rows = a.columns - column;
  // The next tile's sums, which otherwise come from afar when they are wanted at once.
  for (int r = R; r < 2 * R && r < rows; ++r)
    for (int v = 0; v < V; ++v) __builtin_prefetch(sums + r * a.sums_stride + v * S::lanes, 1, 3);

  const T* d = static_cast<const T*>(a.d) + column / kGemmColumns * a.d_group_stride + column % kGemmColumns;
  const T* x = part.x;
  Index n = a.pairs.first;
  for (Index block = 0; block < a.pairs.blocks; ++block) {
    typename S::V acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) acc[r][v] = S::set(0);
    const Index end = a.pairs.ends[block];
#pragma GCC unroll 2
    for (; n < end; ++n, d += a.d_stride, x += V * S::lanes) {
      if constexpr (fetch) prefetch_line(d + part.d_ahead);
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
        const Index width = part.width - v * S::lanes;
        store_first<S>(to, S::add(from_zero ? S::set(0) : load_first<S>(to, width), acc[r][v]), width);
      }
    }
  }
}

template <class S, int V>
void gemm_columns(const GemmArgs<typename S::T>& part) {
  constexpr int R = kAccumulators / kGemmVectors;
  static_assert(kGemmColumns % R == 0);
  for (Index column = 0; column < part.whole.columns; column += R)
    if (part.d_ahead > 0 && column % line<typename S::T> == 0)
      gemm_tile<S, R, V, true>(part, column);
    else
      gemm_tile<S, R, V, false>(part, column);
}

template <class S>
void transposed_gemm(const TransposedGemmArgs<typename S::T>& a) noexcept {
  const auto* x = static_cast<const typename S::T*>(a.x);
  for_each_part<S>(a.depth, [&](const GemmPart& at) {
    const GemmArgs<typename S::T> part{a, x, a.sums + at.first, at.width, at.first == 0 ? a.d_ahead : 0};
    x += a.pairs.count() * at.vectors * S::lanes;
    switch (at.vectors) {
      case 1: return gemm_columns<S, 1>(part);
      case 2: return gemm_columns<S, 2>(part);
      case 3: return gemm_columns<S, 3>(part);
    }
  });
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
