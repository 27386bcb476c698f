// Steps of networks smaller than a vector: see gatedrnn/rows_in_lanes.h.
#pragma once

#include "functions.h"
#include "gatedrnn/rows_in_lanes.h"
#include "gatedrnn/sums.h"
#include "partial.h"
#include "product.h"
#include "stages.h"

namespace gatedrnn::GATEDRNN_ISA {

// ---- The border: rows to lanes and back --------------------------------------------------------------------------------

// A few columns of evenly spaced rows are gathered one by one; otherwise vectors of rows are transposed.
template <class S>
GATEDRNN_INLINE bool few_and_even(const void* at, Index stride, Index rows, Index width) {
  constexpr Index few = S::lanes / 4;
  constexpr Index furthest = Index(1) << 26;  // values: what a gathering instruction reaches
  return !at && rows == S::lanes && width <= few && stride > -furthest && stride < furthest;
}

template <class S, class T>
GATEDRNN_INLINE T* lane_row(const LaneRows<T>& rows, Index lane) {
  return rows.data + (rows.at ? rows.at[lane] : lane * rows.stride);
}

// to[k][lane] = rows[lane][k]; lanes past `count` get zeros
template <class S>
void rows_to_lanes(const LaneRows<const typename S::T>& rows, Index count, Index width, typename S::T* to) noexcept {
  if (few_and_even<S>(rows.at, rows.stride, count, width)) {
    for (Index k = 0; k < width; ++k, to += S::lanes)
      S::store(to, rows.stride == 1 ? S::load(rows.data + k) : S::gather(rows.data + k, rows.stride));
    return;
  }
  for (Index k = 0; k < width; k += S::lanes) {
    typename S::Block block;
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      block.packet[i] = i < count ? load_first<S>(lane_row<S>(rows, i) + k, width - k) : S::set(0);
    S::transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      if (k + i < width) S::store(to + (k + i) * S::lanes, block.packet[i]);
  }
}

// rows[lane][k] = from[k][lane], or that is added, for the first `count` lanes
template <class S, bool add>
void lanes_to_rows(const typename S::T* from, Index count, Index width, const LaneRows<typename S::T>& rows) noexcept {
  if (!add && few_and_even<S>(rows.at, rows.stride, count, width)) {
    for (Index k = 0; k < width; ++k, from += S::lanes)
      if (rows.stride == 1)
        S::store(rows.data + k, S::load(from));
      else
        S::scatter(rows.data + k, S::load(from), rows.stride);
    return;
  }
  for (Index k = 0; k < width; k += S::lanes) {
    typename S::Block block;
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i) block.packet[i] = k + i < width ? S::load(from + (k + i) * S::lanes) : S::set(0);
    S::transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i) {
      if (i >= count) break;
      typename S::T* row = lane_row<S>(rows, i) + k;
      store_first<S>(row, add ? S::add(load_first<S>(row, width - k), block.packet[i]) : block.packet[i], width - k);
    }
  }
}

// ---- Products ----------------------------------------------------------------------------------------------------------

// Adds the product of `depth` vectors with weights [k][U][G] to G of the sums of U outputs, from `first` on. Returns the weights'
// end.
template <class S, int U, int G, int slots>
GATEDRNN_INLINE const typename S::T* add_product(const typename S::T* x, Index depth, const typename S::T* weights,
                                                 typename S::V (&sums)[U][slots], int first) {
  for (Index begin = 0; begin < depth; begin += kBlockTerms) {
    const Index end = depth - begin < kBlockTerms ? depth : begin + kBlockTerms;
    typename S::V block[U][G];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) block[u][g] = S::set(0);
    for (Index k = begin; k < end; ++k, weights += U * G) {
      const typename S::V value = S::load(x + k * S::lanes);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
        for (int g = 0; g < G; ++g) block[u][g] = S::madd(value, S::set(weights[u * G + g]), block[u][g]);
    }
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) sums[u][first + g] = S::add(sums[u][first + g], block[u][g]);
  }
  return weights;
}

