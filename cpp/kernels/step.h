// One stage of a time step: the recurrent product, and on its last slice the cell, applied while the tile is in the
// first-level cache.
#pragma once

#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"
#include "partial.h"
#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

// Where one row's vector of units stands in the step's arrays.
template <class S>
struct UnitVector {
  using T = typename S::T;
  using V = typename S::V;

  const StepArgs<T>& a;
  Index row, unit;

  Index at() const { return row * a.state_stride + unit; }
  GATEDRNN_INLINE V load(const T* array) const { return S::load(array + at()); }
  GATEDRNN_INLINE void store(T* array, V value) const { S::store(array + at(), value); }

  // h[t], to the state and to the caller's output, which has no room for lanes past the last unit.
  GATEDRNN_INLINE void store_h(V h) const {
    store(a.h_next, h);
    if (!a.y) return;
    T* const y = a.y[row] + unit;
    if (a.y_write == Write::streamed)
      stream_first<S>(y, h, a.units - unit);
    else
      store_first<S>(y, h, a.units - unit);
  }

  GATEDRNN_INLINE void keep(int slot, V value) const {
    T* kept = a.kept + row * a.kept_stride + kept_offset(a.kept_slots, slot, unit, a.units, S::lanes);
    if (a.kept_write == Write::streamed)
      stream_first<S>(kept, value, a.units - unit);
    else
      store_first<S>(kept, value, a.units - unit);
  }
};

// The cell on one vector of units, in two passes over the tile: one long chain of dependent operations per vector would leave
// the processor waiting, two short ones overlap with their neighbours'. `z` holds the finished pre-activations, from which the
// first pass may leave values for the second, and `slots` all of the row's slots in the gates buffer, both [slot][unit
// vector][lanes]; `u` counts unit vectors and `panel` panels.
template <class S>
struct Place {
  using T = typename S::T;
  UnitVector<S> at;
  T* z;
  const T* slots;
  int u;
  Index panel;

  GATEDRNN_INLINE typename S::V load(int vector) const { return S::load(z + vector * S::lanes); }
  GATEDRNN_INLINE void store(int vector, typename S::V value) const { S::store(z + vector * S::lanes, value); }
};

// `keeping` says whether the step also keeps what its backward needs.
template <class S, Stage stage, bool keeping>
struct Finish;

template <class S, bool peephole, bool keeping>
struct FinishLstm {
  using Cell = cells::Lstm<S>;
  static constexpr bool two_passes = true;

  static GATEDRNN_INLINE void first(const Place<S>& p) {
    auto i = p.load(0), f = p.load(1), o = p.load(3), c = p.at.load(p.at.a.c);
    const auto g = p.load(2);
    if constexpr (peephole) {
      i = S::madd(weight(p, 0), c, i);
      f = S::madd(weight(p, 1), c, f);
    }
    const auto next = Cell::next_cell(i, f, g, c);
    p.at.store(p.at.a.c, next.c);
    if constexpr (peephole) p.store(3, S::madd(weight(p, 2), next.c, o));
    if constexpr (keeping) {
      p.at.keep(0, next.i);
      p.at.keep(1, next.f);
      p.at.keep(2, next.g);
      p.at.keep(4, next.c);
    }
  }

  static GATEDRNN_INLINE void second(const Place<S>& p) {
    const auto output = Cell::output(p.load(3), p.at.load(p.at.a.c));
    p.at.store_h(output.h);
    if constexpr (keeping) p.at.keep(3, output.o);
  }

  static GATEDRNN_INLINE typename S::V weight(const Place<S>& p, int gate) {
    return S::load(p.at.a.peephole + (p.panel * 3 + gate) * S::lanes);
  }
};

template <class S, bool keeping>
struct Finish<S, Stage::lstm, keeping> : FinishLstm<S, false, keeping> {};

template <class S, bool keeping>
struct Finish<S, Stage::lstm_peephole, keeping> : FinishLstm<S, true, keeping> {};

// `e` is the update gate's exponential, `n` the candidate's pre-activation.
template <bool keeping, class S>
GATEDRNN_INLINE void finish_gru(const Place<S>& p, typename S::V e, typename S::V n) {
  const auto blend = cells::Gru<S>::blend(e, n, p.at.load(p.at.a.h));
  p.at.store_h(blend.h);
  if constexpr (keeping) {
    p.at.keep(1, blend.z);
    p.at.keep(2, blend.n);
  }
}

template <class S, bool keeping>
struct Finish<S, Stage::gru, keeping> {
  using Cell = cells::Gru<S>;
  using A = cells::Activations<S>;
  static constexpr bool two_passes = true;

  static GATEDRNN_INLINE void first(const Place<S>& p) {
    const auto r = A::sigmoid(p.load(0)), n_h = p.load(2);
    p.store(2, Cell::candidate_reset_after(S::load(p.slots), r, n_h));
    p.store(1, Cell::update(p.load(1)));
    if constexpr (keeping) {
      p.at.keep(0, r);
      p.at.keep(3, n_h);
    }
  }

  static GATEDRNN_INLINE void second(const Place<S>& p) { finish_gru<keeping>(p, p.load(1), p.load(2)); }
};

template <class S>
struct OnePass {
  static constexpr bool two_passes = false;
  static GATEDRNN_INLINE void second(const Place<S>&) {}
};

