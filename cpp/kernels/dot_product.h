// A product whose lanes are units: in each step of it, a word of a row's operands, in all lanes, meets a vector of weights. A word has
// as many successive terms as the instructions of a format take at a time; a `Dot` (formats/) says what they are.
#pragma once

#include "gatedrnn/format.h"
#include "partial.h"
#include "probe.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Dot>
struct DotProduct {
  using S = typename Dot::S;  // of sums, which the cells go on with
  using T = typename S::T;
  using V = typename S::V;
  using Word = typename Dot::Word;
  static constexpr PanelLayout layout = Dot::layout;

  static constexpr bool trains = Dot::trains;
  static constexpr bool has_unit = false;  // beside which cells could be computed
  static constexpr int accumulators = Dot::accumulators;
  // With more than one row tile, this much of the weights stays in the first-level cache across the tiles.
  static constexpr Index slice_bytes = kAccumulators > 12 ? 32 << 10 : 16 << 10;

  // The sums of R rows x P panels x N of the W vectors that a panel is wide, over one block of terms.
  template <int R, int P, int N, int W>
  struct Sums {
    typename Dot::Sum acc[P][R][N];

    GATEDRNN_INLINE void start() {
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
          for (int v = 0; v < N; ++v) acc[p][r][v] = Dot::zero();
    }

    // The words k .. end of the tile's slice.
    template <bool prefetch>
    GATEDRNN_INLINE void multiply(const TileArgs<DotProduct>& a, Index k, Index end) {
      constexpr Index bytes = layout.vector_bytes();
      const Word* rows[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) rows[r] = a.x + a.row_at[r];
      const unsigned char* w = a.weights + k * (W * bytes);
#pragma GCC unroll 4
      for (; k < end; ++k, w += W * bytes) {
        if constexpr (prefetch) prefetch_line(a.prefetch + k * line<unsigned char>);
        if constexpr (R < N) {  // hold the rows, stream the panel
          typename Dot::Factor x[R];
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) x[r] = Dot::set(rows[r][k]);
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) {
              const auto wv = Dot::load(w + p * a.panel_stride + v * bytes);
#pragma GCC unroll 8
              for (int r = 0; r < R; ++r) Dot::multiply(x[r], wv, acc[p][r][v]);
            }
        } else {  // hold the panel, stream the rows
#pragma GCC unroll 8
          for (int p = 0; p < P; ++p) {
            typename Dot::Factor wv[N];
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v) wv[v] = Dot::load(w + p * a.panel_stride + v * bytes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
              const auto x = Dot::set(rows[r][k]);
#pragma GCC unroll 8
              for (int v = 0; v < N; ++v) Dot::multiply(x, wv[v], acc[p][r][v]);
            }
          }
        }
      }
    }

    // What the sums before become with these.
    GATEDRNN_INLINE V finish(const TileArgs<DotProduct>& a, V before, int p, int r, int v) const {
      if constexpr (layout.scaled) {
        const V unit = S::load(reinterpret_cast<const T*>(a.unit_scales + p * a.panel_stride) + v * S::lanes);
        return S::madd(Dot::value(acc[p][r][v]), S::mul(unit, S::set(a.row_scales[r])), before);
      } else {
        return Dot::add(before, acc[p][r][v]);
      }
    }
  };

  template <int W, class Visit>
  static GATEDRNN_INLINE void for_each_tile(const Core& core, Index rows, Index first_panel, Index last_panel,
                                            const Terms& terms, const void* weights, bool panels_reversed,
                                            Visit&& visit) {
    visit_tiles<W, DotProduct>(core, rows, first_panel, last_panel, terms, weights, panels_reversed, visit);
  }
  template <int W, class Beside>
  static GATEDRNN_INLINE void multiply(int rows, int panels, int vectors, const TileArgs<DotProduct>& a, Beside&) {
    multiply_tiles<DotProduct, W>(rows, panels, vectors, a);
  }

  static double multiply_rate_probe(Index count, T* sink) noexcept { return multiply_rate<Dot>(count, sink); }

  static void pack(const PackWeightsArgs<T>& a) noexcept { Dot::pack(a); }
  // Operands to words, with zeros up to whole parts (kRoundedPart). Returns their scale.
  static GATEDRNN_INLINE T round(const T* from, Index count, T least, Word* to) {
    return Dot::round(from, count, least, to);
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
