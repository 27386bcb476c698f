// float32 and float64: fused multiply-adds of vectors, one k at a time.
#pragma once

#include "gatedrnn/format.h"
#include "gatedrnn/sums.h"
#include "partial.h"
#include "tile.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Vectors>
struct FmaProduct {
  using S = Vectors;  // of sums, which the cells go on with
  using T = typename S::T;
  using V = typename S::V;
  using Weight = T;
  using Operand = T;
  static constexpr PanelLayout layout = {sizeof(Weight), sizeof(Operand), sizeof(T), 1, S::lanes};

  static constexpr int accumulators = kAccumulators;
  // With more than one row tile, this much of the weights stays in the first-level cache across the tiles.
  static constexpr Index slice_bytes = accumulators > 12 ? 32 << 10 : 16 << 10;

  // The sums of R rows x P panels x N of the W vectors that a panel is wide, over one block of terms.
  template <int R, int P, int N, int W>
  struct Sums {
    V acc[P][R][N];

    GATEDRNN_INLINE void start() {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < N; ++v) acc[p][r][v] = S::set(0);
    }

    // The terms k .. end of the tile's slice.
    template <bool prefetch>
    GATEDRNN_INLINE void multiply(const TileArgs<FmaProduct>& a, Index k, Index end) {
      const T* rows[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rows[r] = a.x + a.row_at[r];
      const T* w = a.weights + k * (W * S::lanes);
#pragma GCC unroll 4
      for (; k < end; ++k, w += W * S::lanes) {
        if constexpr (prefetch) prefetch_line(a.prefetch + k * line<T>);
        if constexpr (R < N) {  // hold the rows, stream the panel
          V x[R];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) x[r] = S::set(rows[r][k]);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
              const V wv = S::load(w + p * a.panel_stride + v * S::lanes);
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) acc[p][r][v] = S::madd(x[r], wv, acc[p][r][v]);
            }
        } else {  // hold the panel, stream the rows
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) {
            V wv[N];
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) wv[v] = S::load(w + p * a.panel_stride + v * S::lanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              const V x = S::set(rows[r][k]);
#pragma GCC unroll 8
              for (int v = 0; v < N; ++v) acc[p][r][v] = S::madd(x, wv[v], acc[p][r][v]);
            }
          }
        }
      }
    }

    GATEDRNN_INLINE V finish(int p, int r, int v) const { return acc[p][r][v]; }
  };

  // A vector of units of one gate of a panel, whose lanes past the last unit get zeros.
  static void pack(const PackWeightsArgs<T>& a) noexcept {
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
