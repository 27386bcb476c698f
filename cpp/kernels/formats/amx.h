// The formats on Intel's matrix unit, with the bits that other instructions give.
#pragma once

#include "../matrix_product.h"
#include "bfloat16.h"
#include "int8.h"

namespace gatedrnn::GATEDRNN_ISA {

// Sums of float32 stay in the unit through all blocks, each of which is one instruction's: `products` are pieces of operands and of
// weights, in the order in which their sums are added up.
template <class Pieces>
struct AmxFloat : Pieces {
  static constexpr bool trains = true;
  static constexpr int most_sums = 4;

  // A part of the terms.
  template <class Product, int R, int N, int W>
  static GATEDRNN_INLINE void add_step(const unsigned char* x, Index x_stride, const unsigned char* w) {
    for_constants<Pieces::products>([&](auto i) __attribute__((always_inline)) {
      Product::template add<R, N, W, 0>(
          x + Pieces::operand_piece[i] * kTileBytes, x_stride, w + Pieces::weight_piece[i] * kTileBytes,
          [](auto c, auto x, auto w) __attribute__((always_inline)) { Tiles::add_bfloat16<c, x, w>(); });
    });
  }

  template <class Product, int R, int N, int W, class Beside>
  static void multiply_tile(int, const TileArgs<Product>& a, Beside& beside) {
    const Index end = ceil_div(a.terms->depth(), Product::layout.part), x_stride = Product::operand_stride(a);
    const auto for_each_sum = [&](auto&& action) __attribute__((always_inline)) {
      for_constants<N>([&](auto v) __attribute__((always_inline)) {
        for_constants<R>([&](auto r) __attribute__((always_inline)) {
          action(std::integral_constant<int, v * R + r>(), static_cast<int>(v), r * kTileRows);
        });
      });
    };
    beside.spread_over(end);
    Tiles::fence();
    for_each_sum([&](auto sums, int v, Index row) __attribute__((always_inline)) {
      const auto& in = v == N - 1 ? a.last_in : a.in;
      Tiles::load<sums>(in.data + row * in.row_stride + (v == N - 1 ? 0 : v * Product::S::lanes),
                        in.row_stride * static_cast<Index>(sizeof(float)));
    });
    for (Index step = 0; step < end; ++step) {
      add_step<Product, R, N, W>(Product::operands(a, step), x_stride, Product::template weights<W>(a, step));
      beside.step();
    }
    for_each_sum([&](auto sums, int v, Index row) __attribute__((always_inline)) {
      Tiles::store<sums>(a.out.data + row * a.out.row_stride + v * Product::S::lanes,
                         a.out.row_stride * static_cast<Index>(sizeof(float)));
    });
  }
};

struct Bfloat16Pieces {
  using S = Simd<float>;
  using Word = Pair;
  static constexpr PanelLayout layout =
      PanelLayout{2, 2, sizeof(float), 2, S::lanes, 32, true, false, 32, true}.at_pace(16);
  static constexpr int products = 1, operand_piece[] = {0}, weight_piece[] = {0};

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    return round_to_pairs(from, count, to);
  }
};

struct Bfloat16x3Pieces {
  using S = Simd<float>;
  struct Word {
    Pair pieces[2];
  };
  static constexpr int products = 3, operand_piece[] = {1, 0, 0}, weight_piece[] = {0, 1, 0};
  static constexpr PanelLayout layout =
      PanelLayout{4, 4, sizeof(float), 2, S::lanes, 32, true, false, 32, true}.at_pace(16.0 / products);

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16x3<S>(a, layout); }
  // In each part the upper pieces, then the lower ones.
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    auto* const values = reinterpret_cast<std::uint16_t*>(to->pieces);
    for (Index k = 0; k < round_up(count, layout.part); ++k) {
      const float x = k < count ? from[k] : 0.0f;
      std::uint16_t* const part = values + k / layout.part * 2 * layout.part + k % layout.part;
      part[0] = to_bfloat16(x);
      part[layout.part] = lower_bfloat16(x);
    }
    return 1;
  }
};

