// The mathematics of layer-normalised cells (gatedrnn/cells/layer_norm.h), for which `step` and `back_step` leave the products: one
// stage of one time step, and backward. A row's units are gone through several times, while they are near. No thread has a part of
// them.
#pragma once

#include <cmath>

#include "back_step.h"
#include "step.h"

namespace gatedrnn::GATEDRNN_ISA {

// A sum over units is one of chains, each of which has every so manieth unit, so that no width of vectors changes a bit of it.
constexpr int kSumChains = 16;

template <class S>
GATEDRNN_INLINE typename S::V zero_past(typename S::V value, Index count) {
  if (count >= S::lanes) return value;
  alignas(64) typename S::T values[S::lanes] = {};
  store_first<S>(values, value, count);
  return S::load(values);
}

// The sum of twice as many values, of which each of the first half is added to its like of the other. As a template it stays in
// registers.
template <int half, class T>
GATEDRNN_INLINE T sum_of_pairs(const T* values) {
  T sums[half];
#pragma GCC unroll 8
  for (int i = 0; i < half; ++i) sums[i] = values[i] + values[i + half];
  if constexpr (half == 1)
    return sums[0];
  else
    return sum_of_pairs<half / 2>(sums);
}

// The sum over the units of some slots, of value(slot, unit), a vector of units from there on. Slots have chains of their own, which
// are then added up, and so do not wait for each other.
template <class S, class Value>
GATEDRNN_INLINE typename S::T sum_of_slots(const NormDescription& norm, Index units, Value&& value) {
  static_assert(kSumChains % S::lanes == 0);
  constexpr int vectors = kSumChains / S::lanes;
  typename S::V all[vectors];
  for (int v = 0; v < vectors; ++v) all[v] = S::set(0);
  for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot) {
    typename S::V sums[vectors];
    for (int v = 0; v < vectors; ++v) sums[v] = S::set(0);
    for (Index unit = 0; unit < units; unit += kSumChains)
      for (int v = 0; v < vectors; ++v) {
        const Index at = unit + v * S::lanes;
        if (at < units) sums[v] = S::add(sums[v], zero_past<S>(value(slot, at), units - at));
      }
    for (int v = 0; v < vectors; ++v) all[v] = S::add(all[v], sums[v]);
  }
  alignas(64) typename S::T chains[kSumChains];
  for (int v = 0; v < vectors; ++v) S::store(chains + v * S::lanes, all[v]);
  return sum_of_pairs<kSumChains / 2>(chains);
}

// Of values that are normalised together: their mean, and what they are multiplied with.
template <class T>
struct Moments {
  T mean, scale;
};

template <class S, class Value>
GATEDRNN_INLINE Moments<typename S::T> moments(const NormDescription& norm, Index units, typename S::T eps,
                                               Value&& value) {
  using T = typename S::T;
  const T count = static_cast<T>(norm.slots * units);
  const T mean = sum_of_slots<S>(norm, units, value) / count;
  const T squares = sum_of_slots<S>(norm, units, [&](int slot, Index unit) __attribute__((always_inline)) {
    const auto from_mean = S::sub(value(slot, unit), S::set(mean));
    return S::mul(from_mean, from_mean);
  });
  return {mean, T(1) / std::sqrt(squares / count + eps)};
}

// Several rows take each pass before one takes the next: moments are long chains of operations that wait for each other, and overlap
// with those of other rows. `visit(each)`, where each(pass) calls pass(row) for all rows of a tile.
template <class S, class Row, class Args, class Visit>
GATEDRNN_INLINE void for_tiles_of_rows(const Args& a, Visit&& visit) {
  constexpr Index most = 4;
  for (Index first = 0; first < a.rows; first += most) {
    Moments<typename S::T> moments[most][kMostNorms] = {};
    const Index end = first + most < a.rows ? first + most : a.rows;
    visit([&](auto&& pass) {
      for (Index row = first; row < end; ++row) pass(Row{a, row, moments[row - first]});
    });
  }
}

// What forward and backward have in common, of a place that has value(slot), and weights and biases.
template <class Place, class Stage>
struct NormalizedPlace : Place {
  using S = typename Place::S;
  using T = typename Place::T;
  using V = typename S::V;
  static constexpr CellDescription cell = Stage::Math::description;

  const Moments<T>* moments;  // of each norm

  GATEDRNN_INLINE V normalized(int slot, const Moments<T>& m) const {
    return S::mul(S::sub(this->value(slot), S::set(m.mean)), S::set(m.scale));
  }
  // A pre-activation.
  GATEDRNN_INLINE V gate(int i) const {
    V sum = this->norm(cell.normalized_slots() + i);
    for (int slot = 0; slot < cell.normalized_slots(); ++slot)
      if (cell.pre_activation_of_slot[slot] == i)
        sum = S::madd(normalized(slot, moments[cell.norm_of_slot(slot)]), this->norm(slot), sum);
    return sum;
  }
};

