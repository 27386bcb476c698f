// One stage of a time step's backward: the product with the transposed weights, and on its last slice the cell's backward,
// applied while the tile is in the first-level cache.
#pragma once

#include "beside.h"
#include "functions.h"
#include "left_side.h"
#include "partial.h"
#include "product.h"
#include "stages.h"

namespace gatedrnn::GATEDRNN_ISA {

// One row's vector of units, as a cell's mathematics sees it going back (gatedrnn/cells.h).
template <class Arithmetic>
struct BackPlace {
  using S = Arithmetic;
  using T = typename S::T;
  using V = typename S::V;

  const BackStepArgs<T>& a;
  Index row, unit;
  const T* products;  // of these units

  Index room() const { return a.units - unit; }

  // Arrays that end with the last unit, and come from afar.
  GATEDRNN_INLINE const T* kept_at(Index slot) const {
    return a.kept + row * a.kept_stride + kept_offset(a.kept_slots, slot, unit, a.units, S::lanes);
  }
  GATEDRNN_INLINE const T* c_at() const {
    return a.c + row * a.c_stride + kept_offset(a.c_slots, a.c_slots - 1, unit, a.units, S::lanes);
  }
  GATEDRNN_INLINE const T* d_y_at() const { return a.d_y[row] + unit; }
  GATEDRNN_INLINE V kept(Index slot) const { return load_first<S>(kept_at(slot), room()); }
  GATEDRNN_INLINE V c_before() const { return load_first<S>(c_at(), room()); }
  GATEDRNN_INLINE V h_before() const { return load_first<S>(a.h[row] + unit, room()); }
  GATEDRNN_INLINE V h_after() const { return h_before(); }  // the caller lists what the cell reads
  GATEDRNN_INLINE void prefetch() const {
    for (Index slot = 0; slot < a.kept_slots; ++slot) prefetch_line(kept_at(slot));
    if (a.c) prefetch_line(c_at());
    if (a.d_y) prefetch_line(d_y_at());
  }

  // Arrays of whole vectors.
  GATEDRNN_INLINE V load(const T* array) const { return S::load(array + row * a.state_stride + unit); }
  GATEDRNN_INLINE void store(T* array, V value) const { S::store(array + row * a.state_stride + unit, value); }
  GATEDRNN_INLINE V peephole(int i) const { return S::load(a.peephole + i * a.slot_stride + unit); }
  GATEDRNN_INLINE void set_d_a(int slot, V value) const {
    S::store(a.d_a + row * a.d_a_stride + slot * a.slot_stride + unit, value);
    if (a.streamed_d_a) S::stream(a.streamed_d_a + row * a.streamed_d_a_stride + slot * a.slot_stride + unit, value);
  }
  GATEDRNN_INLINE V d_c() const { return load(a.d_c); }
  GATEDRNN_INLINE void set_d_c(V value) const { store(a.d_c, value); }
  GATEDRNN_INLINE V carry() const { return load(a.carry); }
  GATEDRNN_INLINE void set_carry(V value) const { store(a.carry, value); }
  GATEDRNN_INLINE void set_operand_of_weights(V value) const {
    if (a.operand_of_weights) S::store(a.operand_of_weights + row * a.operand_of_weights_stride + unit, value);
  }

  GATEDRNN_INLINE V product() const { return S::load(products); }

  GATEDRNN_INLINE const CellOptions<T>& options() const { return *a.options; }
  GATEDRNN_INLINE V apply(int i, V x) const { return activation<S>(options().activations[i], x); }
  GATEDRNN_INLINE V slope(int i, V x, V y) const { return activation_slope<S>(options().activations[i], x, y); }

  // Everything that h[t] had a part in.
  GATEDRNN_INLINE V d_h() const {
    V d = product();
    if (a.carry) d = S::add(d, carry());
    if (a.d_y) d = S::add(d, load_first<S>(d_y_at(), room()));
    return d;
  }

  // A linear stage's result.
  GATEDRNN_INLINE void give(V value) const {
    T* out = a.out[row] + unit;
    store_first<S>(out, a.add ? S::add(load_first<S>(out, room()), value) : value, room());
  }
};

template <class S, class Visit>
GATEDRNN_INLINE void for_each_place(const BackStepArgs<typename S::T>& a, const TilePlace& at,
                                    const typename S::T* products, Visit&& visit) {
  constexpr Index row_size = kBackVectors * S::lanes;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r)
      for (int u = 0; u < kBackVectors; ++u) {
        const Index unit = ((at.panel + p) * kBackVectors + u) * S::lanes;
        if (unit >= a.units) break;
        visit(BackPlace<S>{a, at.row + r, unit, products + p * a.products_panel_stride + r * row_size + u * S::lanes});
      }
}

template <class Product, class Stage>
void back_step(const BackStepArgs<typename Product::T>& a) noexcept {
  using S = typename Product::S;
  using T = typename Product::T;
  using Unit = BackPlace<S>;
  constexpr int N = kBackVectors;
  constexpr Index row_size = N * S::lanes;
  alignas(64) T zeros[row_size] = {};
  constexpr PanelLayout layout = Product::layout;
  // Where operands are rounded, the padding of slots is a part of the sums, and zero.
  const Index slot_stride = layout.rounds ? layout.slot_stride(a.slot_units) : a.slot_stride;
  const Terms terms(a.depth, layout.rounds ? slot_stride : a.slot_units, slot_stride, layout.block_terms);
  LeftSide<Product> left{};
  if constexpr (layout.rounds) {
    if (a.depth > 0)
      left = rounded<Product>(
          a.rounded, a.rows, (a.depth - a.slot_units) / slot_stride + 1, a.slot_units, a.depth, T(0),
          [&](Index row, Index slot) { return a.operand + row * a.operand_stride + slot * a.slot_stride; });
  } else {
    left = {a.operand, a.operand_stride, nullptr};
  }
  const EvenRows rows(left.stride);

  const auto products_at = [&](const TilePlace& at) {
    return a.products + at.panel * a.products_panel_stride + at.row * row_size;
  };
  auto cells = cells_of<Product>([&](const TilePlace& at) __attribute__((always_inline)) {
    for_each_place<S>(a, at, products_at(at),
                      [](const Unit& unit) __attribute__((always_inline)) { Stage::backward(unit); });
  });

  Product::template for_each_tile<N>(
      *a.core, a.rows, a.first_panel, a.last_panel, terms, a.weights, a.panels_reversed,
      [&](const TilePlace& at, TileArgs<Product>& tile) {
        T* z = products_at(at);
        left.place(tile, at.row, at.begin);
        tile.row_at = rows.at;
        tile.out = {z + at.vector * S::lanes, a.products_panel_stride, row_size};
        start_from<Product>(tile, {tile.out.data, a.products_panel_stride, row_size}, at.vectors);
        if (at.begin == 0) start_from<Product>(tile, {zeros, 0, 0}, at.vectors);
        // What the cells will need from afar, while the product before them is computed; a single row's
        // tape is near. (All of it inlined: GCC takes a call that only prefetches for one without effect.)
        if (at.last && at.rows > 1)
          for_each_place<S>(a, at, z, [](const Unit& unit) __attribute__((always_inline)) { unit.prefetch(); });
        Product::template multiply<N>(at.rows, at.panels, at.vectors, tile, cells);
        if (at.last && !a.product_only) cells.add(at);
      });
  cells.finish();
}

}  // namespace gatedrnn::GATEDRNN_ISA