// `tile(U as a constant, first output)` for all outputs.
template <int gates, class Tile>
GATEDRNN_INLINE void for_each_lane_tile(Index outputs, Tile&& tile) {
  for (Index output = 0; output < outputs;) {
    const Index count = lane_tile(outputs - output, gates);
    if constexpr (gates == 1)
      if (count == 8) tile(std::integral_constant<int, 8>(), output);
    if constexpr (gates == 1)
      if (count == 4) tile(std::integral_constant<int, 4>(), output);
    if (count == 2) tile(std::integral_constant<int, 2>(), output);
    if (count == 1) tile(std::integral_constant<int, 1>(), output);
    output += count;
  }
}

// out = x W for weights [tile][k][output of the tile]. Returns the weights' end.
template <class S>
const typename S::T* lane_product(const typename S::T* x, Index depth, const typename S::T* weights, Index outputs,
                                  typename S::T* out) {
  for_each_lane_tile<1>(outputs, [&](auto constant, Index output) __attribute__((always_inline)) {
    constexpr int U = decltype(constant)::value;
    typename S::V sums[U][1];
    for (int u = 0; u < U; ++u) sums[u][0] = S::set(0);
    weights = add_product<S, U, 1, 1>(x, depth, weights, sums, 0);
    for (int u = 0; u < U; ++u) S::store(out + (output + u) * S::lanes, sums[u][0]);
  });
  return weights;
}

// ---- Forward -----------------------------------------------------------------------------------------------------------

// The arrays of one step, [..][unit][lane].
template <class T>
struct LaneStep {
  const T *x, *h;
  T *h_next, *c, *second, *carried, *kept;
  Index units;
  bool streams;
  const CellOptions<T>* options;
};

// One unit of all rows, as a cell's mathematics sees it (gatedrnn/cells.h).
template <class Arithmetic, int slots, bool keeping>
struct LanePlace {
  using S = Arithmetic;
  using T = typename S::T;
  using V = typename S::V;

  const LaneStep<T>& step;
  Index unit;
  V (&z)[slots];
  const T* peepholes;

  Index at() const { return unit * S::lanes; }
  GATEDRNN_INLINE V gate(int slot) const { return z[slot]; }
  GATEDRNN_INLINE void leave(int slot, V value) const { z[slot] = value; }
  GATEDRNN_INLINE V h() const { return S::load(step.h + at()); }
  GATEDRNN_INLINE V c() const { return S::load(step.c + at()); }
  GATEDRNN_INLINE void set_c(V value) const { S::store(step.c + at(), value); }
  GATEDRNN_INLINE V peephole(int i) const { return S::set(peepholes[i]); }
  GATEDRNN_INLINE void deliver(V h) const { S::store(step.h_next + at(), h); }
  GATEDRNN_INLINE void set_operand(V value) const { S::store(step.second + at(), value); }
  GATEDRNN_INLINE void carry_over(V value) const { S::store(step.carried + at(), value); }
  GATEDRNN_INLINE V carried_over() const { return S::load(step.carried + at()); }
  GATEDRNN_INLINE const CellOptions<T>& options() const { return *step.options; }
  GATEDRNN_INLINE V apply(int i, V x) const { return activation<S>(options().activations[i], x); }
  GATEDRNN_INLINE void keep(int i, V value) const {
    if constexpr (keeping) {
      T* const kept = step.kept + (i * step.units + unit) * S::lanes;
      step.streams ? S::stream(kept, value) : S::store(kept, value);
    }
  }
};

