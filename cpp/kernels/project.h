// The input half of the pre-activations, for as many (time step, row) pairs as the caller lists.
#pragma once

#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// The reset-after GRU's recurrent candidate starts from its own bias, in the slots that the product below does not fill.
template <class S, Stage stage>
void seed_recurrent_slots(const ProjectArgs<typename S::T>& a) {
  constexpr StageLayout layout = stage_layout(stage);
  constexpr int filled = layout.vectors(), all = layout.slots * layout.unit_vectors;
  for (Index panel = a.first_panel; panel < a.last_panel; ++panel)
    for (Index row = 0; row < a.rows; ++row)
      for (int v = filled; v < all; ++v)
        S::store(a.gates + panel * a.gates_panel_stride + (row * all + v) * S::lanes,
                 S::load(a.bias + (panel * all + v) * S::lanes));
}

template <class S, Stage stage>
void project(const ProjectArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  constexpr StageLayout layout = stage_layout(stage);
  constexpr int N = layout.vectors();
  constexpr Index row_size = layout.slots * layout.unit_vectors * S::lanes;
  for_each_tile<N, S>(a.rows, a.first_panel, a.last_panel, a.depth, a.weights, a.backwards,
                      [&](const TilePlace& at, TileArgs<T>& tile) {
                        T* gates = a.gates + at.panel * a.gates_panel_stride + at.row * row_size + at.vector * S::lanes;
                        for (int r = 0; r < at.rows; ++r) tile.x[r] = a.x[at.row + r] + at.begin;
                        tile.out = {gates, a.gates_panel_stride, row_size};
                        tile.in = {gates, a.gates_panel_stride, row_size};
                        if (at.begin == 0) tile.in = {a.bias + at.panel * row_size + at.vector * S::lanes, row_size, 0};
                        multiply<S, N>(at.rows, at.panels, at.vectors, tile);
                      });
  if constexpr (layout.slots > layout.gates) seed_recurrent_slots<S, stage>(a);
}

}  // namespace gatedrnn::GATEDRNN_ISA