// ---- Forward -----------------------------------------------------------------------------------------------------------

template <class Arithmetic, class Stage, bool keeping>
struct SlotPlace : Place<Arithmetic, Stage, keeping> {
  using Base = Place<Arithmetic, Stage, keeping>;
  using S = Arithmetic;
  using V = typename S::V;
  static constexpr CellDescription cell = Stage::Math::description;
  static constexpr int vectors = cell.normalized_slots() + cell.pre_activations;

  // Before it is normalised.
  GATEDRNN_INLINE V value(int slot) const { return slot < cell.slots ? Base::gate(slot) : Base::c(); }
  GATEDRNN_INLINE V norm(int i) const {
    return S::load(this->a.norm + ((this->panel * vectors + i) * Base::unit_vectors + this->u) * S::lanes);
  }
  GATEDRNN_INLINE void add_product(int slot, V x, V y) const { Base::leave(slot, S::madd(x, y, value(slot))); }
  GATEDRNN_INLINE void keep(int i, V value) const {
    if (i == Stage::Math::own_kept) Base::keep(cell.slots, value);
  }
  GATEDRNN_INLINE void keep_slots() const {
    for (int slot = 0; slot < cell.slots; ++slot) Base::keep(slot, value(slot));
  }
};

template <class S, class Stage, bool keeping>
struct NormalizedRow {
  using T = typename S::T;
  using Unit = NormalizedPlace<SlotPlace<S, Stage, keeping>, Stage>;
  static constexpr CellDescription cell = Stage::Math::description;

  const StepArgs<T>& a;
  Index row;
  Moments<T>* moments;

  GATEDRNN_INLINE Unit at(Index panel, int u) const {
    constexpr Index row_size = cell.stages[0].slots * Unit::unit_vectors * S::lanes;
    return {{{a, row, panel, u, a.gates + panel * a.gates_panel_stride + row * row_size}}, moments};
  }
  template <class Visit>
  GATEDRNN_INLINE void for_units(Visit&& visit) const {
    for (Index panel = a.first_panel; panel < a.last_panel; ++panel)
      for (int u = 0; u < Unit::unit_vectors; ++u) {
        const Unit unit = at(panel, u);
        if (unit.unit() >= a.units) break;
        visit(unit);
      }
  }
  GATEDRNN_INLINE void normalize(bool late) const {
    for (int i = 0; i < cell.norm_count; ++i)
      if (cell.norms[i].late == late)
        moments[i] =
            GATEDRNN_ISA::moments<S>(cell.norms[i], a.units, a.options->layer_norm_eps,
                                     [&](int slot, Index unit) __attribute__((always_inline)) {
                                       const Index vector = unit / S::lanes;
                                       return at(vector / Unit::unit_vectors, vector % Unit::unit_vectors).value(slot);
                                     });
  }
  template <int pass>
  GATEDRNN_INLINE void run() const {
    for_units([](const Unit& unit) __attribute__((always_inline)) { Stage::Math::template forward<pass>(unit); });
  }
  GATEDRNN_INLINE void keep_slots() const {
    for_units([](const Unit& unit) __attribute__((always_inline)) { unit.keep_slots(); });
  }
};

template <class S, class Stage, bool keeping>
void layer_norm_cells(const StepArgs<typename S::T>& a) noexcept {
  using Row = NormalizedRow<S, Stage, keeping>;
  for_tiles_of_rows<S, Row>(a, [](auto&& each) {
    each([](const Row& row) { row.template run<0>(); });
    each([](const Row& row) { row.normalize(false); });
    each([](const Row& row) { row.template run<1>(); });
    each([](const Row& row) { row.normalize(true); });
    each([](const Row& row) { row.template run<2>(); });
    if constexpr (keeping) each([](const Row& row) { row.keep_slots(); });
  });
}

// ---- Backward ----------------------------------------------------------------------------------------------------------

template <class Arithmetic, class Stage>
struct SlotBackPlace : BackPlace<Arithmetic> {
  using Base = BackPlace<Arithmetic>;
  using S = Arithmetic;
  using V = typename S::V;
  static constexpr CellDescription cell = Stage::Math::description;

