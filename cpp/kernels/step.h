// One stage of a time step: the recurrent product, and on its last slice the cell, applied while the tile is in the
// first-level cache.
#pragma once

#include "beside.h"
#include "functions.h"
#include "left_side.h"
#include "partial.h"
#include "product.h"
#include "stages.h"

namespace gatedrnn::GATEDRNN_ISA {

// One row's vector of units, as a cell's mathematics sees it (gatedrnn/cells.h). `keeping` says whether the step also keeps what its
// backward needs.
template <class Arithmetic, class Stage, bool keeping>
struct Place {
  using S = Arithmetic;
  using T = typename S::T;
  using V = typename S::V;
  static constexpr int unit_vectors = Stage::description.unit_vectors();

  const StepArgs<T>& a;
  Index row, panel;
  int u;     // the unit vector in the panel
  T* slots;  // the row's gates in the panel: [slot][unit vector][lanes]

  Index unit() const { return (panel * unit_vectors + u) * S::lanes; }
  Index at() const { return row * a.state_stride + unit(); }

  GATEDRNN_INLINE T* slot_at(int slot) const { return slots + (slot * unit_vectors + u) * S::lanes; }
  GATEDRNN_INLINE V gate(int slot) const { return S::load(slot_at(slot)); }
  GATEDRNN_INLINE void leave(int slot, V value) const { S::store(slot_at(slot), value); }
  GATEDRNN_INLINE V h() const { return S::load(a.h + at()); }
  GATEDRNN_INLINE V c() const { return S::load(a.c + at()); }
  GATEDRNN_INLINE void set_c(V value) const { S::store(a.c + at(), value); }
  GATEDRNN_INLINE V peephole(int i) const {
    return S::load(a.peephole + ((panel * Stage::peepholes + i) * unit_vectors + u) * S::lanes);
  }
  GATEDRNN_INLINE void set_operand(V value) const { S::store(a.second_operand + at(), value); }
  GATEDRNN_INLINE void carry_over(V value) const { S::store(a.carried + at(), value); }
  GATEDRNN_INLINE V carried_over() const { return S::load(a.carried + at()); }
  GATEDRNN_INLINE const CellOptions<T>& options() const { return *a.options; }
  GATEDRNN_INLINE V apply(int i, V x) const { return activation<S>(options().activations[i], x); }

  // h[t], to the state and to the caller's output, which has no room for lanes past the last unit.
  GATEDRNN_INLINE void deliver(V h) const {
    S::store(a.h_next + at(), h);
    if (!a.y) return;
    T* const y = a.y[row] + unit();
    if (a.y_write == Write::streamed)
      stream_first<S>(y, h, a.units - unit());
    else
      store_first<S>(y, h, a.units - unit());
  }

  GATEDRNN_INLINE void keep(int slot, V value) const {
    if constexpr (keeping) {
      T* kept = a.kept + row * a.kept_stride + kept_offset(a.kept_slots, slot, unit(), a.units, S::lanes);
      if (a.kept_write == Write::streamed)
        stream_first<S>(kept, value, a.units - unit());
      else
        store_first<S>(kept, value, a.units - unit());
    }
  }
};

// `pass` over the units of a tile whose product is done, its pre-activations in the gates buffer.
template <class S, class Stage, bool keeping, class Pass>
GATEDRNN_INLINE void for_each_place(const StepArgs<typename S::T>& a, const TilePlace& at, Pass&& pass) {
  constexpr StageDescription stage = Stage::description;
  constexpr Index row_size = stage.slots * stage.unit_vectors() * S::lanes;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r)
      for (int u = 0; u < stage.unit_vectors(); ++u) {
        const Index panel = at.panel + p;
        const Place<S, Stage, keeping> place{a, at.row + r, panel, u,
                                             a.gates + panel * a.gates_panel_stride + (at.row + r) * row_size};
        if (place.unit() >= a.units) break;
        pass(place);
      }
}

template <class S, class Stage, bool keeping>
GATEDRNN_INLINE void finish(const StepArgs<typename S::T>& a, const TilePlace& at) {
  using Unit = Place<S, Stage, keeping>;
  constexpr bool two_passes = Stage::description.two_passes;
  for_each_place<S, Stage, keeping>(a, at, [](const Unit& unit) __attribute__((always_inline)) {
    Stage::first(unit);
    if constexpr (!two_passes) Stage::second(unit);
  });
  if constexpr (two_passes)
    for_each_place<S, Stage, keeping>(a, at,
                                      [](const Unit& unit) __attribute__((always_inline)) { Stage::second(unit); });
}

// The tape's lines that the tile's cells will write, on their way while the product before is computed. (All of it inlined: GCC
// takes a call that only prefetches for one without effect.)
template <class S, class Stage>
GATEDRNN_INLINE void fetch_written(const StepArgs<typename S::T>& a, const TilePlace& at) {
  constexpr Index width = Stage::description.unit_vectors() * S::lanes;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r) {
      const Index row = at.row + r, unit = (at.panel + p) * width;
      const Index units = a.units - unit < width ? a.units - unit : width;
      if (Stage::is_first && a.kept_write == Write::fetched)
        prefetch_lines(a.kept + row * a.kept_stride + unit * a.kept_slots, units * a.kept_slots);
      if (Stage::is_last && a.y && a.y_write == Write::fetched) prefetch_lines(a.y[row] + unit, units);
    }
}

template <class Product, class Stage, bool keeping>
void step(const StepArgs<typename Product::T>& a) noexcept {
  using S = typename Product::S;
  using T = typename Product::T;
  constexpr StageDescription stage = Stage::description;
  constexpr int N = stage.vectors();
  constexpr Index row_size = stage.slots * stage.unit_vectors() * S::lanes;
  constexpr Index step_slots = stage.first_operand_slot() * stage.unit_vectors() * S::lanes;
  // No sum of a projection goes on from inputs, nor do products that are normalised by themselves.
  constexpr bool from_zero = std::is_same_v<Stage, LinearStage> || stage.slots == 2 * stage.gates;
  alignas(64) T zeros[N * S::lanes] = {};
  LeftSide<Product> left{};
  if constexpr (Product::layout.rounds) {
    if (a.depth > 0)
      left = rounded<Product>(a.rounded, a.rows, 1, a.depth, a.depth, T(1),
                              [&](Index row, Index) { return a.operand + row * a.state_stride; });
  } else {
    left = {a.operand, a.state_stride, nullptr};
  }
  const EvenRows rows(left.stride);
  auto cells =
      cells_of<Product>([&](const TilePlace& at) __attribute__((always_inline)) { finish<S, Stage, keeping>(a, at); });

  Product::template for_each_tile<N>(
      *a.core, a.rows, a.first_panel, a.last_panel, Terms(a.depth, Product::layout.block_terms), a.weights,
      a.panels_reversed, [&](const TilePlace& at, TileArgs<Product>& tile) {
        T* z = a.gates + at.panel * a.gates_panel_stride + at.row * row_size + step_slots + at.vector * S::lanes;
        left.place(tile, at.row, at.begin);
        tile.row_at = rows.at;
        tile.out = {z, a.gates_panel_stride, row_size};
        start_from<Product>(tile, {z, a.gates_panel_stride, row_size}, at.vectors);
        if (at.begin == 0) {  // where no input was multiplied
          if (from_zero) start_from<Product>(tile, {zeros, 0, 0}, at.vectors);
          if (!from_zero && stage.slots > stage.gates && at.vector + at.vectors == N)
            tile.last_in = {a.bias + (at.panel + 1) * row_size - S::lanes, row_size, 0};
        }
        if (keeping && at.last && a.rows > 1) fetch_written<S, Stage>(a, at);
        if (a.depth > 0) Product::template multiply<N>(at.rows, at.panels, at.vectors, tile, cells);
        if (at.last && !a.product_only) cells.add(at);
      });
  cells.finish();
}

}  // namespace gatedrnn::GATEDRNN_ISA