template <class S, class Stage, bool keeping>
GATEDRNN_INLINE const typename S::T* lane_stage(const LaneStep<typename S::T>& step, Index input_size,
                                                const typename S::T* operand, const typename S::T* weights) {
  constexpr StageDescription stage = Stage::description;
  for_each_lane_tile<stage.gates>(step.units, [&](auto constant, Index unit) __attribute__((always_inline)) {
    constexpr int U = decltype(constant)::value;
    typename S::V z[U][stage.slots];
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
#pragma GCC unroll 8
      for (int slot = 0; slot < stage.slots; ++slot) z[u][slot] = S::set(*weights++);
    weights = add_product<S, U, stage.gates, stage.slots>(step.x, input_size, weights, z, 0);
    weights = add_product<S, U, stage.gates, stage.slots>(operand, step.units, weights, z, stage.first_operand_slot());
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
      Stage::first(LanePlace<S, stage.slots, keeping>{step, unit + u, z[u], weights + u * Stage::peepholes});
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u)
      Stage::second(LanePlace<S, stage.slots, keeping>{step, unit + u, z[u], weights + u * Stage::peepholes});
    weights += U * Stage::peepholes;
  });
  return weights;
}

template <class S, Cell cell, bool keeping>
void lane_steps(const LaneStepsArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  constexpr CellDescription description = Mathematics<cell>::description;
  const Index vectors = a.units * S::lanes;  // values of one vector for each unit
  T *const x = a.scratch, *const spare = x + a.input_size * S::lanes;
  LaneStep<T> step{x,      a.h,     nullptr,   a.c,      spare + 2 * vectors, spare + 3 * vectors,
                   a.kept, a.units, a.streams, a.options};
  LaneRows<const T> in = a.x;
  LaneRows<T> out = a.y;
  for (Index i = 0; i < a.steps; ++i) {
    step.h_next = keeping ? step.kept + description.kept * vectors : spare + i % 2 * vectors;
    rows_to_lanes<S>(in, a.rows, a.input_size, x);
    const T* weights = lane_stage<S, CellStage<cell, 0>, keeping>(step, a.input_size, step.h, a.weights);
    if constexpr (description.stage_count == 2)
      lane_stage<S, CellStage<cell, 1>, keeping>(step, a.input_size, step.second, weights);
    else
      static_cast<void>(weights);
    if (out.data) lanes_to_rows<S, false>(step.h_next, a.rows, a.units, out);
    step.h = step.h_next;
    if constexpr (keeping) step.kept += a.kept_step;
    in.data += a.x_step;
    in.at += a.list_step;
    if (out.data) out.data += a.y_step;
    out.at += a.list_step;
  }
  for (Index i = 0; i < vectors; i += S::lanes) S::store(a.h + i, S::load(step.h + i));
}

// ---- Backward ----------------------------------------------------------------------------------------------------------

// The first `count` lanes of one and the rest of another.
template <class S>
GATEDRNN_INLINE typename S::V join_lanes(typename S::V first, Index count, typename S::V rest) {
  alignas(64) typename S::T values[S::lanes];
  S::store(values, rest);
  store_first<S>(values, first, count);
  return S::load(values);
}

// One unit of all rows, going back.
template <class Arithmetic>
struct LaneBackPlace {
  using S = Arithmetic;
  using T = typename S::T;
  using V = typename S::V;

  const LaneBackArgs<T>& a;
  Index unit;
  const T* arriving;  // gradients of h, or of the second operand
  T* second;          // that operand, if it is wanted

  GATEDRNN_INLINE V load(const T* array, Index slot = 0) const {
    return S::load(array + (slot * a.units + unit) * S::lanes);
  }
  // Rows whose last step comes before this one have yet to begin: what they wait with stays as it is.
  GATEDRNN_INLINE void store_running(T* array, V value) const {
    store_first<S>(array + unit * S::lanes, value, a.rows);
  }