  GATEDRNN_INLINE V value(int slot) const { return Base::kept(slot); }  // c' follows the slots
  GATEDRNN_INLINE V norm(int i) const { return S::load(this->a.norm + i * this->a.slot_stride + this->unit); }
  GATEDRNN_INLINE V gradient(int slot) const {
    return S::load(this->a.d_a + this->row * this->a.d_a_stride + slot * this->a.slot_stride + this->unit);
  }
  GATEDRNN_INLINE V d_sum(int slot) const { return gradient(slot); }
  GATEDRNN_INLINE void set_d_a(int i, V value) const { Base::set_d_a(cell.slots + i, value); }
  // Of a slot's normalised and weighted value, and of that before the weight.
  GATEDRNN_INLINE V d_weighted(int slot) const { return gradient(cell.slots + cell.pre_activation_of_slot[slot]); }
  GATEDRNN_INLINE V d_normalized(int slot) const { return S::mul(norm(slot), d_weighted(slot)); }
  GATEDRNN_INLINE void set_d_weight(int slot, V value) const {
    Base::set_d_a(cell.slots + cell.pre_activations + slot, value);
  }
  GATEDRNN_INLINE void set_d_value(int slot, V value) const {
    if (slot < cell.slots)
      Base::set_d_a(slot, value);
    else
      Base::set_d_c(S::add(Base::d_c(), value));
  }
};

template <class S, class Stage>
struct NormalizedBackRow {
  using T = typename S::T;
  static constexpr CellDescription cell = Stage::Math::description;

  struct Unit : NormalizedPlace<SlotBackPlace<S, Stage>, Stage> {
    using V = typename S::V;
    GATEDRNN_INLINE V kept(int i) const {
      if (i == Stage::Math::own_kept) return this->value(cell.slots);
      return this->gate(Stage::Math::pre_activation(i));
    }
  };

  const BackStepArgs<T>& a;
  Index row;
  Moments<T>* moments;

  GATEDRNN_INLINE Unit at(Index unit) const {
    constexpr Index width = kBackVectors * S::lanes;
    return {
        {{{a, row, unit, a.products + unit / width * a.products_panel_stride + row * width + unit % width}}, moments}};
  }
  template <class Visit>
  GATEDRNN_INLINE void for_units(Visit&& visit) const {
    for (Index unit = 0; unit < a.units; unit += S::lanes) visit(at(unit));
  }
  GATEDRNN_INLINE void find_moments() const {
    for (int i = 0; i < cell.norm_count; ++i)
      moments[i] = GATEDRNN_ISA::moments<S>(cell.norms[i], a.units, a.options->layer_norm_eps,
                                            [&](int slot, Index unit)
                                                __attribute__((always_inline)) { return at(unit).value(slot); });
  }

  // With x normalised, and d its gradient: that of the value is scale (d - mean(d) - x mean(d x)).
  GATEDRNN_INLINE void through_norms(bool late) const {
    for (int i = 0; i < cell.norm_count; ++i)
      if (cell.norms[i].late == late) through_norm(cell.norms[i], moments[i]);
  }
  GATEDRNN_INLINE void through_norm(const NormDescription& norm, const Moments<T>& m) const {
    const T count = static_cast<T>(norm.slots * a.units);
    const T d_mean = sum_of_slots<S>(norm, a.units,
                                     [&](int slot, Index unit)
                                         __attribute__((always_inline)) { return at(unit).d_normalized(slot); }) /
                     count;
    const T d_scale = sum_of_slots<S>(norm, a.units,
                                      [&](int slot, Index unit) __attribute__((always_inline)) {
                                        return S::mul(at(unit).d_normalized(slot), at(unit).normalized(slot, m));
                                      }) /
                      count;
    for (int slot = norm.first_slot; slot < norm.first_slot + norm.slots; ++slot)
      for_units([&](const Unit& unit) __attribute__((always_inline)) {
        const auto x = unit.normalized(slot, m), d = S::sub(unit.d_normalized(slot), S::set(d_mean));
        unit.set_d_weight(slot, S::mul(unit.d_weighted(slot), x));
        unit.set_d_value(slot, S::mul(S::sub(d, S::mul(x, S::set(d_scale))), S::set(m.scale)));
      });
  }
  template <int pass>
  GATEDRNN_INLINE void run() const {
    for_units([](const Unit& unit) __attribute__((always_inline)) { Stage::Math::template backward<pass>(unit); });
  }
};

template <class S, class Stage>
void layer_norm_cells_back(const BackStepArgs<typename S::T>& a) noexcept {
  using Row = NormalizedBackRow<S, Stage>;
  for_tiles_of_rows<S, Row>(a, [](auto&& each) {
    each([](const Row& row) { row.find_moments(); });
    each([](const Row& row) { row.template run<2>(); });
    each([](const Row& row) { row.through_norms(true); });
    each([](const Row& row) { row.template run<1>(); });
    each([](const Row& row) { row.through_norms(false); });
    each([](const Row& row) { row.template run<0>(); });
  });
}

}  // namespace gatedrnn::GATEDRNN_ISA