using AmxBfloat16 = AmxFloat<Bfloat16Pieces>;
using AmxBfloat16x3 = AmxFloat<Bfloat16x3Pieces>;

// Operands as two bytes, whose sums are apart until a block ends.
struct AmxInt8 {
  using S = Simd<float>;
  struct Word {
    Pair bytes[2];
  };
  static constexpr PanelLayout layout =
      PanelLayout{1, 2, sizeof(float), 4, S::lanes, kMostInt8Terms, true, true, 64, true}.at_pace(16);
  static constexpr bool trains = false;
  static constexpr int most_sums = 2;

  static void pack(const PackWeightsArgs<float>& a) { pack_int8<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float least, Word* to) {
    return round_to_bytes(from, count, least, layout.part, round_up(count, layout.part),
                          reinterpret_cast<std::int8_t*>(to));
  }

  // A part of the terms.
  template <class Product, int R, int N, int W>
  static GATEDRNN_INLINE void add_step(const unsigned char* x, Index x_stride, const unsigned char* w) {
    const auto add = [](auto c, auto x, auto w) __attribute__((always_inline)) { Tiles::add_int8<c, x, w>(); };
    Product::template add<R, N, W, 0>(x, x_stride, w, add);
    Product::template add<R, N, W, sums_of_piece>(x + kTileBytes, x_stride, w, add);
  }

  template <class Product, int R, int N, int W, class Beside>
  static void multiply_tile(int rows, const TileArgs<Product>& a, Beside& beside) {
    const Index x_stride = Product::operand_stride(a);
    beside.spread_over(ceil_div(a.terms->depth(), Product::layout.part));
    Tiles::fence();
    for (Index block = 0; block < a.last_block; ++block) {
      for_constants<pieces * sums_of_piece>([&](auto sums) __attribute__((always_inline)) { Tiles::zero<sums>(); });
      const Index begin = a.terms->begin(block) / Product::layout.part;
      const Index end = ceil_div(a.terms->begin(block + 1), Product::layout.part);
      for (Index step = begin; step < end; ++step) {
        add_step<Product, R, N, W>(Product::operands(a, step), x_stride, Product::template weights<W>(a, step));
        beside.step();
      }
      alignas(64) std::int32_t sums[pieces][sums_of_piece][kTileRows][S::lanes];
      for_constants<R * N>([&](auto i) __attribute__((always_inline)) {
        Tiles::store<i>(sums[0][i], kTileBytes);
        Tiles::store<sums_of_piece + i>(sums[1][i], kTileBytes);
      });
      for (int v = 0; v < N; ++v)
        for (int row = 0; row < rows; ++row) {
          const int i = v * R + row / kTileRows;
          add_block<Product, N>(a, block == 0, v, row, sums[0][i][row % kTileRows], sums[1][i][row % kTileRows]);
        }
    }
  }

 private:
  static constexpr int pieces = 2, sums_of_piece = 2;

  template <class Product, int N>
  static GATEDRNN_INLINE void add_block(const TileArgs<Product>& a, bool first, int v, int row,
                                        const std::int32_t* upper, const std::int32_t* lower) {
    alignas(64) float sum[S::lanes];
    for (int i = 0; i < S::lanes; ++i) sum[i] = static_cast<float>(upper[i] * 256 + lower[i]);
    float* const out = a.out.data + row * a.out.row_stride + v * S::lanes;
    const auto& from = v == N - 1 ? a.last_in : a.in;
    const float* const in = first ? from.data + row * from.row_stride + (v == N - 1 ? 0 : v * S::lanes) : out;
    const auto unit = S::load(reinterpret_cast<const float*>(a.unit_scales) + v * S::lanes);
    S::store(out, S::madd(S::load(sum), S::mul(unit, S::set(a.row_scales[row])), S::load(in)));
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