  GATEDRNN_INLINE V kept(int i) const { return load(a.kept, i); }
  GATEDRNN_INLINE V peephole(int i) const { return S::set(a.peepholes[i * a.units + unit]); }
  GATEDRNN_INLINE V c_before() const { return load(a.c_before); }
  GATEDRNN_INLINE V h_before() const { return load(a.h_before); }
  GATEDRNN_INLINE V h_after() const { return load(a.h_after); }
  GATEDRNN_INLINE V d_h() const { return load(arriving); }
  GATEDRNN_INLINE V product() const { return load(arriving); }
  GATEDRNN_INLINE const CellOptions<T>& options() const { return *a.options; }
  GATEDRNN_INLINE V apply(int i, V x) const { return activation<S>(options().activations[i], x); }
  GATEDRNN_INLINE V slope(int i, V x, V y) const { return activation_slope<S>(options().activations[i], x, y); }
  GATEDRNN_INLINE V d_c() const { return load(a.d_c); }
  GATEDRNN_INLINE void set_d_c(V value) const { store_running(a.d_c, value); }
  GATEDRNN_INLINE V carry() const { return load(a.carry); }
  GATEDRNN_INLINE void set_carry(V value) const { store_running(a.carry, value); }
  GATEDRNN_INLINE void set_d_a(int slot, V value) const { S::store(a.d_a + (slot * a.units + unit) * S::lanes, value); }
  GATEDRNN_INLINE void set_operand_of_weights(V value) const {
    if (second) S::store(second + unit * S::lanes, value);
  }
};

// All that h had a part in: for rows that run in the step after too what comes through the product, and what passes by it; for the
// others the gradient of their final state.
template <class S, bool passes_h>
GATEDRNN_INLINE void add_arriving(const LaneBackArgs<typename S::T>& a, const typename S::T* d_y, typename S::T* d_h) {
  for (Index i = 0; i < a.units * S::lanes; i += S::lanes) {
    auto d = a.running == 0 ? S::set(0) : S::load(d_h + i);
    const auto carry = S::load(a.carry + i);
    if (a.running == 0 || a.running == a.rows) {
      if (passes_h || a.running == 0) d = S::add(d, carry);
    } else {
      d = join_lanes<S>(passes_h ? S::add(d, carry) : d, a.running, S::add(S::set(0), carry));
    }
    if (d_y) d = S::add(d, S::load(d_y + i));
    S::store(d_h + i, d);
  }
}

template <class S>
GATEDRNN_INLINE void copy_lanes(const typename S::T* from, Index count, typename S::T* to) {
  for (Index i = 0; i < count * S::lanes; i += S::lanes) S::store(to + i, S::load(from + i));
}

template <class S, Cell cell>
void lane_back_step(const LaneBackArgs<typename S::T>& a) noexcept {
  using T = typename S::T;
  constexpr CellDescription description = Mathematics<cell>::description;
  constexpr int slots = description.slots, recurrent = description.first_recurrent_slot();
  const Index H = a.units, vectors = H * S::lanes;
  T *const d_h = a.scratch, *const d_y = d_h + vectors, *const d_x = d_y + vectors;

  const T* weights = lane_product<S>(a.d_a + recurrent * vectors, description.recurrent_slots() * H, a.weights, H, d_h);
  if (a.d_y.data) rows_to_lanes<S>(a.d_y, a.rows, H, d_y);
  add_arriving<S, description.passes_h>(a, a.d_y.data ? d_y : nullptr, d_h);
  if (!a.pairs) return;

  prefetch_lines(a.next_kept, (description.kept + 1) * vectors);
  T* pair = a.d_a + slots * vectors;  // the operands behind the gradients
  copy_lanes<S>(a.h_before, H, pair);
  pair += vectors;
  T* const second = description.stage_count == 2 ? pair : nullptr;
  for (Index unit = 0; unit < H; ++unit) CellStage<cell, 0>::backward(LaneBackPlace<S>{a, unit, d_h, second});
  if constexpr (description.stage_count == 2) {
    constexpr StageDescription stage = description.stages[1];
    weights = lane_product<S>(a.d_a + (stage.first_slot + stage.first_operand_slot()) * vectors, stage.gates * H,
                              weights, H, d_h);
    for (Index unit = 0; unit < H; ++unit) CellStage<cell, 1>::backward(LaneBackPlace<S>{a, unit, d_h, second});
    pair += vectors;
  }
  if constexpr (description.peephole_count > 0) {
    copy_lanes<S>(a.c_before, H, pair);
    copy_lanes<S>(a.kept + (description.kept - 1) * vectors, H, pair + vectors);
    pair += 2 * vectors;
  }
  S::store(pair, S::set(1));

  if (a.d_x.data) {
    lane_product<S>(a.d_a, description.gates * H, weights, a.input_size, d_x);
    if (a.add)
      lanes_to_rows<S, true>(d_x, a.rows, a.input_size, a.d_x);
    else
      lanes_to_rows<S, false>(d_x, a.rows, a.input_size, a.d_x);
  }

  const Index width = (pair - a.d_a) / S::lanes + 1, stride = width + a.input_size;
  lanes_to_rows<S, false>(a.d_a, a.rows, width, {a.pairs, stride, nullptr});
  for (Index i = 0; i < a.rows; ++i) {
    const T* from = lane_row<S>(a.x, i);
    T* to = a.pairs + i * stride + width;
    for (Index k = 0; k < a.input_size; k += S::lanes)
      store_first<S>(to + k, load_first<S>(from + k, a.input_size - k), a.input_size - k);
  }
}

