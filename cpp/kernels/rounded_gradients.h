// The gradients of weights in formats that round their operands: the same product as everywhere else, of columns of d by rows of x.
// Its terms are the (step, row) pairs, each block of which is filled up with zeros to whole parts, so that no part of the terms, and so
// no sum of it, belongs to two blocks of pairs; and its sums start from those of the slices before.
#pragma once

#include "beside.h"
#include "left_side.h"
#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Product>
struct RoundedGradients {
  using S = typename Product::S;
  using T = typename Product::T;
  using Word = typename Product::Word;
  static constexpr PanelLayout layout = Product::layout;
  static constexpr int W = kBackVectors;  // of a panel
  static constexpr Index panel_units = W * S::lanes, part = layout.part;
  static_assert(layout.rounds && kRoundedGemmColumns % S::lanes == 0 && part % S::lanes == 0);

  // [panel][part of the pairs], each as weights are.
  static void pack_rows(const PackRowsArgs<T>& a) noexcept {
    alignas(64) T rows[part][panel_units];
    auto* to = static_cast<unsigned char*>(a.to);
    for (Index unit = 0; unit < a.depth; unit += panel_units)
      for_each_part(a.pairs, [&](Index first, Index count) {
        for (Index n = 0; n < part; ++n)
          for (Index u = 0; u < panel_units; u += S::lanes)
            S::store(rows[n] + u, n < count && unit + u < a.depth
                                      ? load_first<S>(a.rows[first + n] + unit + u, a.depth - unit - u)
                                      : S::set(0));
        for (int v = 0; v < W; ++v)
          Product::pack(
              {rows[0] + v * S::lanes, 1, panel_units, S::lanes, part, to + v * layout.vector_bytes(), W, nullptr});
        to += layout.weights_bytes(part, W);
      });
  }

  // [group][column][pair], each as operands are.
  static void pack_columns(const PackColumnsArgs<T>& a) noexcept {
    alignas(64) T columns[S::lanes][part];
    const Index stride = left_stride(a.pairs);
    for (Index column = 0; column < a.columns; column += S::lanes) {
      Word* to = static_cast<Word*>(a.to) + column * stride;
      for_each_part(a.pairs, [&](Index first, Index count) {
        for (Index n = 0; n < part; n += S::lanes) transpose(a, first + n, count - n, column, columns[0] + n);
        for (Index c = 0; c < S::lanes; ++c) Product::round(columns[c], part, 0, to + c * stride);
        to += part / layout.terms;
      });
    }
  }

  static void transposed_gemm(const TransposedGemmArgs<T>& a) noexcept {
    alignas(64) T zeros[panel_units] = {};
    const Index depth = padded(a.pairs);
    const Terms terms(depth, part);
    const LeftSide<Product> left{static_cast<const Word*>(a.d), left_stride(a.pairs), nullptr};
    const EvenRows rows(left.stride);
    auto no_cells = cells_of<Product>([](const TilePlace&) {});
    Product::template for_each_tile<W>(*a.core, a.columns, 0, ceil_div(a.depth, panel_units), terms, a.x, false,
                                       [&](const TilePlace& at, TileArgs<Product>& tile) {
                                         T* const sums =
                                             a.sums + at.row * a.sums_stride + (at.panel * W + at.vector) * S::lanes;
                                         left.place(tile, at.row, at.begin);
                                         tile.row_at = rows.at;
                                         tile.out = {sums, panel_units, a.sums_stride};
                                         start_from<Product>(tile, {sums, panel_units, a.sums_stride}, at.vectors);
                                         if (a.from_zero && at.begin == 0)
                                           start_from<Product>(tile, {zeros, 0, 0}, at.vectors);
                                         Product::template multiply<W>(at.rows, at.panels, at.vectors, tile, no_cells);
                                       });
  }

 private:
  // `visit(first, count)` for each part of the terms: its pairs, counted from the first of all.
  template <class Visit>
  static GATEDRNN_INLINE void for_each_part(const Pairs& pairs, Visit&& visit) {
    for (Index block = 0, first = pairs.first; block < pairs.blocks; first = pairs.ends[block++])
      for (Index n = first; n < pairs.ends[block]; n += part) {
        const Index left = pairs.ends[block] - n;
        visit(n - pairs.first, left < part ? left : part);
      }
  }
  static Index padded(const Pairs& pairs) {
    Index terms = 0;
    for_each_part(pairs, [&](Index, Index) { terms += part; });
    return terms;
  }
  // Words, from column to column.
  static Index left_stride(const Pairs& pairs) {
    return layout.rounded_stride(padded(pairs)) / static_cast<Index>(sizeof(Word));
  }

  // As many columns and pairs as a vector has lanes; past the last pair there are zeros.
  static GATEDRNN_INLINE void transpose(const PackColumnsArgs<T>& a, Index pair, Index count, Index column, T* to) {
    typename S::Block block;
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      block.packet[i] = i < count ? S::load(a.from + (pair + i) * a.stride + column) : S::set(0);
    S::transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i) S::store(to + i * part, block.packet[i]);
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA
