// The input half of the pre-activations, for as many (time step, row) pairs as the caller lists.
#pragma once

#include "beside.h"
#include "left_side.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Product, int gates, int slots, int unit_vectors>
void input_gemm(const InputGemmArgs<typename Product::T>& a) noexcept {
  using S = typename Product::S;
  using T = typename Product::T;
  constexpr int N = gates * unit_vectors;
  constexpr Index row_size = slots * unit_vectors * S::lanes;
  constexpr PanelLayout layout = Product::layout;
  LeftSide<Product> left{};
  if constexpr (layout.rounds)
    left = rounded<Product>(a.rounded, a.rows, 1, a.depth, a.depth, T(0),
                            [&](Index row, Index) { return a.x + a.x_at[row]; });
  const EvenRows even(layout.rounds ? left.stride : 0);
  auto nothing = cells_of<Product>([](const TilePlace&) {});
  Product::template for_each_tile<N>(
      *a.core, a.rows, a.first_panel, a.last_panel, Terms(a.depth, layout.block_terms), a.weights, a.panels_reversed,
      [&](const TilePlace& at, TileArgs<Product>& tile) {
        T* z = a.gates + at.panel * a.gates_panel_stride + at.row * row_size + at.vector * S::lanes;
        if constexpr (layout.rounds) {
          left.place(tile, at.row, at.begin);
          tile.row_at = even.at;
        } else {
          tile.x = a.x + at.begin;
          tile.row_at = a.x_at + at.row;
        }
        tile.out = {z, a.gates_panel_stride, row_size};
        start_from<Product>(tile, {z, a.gates_panel_stride, row_size}, at.vectors);
        if (at.begin == 0)
          start_from<Product>(tile, {a.bias + at.panel * row_size + at.vector * S::lanes, row_size, 0}, at.vectors);
        Product::template multiply<N>(at.rows, at.panels, at.vectors, tile, nothing);
      });
}

}  // namespace gatedrnn::GATEDRNN_ISA