// ---- Gradients of weights ----------------------------------------------------------------------------------------------

// R operands by V vectors of columns.
template <class S, int R, int V>
GATEDRNN_INLINE void lane_outer_tile(const LaneGemmArgs<typename S::T>& a, Index operand) {
  typename S::V sums[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[r][v] = S::set(0);
  const typename S::T* d = a.pairs;
#pragma GCC unroll 2
  for (Index n = 0; n < a.count; ++n, d += a.stride) {
    typename S::V columns[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) columns[v] = S::load(d + v * S::lanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename S::V value = S::set(d[a.columns + operand + r]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r][v] = S::madd(columns[v], value, sums[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      typename S::T* to = a.sums + (operand + r) * a.sums_stride + v * S::lanes;
      S::store(to, S::add(S::load(to), sums[r][v]));
    }
}

template <class S, int V>
GATEDRNN_INLINE void lane_outer_vectors(const LaneGemmArgs<typename S::T>& a) {
  constexpr int R = kAccumulators / V >= kLaneOperands ? kLaneOperands : kLaneOperands / 2;
  for (Index operand = 0; operand < a.operands; operand += R) lane_outer_tile<S, R, V>(a, operand);
}

template <class S>
void lane_outer(const LaneGemmArgs<typename S::T>& a) noexcept {
  switch ((a.columns + S::lanes - 1) / S::lanes) {
    case 1: return lane_outer_vectors<S, 1>(a);
    case 2: return lane_outer_vectors<S, 2>(a);
    case 3: return lane_outer_vectors<S, 3>(a);
    case 4: return lane_outer_vectors<S, 4>(a);
  }
}

// None for cells whose rows are normalised.
template <class S, Cell cell, bool keeping>
constexpr auto lane_steps_of() -> void (*)(const LaneStepsArgs<typename S::T>&) noexcept {
  if constexpr (description(cell).is_normalized())
    return nullptr;
  else
    return lane_steps<S, cell, keeping>;
}
template <class S, Cell cell>
constexpr auto lane_back_step_of() -> void (*)(const LaneBackArgs<typename S::T>&) noexcept {
  if constexpr (description(cell).is_normalized())
    return nullptr;
  else
    return lane_back_step<S, cell>;
}

template <class T, int... cells>
constexpr LaneKernels<T> lane_kernels(std::integer_sequence<int, cells...>) {
  using S = Simd<T>;
  return {{{lane_steps_of<S, static_cast<Cell>(cells), false>()...}},
          {{lane_steps_of<S, static_cast<Cell>(cells), true>()...}},
          {{lane_back_step_of<S, static_cast<Cell>(cells)>()...}},
          lane_outer<S>,
          rows_to_lanes<S>,
          lanes_to_rows<S, false>};
}

}  // namespace gatedrnn::GATEDRNN_ISA
