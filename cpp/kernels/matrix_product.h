// A product on a matrix unit: tiles of up to 32 rows x some of a panel's vectors, whose sums stay in the unit's registers. A format
// (formats/amx.h) says which pieces of operands and weights are multiplied, and what becomes of the sums.
//
// The unit and the vector units are different parts of a core, so the cells of one tile are computed beside the product of the next.
#pragma once

#include <utility>

#include "gatedrnn/format.h"
#include "matrix_tiles.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

constexpr int kTileRows = 16, kTileBytes = 64;

// action(std::integral_constant<int, i>) for i = 0 .. count - 1.
template <class Action, int... i>
GATEDRNN_INLINE void for_constants(std::integer_sequence<int, i...>, Action&& action) {
  (action(std::integral_constant<int, i>()), ...);
}
template <int count, class Action>
GATEDRNN_INLINE void for_constants(Action&& action) {
  for_constants(std::make_integer_sequence<int, count>(), action);
}

// The registers: 0 .. 3 sums, of which every second has a tall tile's lower rows; 4 and 5 operands of the upper and the lower
// rows; 6 and 7 weights.
struct TileRegisters {
  static constexpr int operands = 4, weights = 6;

  // So many rows, at most twice as many as a tile has. Kept until there are others.
  void set_rows(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    const int upper = rows < kTileRows ? rows : kTileRows, lower = rows > kTileRows ? rows - kTileRows : upper;
    Tiles::Shapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.row_bytes[tile] = kTileBytes;
      shapes.rows[tile] = static_cast<std::uint8_t>(tile >= weights                     ? kTileRows
                                                    : rows > kTileRows && tile % 2 == 1 ? lower
                                                                                        : upper);
    }
    Tiles::configure(shapes);
  }
  ~TileRegisters() {
    if (rows_ > 0) Tiles::release();
  }

 private:
  int rows_ = 0;
};

template <class Format>
struct MatrixProduct {
  using S = Simd<float>;
  using T = float;
  using V = typename S::V;
  using Word = typename Format::Word;
  static constexpr PanelLayout layout = Format::layout;
  static constexpr bool trains = Format::trains;
  static constexpr bool has_unit = true;
  static_assert(S::lanes * sizeof(T) == kTileBytes && layout.pads);

  static void pack(const PackWeightsArgs<T>& a) noexcept { Format::pack(a); }
  // One step of a tall tile again and again, whose operands and weights are in the first-level cache.
  static double multiply_rate_probe(Index count, T* sink) noexcept {
    constexpr int rows = 2 * kTileRows, N = Format::most_sums / 2;
    constexpr Index x_stride = layout.part * layout.operand_bytes;
    static_assert(rows * x_stride + layout.weights_bytes(layout.part, N) <= kProbeBytes);
    const auto* const x = reinterpret_cast<const unsigned char*>(sink);
    TileRegisters registers;
    registers.set_rows(rows);
    for_constants<4>([](auto sums) __attribute__((always_inline)) { Tiles::zero<sums>(); });
    Tiles::fence();
    for (Index n = 0; n < count; ++n)
      Format::template add_step<MatrixProduct, 2, N, N>(x, x_stride, x + rows * x_stride);
    Tiles::store<0>(sink, kTileBytes);
    return 2.0 * rows * N * S::lanes * layout.part * static_cast<double>(count);
  }
  static GATEDRNN_INLINE T round(const T* from, Index count, T least, Word* to) {
    return Format::round(from, count, least, to);
  }

  // As a DotProduct visits its tiles; all terms belong to one slice.
  template <int W, class Visit>
  static GATEDRNN_INLINE void for_each_tile(const Core&, Index row_count, Index first_panel, Index last_panel,
                                            const Terms& terms, const void* panels_of_weights, bool panels_reversed,
                                            Visit&& visit) {
    if (row_count == 0) return;
    const EvenParts rows(row_count, 2 * kTileRows);
    const int most = rows.begin(1) > kTileRows ? Format::most_sums / 2 : Format::most_sums;
    const auto* const weights = static_cast<const unsigned char*>(panels_of_weights);
    const Index depth = terms.depth(), panel_bytes = layout.panel_bytes(depth, W);
    TileRegisters registers;
    for (Index i = first_panel; i < last_panel; ++i) {
      const Index panel = panels_reversed ? first_panel + last_panel - 1 - i : i;
      for (int vector = 0, vectors; vector < W; vector += vectors) {
        vectors = W - vector < most ? W - vector : most;
        for (Index part = 0; part < rows.parts; ++part) {
          const Index row = rows.begin(part);
          const int count = static_cast<int>(rows.begin(part + 1) - row);
          TileArgs<MatrixProduct> tile;
          tile.weights = weights + panel * panel_bytes + vector * layout.vector_bytes();
          tile.panel_stride = panel_bytes;
          if constexpr (layout.scaled)
            tile.unit_scales =
                weights + panel * panel_bytes + layout.weights_bytes(depth, W) + vector * S::lanes * layout.sum_bytes;
          tile.terms = &terms;
          tile.first_block = 0;
          tile.last_block = terms.blocks();
          tile.prefetch = nullptr;
          registers.set_rows(count);
          visit(TilePlace{panel, 1, row, count, vector, vectors, 0, vector + vectors == W}, tile);
        }
      }
    }
  }

  // `beside` is what the vector units do meanwhile.
  template <int W, class Beside>
  static GATEDRNN_INLINE void multiply(int rows, int, int vectors, const TileArgs<MatrixProduct>& a, Beside& beside) {
    for_constants<Format::most_sums>([&](auto n) __attribute__((always_inline)) {
      constexpr int N = n + 1;
      if constexpr (N <= W) {
        if (vectors != N) return;
        if constexpr (2 * N <= Format::most_sums)
          if (rows > kTileRows) return Format::template multiply_tile<MatrixProduct, 2, N, W>(rows, a, beside);
        Format::template multiply_tile<MatrixProduct, 1, N, W>(rows, a, beside);
      }
    });
  }

  static Index steps(Index begin, Index end) { return ceil_div(end - begin, layout.part); }
  static const unsigned char* operands(const TileArgs<MatrixProduct>& a, Index step) {
    return reinterpret_cast<const unsigned char*>(a.x) + step * layout.part * layout.operand_bytes;
  }
  template <int W>
  static const unsigned char* weights(const TileArgs<MatrixProduct>& a, Index step) {
    return a.weights + step * layout.weights_bytes(layout.part, W);
  }
  // From row to row of operands.
  static Index operand_stride(const TileArgs<MatrixProduct>& a) {
    return a.row_at[1] * static_cast<Index>(sizeof(Word));
  }

  // sums[v][r] += operands[r] weights[v], for one piece of either.
  template <int R, int N, int W, int first_sums, class Add>
  static GATEDRNN_INLINE void add(const unsigned char* x, Index x_stride, const unsigned char* w, Add&& add) {
    for_constants<R>([&](auto r) __attribute__((always_inline)) {
      Tiles::load<TileRegisters::operands + r>(x + r * kTileRows * x_stride, x_stride);
    });
    for_constants<N>([&](auto v) __attribute__((always_inline)) {
      constexpr int b = TileRegisters::weights + v % 2;
      Tiles::load<b>(w + v * layout.vector_bytes(), W * layout.vector_bytes());
      for_constants<R>([&](auto r) __attribute__((always_inline)) {
        add(std::integral_constant<int, first_sums + v * R + r>(),
            std::integral_constant<int, TileRegisters::operands + r>(), std::integral_constant<int, b>());
      });
    });
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
