// One stage of a time step's backward: the product with the transposed weights, and on its last slice the cell's backward,
// applied while the tile is in the first-level cache.
#pragma once

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// One row's vector of units in the arrays of a step's backward.
template <class S>
struct BackPlace {
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
  GATEDRNN_INLINE V c() const { return load_first<S>(c_at(), room()); }
  GATEDRNN_INLINE V h() const { return load_first<S>(a.h[row] + unit, room()); }
  GATEDRNN_INLINE void prefetch() const {
    for (Index slot = 0; slot < a.kept_slots; ++slot) prefetch_line(kept_at(slot));
    if (a.c) prefetch_line(c_at());
    if (a.d_y) prefetch_line(d_y_at());
  }

  // Arrays of whole vectors.
  GATEDRNN_INLINE V load(const T* array) const { return S::load(array + row * a.state_stride + unit); }
  GATEDRNN_INLINE void store(T* array, V value) const { S::store(array + row * a.state_stride + unit, value); }
  GATEDRNN_INLINE void store_d_a(int slot, V value) const {
    S::store(a.d_a + row * a.d_a_stride + slot * a.slot_stride + unit, value);
    if (a.streamed_d_a) S::stream(a.streamed_d_a + row * a.streamed_d_a_stride + slot * a.slot_stride + unit, value);
  }
  GATEDRNN_INLINE void store_operand_of_weights(V value) const {
    S::store(a.operand_of_weights + row * a.operand_of_weights_stride + unit, value);
  }

  GATEDRNN_INLINE V product() const { return S::load(products); }

  // Everything that h[t] had a part in.
  GATEDRNN_INLINE V d_h() const {
    V d = product();
    if (a.carry) d = S::add(d, load(a.carry));
    if (a.d_y) d = S::add(d, load_first<S>(d_y_at(), room()));
    return d;
  }
};

template <class S, BackStage stage>
struct Back;

template <class S, bool peephole>
struct BackLstm {
  using Cell = cells::Lstm<S>;

  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    const typename Cell::Kept kept{p.kept(0), p.kept(1), p.kept(2), p.kept(3), p.kept(4)};
    typename Cell::Gradients d;
    if constexpr (peephole) {
      const typename Cell::Peephole weights{weight(p, 0), weight(p, 1), weight(p, 2)};
      d = Cell::backward(kept, p.c(), p.d_h(), p.load(p.a.d_c), &weights);
    } else {
      d = Cell::backward(kept, p.c(), p.d_h(), p.load(p.a.d_c), nullptr);
    }
    p.store_d_a(0, d.i);
    p.store_d_a(1, d.f);
    p.store_d_a(2, d.g);
    p.store_d_a(3, d.o);
    p.store(p.a.d_c, d.c);
    if (p.a.operand_of_weights) p.store_operand_of_weights(S::mul(kept.o, cells::Activations<S>::tanh(kept.c)));
  }

  static GATEDRNN_INLINE typename S::V weight(const BackPlace<S>& p, int gate) {
    return S::load(p.a.peephole + gate * p.a.slot_stride + p.unit);
  }
};

template <class S>
struct Back<S, BackStage::lstm> : BackLstm<S, false> {};

template <class S>
struct Back<S, BackStage::lstm_peephole> : BackLstm<S, true> {};

template <class S>
struct Back<S, BackStage::gru> {
  using Cell = cells::Gru<S>;

  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    const auto r = p.kept(0);
    const auto d = Cell::blend_backward(p.kept(1), p.kept(2), p.h(), p.d_h());
    p.store_d_a(0, d.n);
    p.store_d_a(1, Cell::reset_backward(r, p.kept(3), d.n));
    p.store_d_a(2, d.z);
    p.store_d_a(3, S::mul(d.n, r));
    p.store(p.a.carry, d.h);
  }
};

template <class S>
struct Back<S, BackStage::gru_before_candidate> {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    const auto d = cells::Gru<S>::blend_backward(p.kept(1), p.kept(2), p.h(), p.d_h());
    p.store_d_a(1, d.z);
    p.store_d_a(2, d.n);
    p.store(p.a.carry, d.h);
  }
};

template <class S>
struct Back<S, BackStage::gru_before_reset> {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    const auto r = p.kept(0), h = p.h(), d_reset_h = p.product();
    p.store_d_a(0, cells::Gru<S>::reset_backward(r, h, d_reset_h));
    p.store(p.a.carry, S::madd(d_reset_h, r, p.load(p.a.carry)));
    p.store_operand_of_weights(S::mul(r, h));
  }
};

template <class S>
struct Back<S, BackStage::rnn_tanh> {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    p.store_d_a(0, cells::Rnn<S>::tanh_backward(p.h(), p.d_h()));
  }
};

template <class S>
struct Back<S, BackStage::rnn_relu> {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    p.store_d_a(0, cells::Rnn<S>::relu_backward(p.h(), p.d_h()));
  }
};

template <class S>
struct Back<S, BackStage::linear> {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) {
    typename S::T* out = p.a.out[p.row] + p.unit;
    auto d = p.d_h();
    if (p.a.add) d = S::add(load_first<S>(out, p.room()), d);
    store_first<S>(out, d, p.room());
  }
};

// Fetches what the cells will need from afar while the product before them is computed; a single row's tape is near. (All of it
// inlined: GCC takes a call that only prefetches for one without effect.)
template <class S>
struct Fetch {
  static GATEDRNN_INLINE void apply(const BackPlace<S>& p) { p.prefetch(); }
};

template <class S, class Visit>
GATEDRNN_INLINE void for_each_place(const BackStepArgs<typename S::T>& a, const TilePlace& at,
                                    const typename S::T* products) {
  constexpr Index row_size = kBackVectors * S::lanes;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r)
      for (int u = 0; u < kBackVectors; ++u) {
        const Index unit = ((at.panel + p) * kBackVectors + u) * S::lanes;
        if (unit >= a.units) break;
        Visit::apply({a, at.row + r, unit, products + p * a.products_panel_stride + r * row_size + u * S::lanes});
      }
}

template <class S, BackStage stage>
void back_step(const BackStepArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  constexpr int N = kBackVectors;
  constexpr Index row_size = N * S::lanes;
  alignas(64) T zeros[row_size] = {};
  const EvenRows rows(a.operand_stride);

  for_each_tile<N, S>(*a.core, a.rows, a.first_panel, a.last_panel, Terms(a.depth, a.slot_units, a.slot_stride),
                      a.weights, a.panels_reversed, [&](const TilePlace& at, TileArgs<T>& tile) {
                        T* z = a.products + at.panel * a.products_panel_stride + at.row * row_size;
                        tile.x = a.operand + at.row * a.operand_stride + at.begin;
                        tile.row_at = rows.at;
                        tile.out = {z + at.vector * S::lanes, a.products_panel_stride, row_size};
                        start_from<S>(tile, {tile.out.data, a.products_panel_stride, row_size}, at.vectors);
                        if (at.begin == 0) start_from<S>(tile, {zeros, 0, 0}, at.vectors);
                        if (at.last && at.rows > 1) for_each_place<S, Fetch<S>>(a, at, z);
                        multiply<S, N>(at.rows, at.panels, at.vectors, tile);
                        if (at.last) for_each_place<S, Back<S, stage>>(a, at, z);
                      });
}

}  // namespace gatedrnn::GATEDRNN_ISA