template <class S, bool keeping>
struct Finish<S, Stage::gru_before_gates, keeping> : OnePass<S> {
  using Cell = cells::Gru<S>;
  static GATEDRNN_INLINE void first(const Place<S>& p) {
    constexpr int unit_vectors = stage_layout(Stage::gru_before_gates).unit_vectors;
    const auto r = cells::Activations<S>::sigmoid(p.load(p.u));
    p.at.store(p.at.a.reset_h, S::mul(r, p.at.load(p.at.a.h)));
    p.at.store(p.at.a.update, Cell::update(p.load(unit_vectors + p.u)));
    if constexpr (keeping) p.at.keep(0, r);
  }
};

template <class S, bool keeping>
struct Finish<S, Stage::gru_before_candidate, keeping> : OnePass<S> {
  static GATEDRNN_INLINE void first(const Place<S>& p) {
    finish_gru<keeping>(p, p.at.load(p.at.a.update), p.load(p.u));
  }
};

template <class S, bool keeping>
struct Finish<S, Stage::rnn_tanh, keeping> : OnePass<S> {
  static GATEDRNN_INLINE void first(const Place<S>& p) { p.at.store_h(cells::Rnn<S>::tanh(p.load(p.u))); }
};

template <class S, bool keeping>
struct Finish<S, Stage::rnn_relu, keeping> : OnePass<S> {
  static GATEDRNN_INLINE void first(const Place<S>& p) { p.at.store_h(cells::Rnn<S>::relu(p.load(p.u))); }
};

template <class S, bool keeping>
struct Finish<S, Stage::linear, keeping> : OnePass<S> {
  static GATEDRNN_INLINE void first(const Place<S>& p) { p.at.store_h(p.load(p.u)); }
};

// The cell on a tile whose product is done, its pre-activations in the gates buffer.
template <class S, Stage stage, void (*pass)(const Place<S>&)>
GATEDRNN_INLINE void finish(const StepArgs<typename S::T>& a, const TilePlace& at) {
  using T = typename S::T;
  constexpr StageLayout layout = stage_layout(stage);
  constexpr Index row_size = layout.slots * layout.unit_vectors * S::lanes;
  constexpr Index step_slots = layout.first_step_slot() * layout.unit_vectors * S::lanes;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r)
      for (int u = 0; u < layout.unit_vectors; ++u) {
        const Index panel = at.panel + p, unit = (panel * layout.unit_vectors + u) * S::lanes;
        if (unit >= a.units) break;
        T* slots = a.gates + panel * a.gates_panel_stride + (at.row + r) * row_size;
        pass(Place<S>{{a, at.row + r, unit}, slots + step_slots, slots, u, panel});
      }
}

// The tape's lines that the tile's cells will write, on their way while the product before is computed. (All of it inlined: GCC
// takes a call that only prefetches for one without effect.)
template <class S, Stage stage>
GATEDRNN_INLINE void fetch_written(const StepArgs<typename S::T>& a, const TilePlace& at) {
  constexpr Index width = stage_layout(stage).unit_vectors * S::lanes;
  constexpr bool keeps_first = stage != Stage::gru_before_candidate, delivers = stage != Stage::gru_before_gates;
  for (int p = 0; p < at.panels; ++p)
    for (int r = 0; r < at.rows; ++r) {
      const Index row = at.row + r, unit = (at.panel + p) * width;
      const Index units = a.units - unit < width ? a.units - unit : width;
      if (keeps_first && a.kept_write == Write::fetched)
        prefetch_lines(a.kept + row * a.kept_stride + unit * a.kept_slots, units * a.kept_slots);
      if (delivers && a.y && a.y_write == Write::fetched) prefetch_lines(a.y[row] + unit, units);
    }
}

template <class S, Stage stage, bool keeping>
void step(const StepArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  using Cell = Finish<S, stage, keeping>;
  constexpr StageLayout layout = stage_layout(stage);
  constexpr int N = layout.vectors();
  constexpr Index row_size = layout.slots * layout.unit_vectors * S::lanes;
  constexpr Index step_slots = layout.first_step_slot() * layout.unit_vectors * S::lanes;
  alignas(64) T zeros[N * S::lanes] = {};
  const EvenRows rows(a.state_stride);

  for_each_tile<N, S>(*a.core, a.rows, a.first_panel, a.last_panel, Terms(a.depth), a.weights, a.panels_reversed,
                      [&](const TilePlace& at, TileArgs<T>& tile) {
                        T* z = a.gates + at.panel * a.gates_panel_stride + at.row * row_size + step_slots +
                               at.vector * S::lanes;
                        tile.x = a.operand + at.row * a.state_stride + at.begin;
                        tile.row_at = rows.at;
                        tile.out = {z, a.gates_panel_stride, row_size};
                        start_from<S>(tile, {z, a.gates_panel_stride, row_size}, at.vectors);
                        if (at.begin == 0) {  // where nothing was projected
                          if (stage == Stage::linear) start_from<S>(tile, {zeros, 0, 0}, at.vectors);
                          if (stage == Stage::gru)
                            tile.last_in = {a.bias + (at.panel + 1) * row_size - S::lanes, row_size, 0};
                        }
                        if (keeping && at.last && a.rows > 1) fetch_written<S, stage>(a, at);
                        if (a.depth > 0) multiply<S, N>(at.rows, at.panels, at.vectors, tile);
                        if (!at.last || a.product_only) return;
                        finish<S, stage, Cell::first>(a, at);
                        if constexpr (Cell::two_passes) finish<S, stage, Cell::second>(a, at);
                      });
}

}  // namespace gatedrnn::GATEDRNN_ISA
