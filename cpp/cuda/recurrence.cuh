// A whole block of time steps in one kernel: each block of the grid keeps the recurrent weights of its units in shared memory
// (Diamos et al. 2016, Persistent RNNs: stashing recurrent weights on-chip). The batch's rows are shared out among groups of
// blocks; the blocks of a group send each other the h of their rows once a step, and know nothing of other groups.
#pragma once

#include "cell_kernels.cuh"
#include "products.cuh"

namespace gatedrnn::cuda {

// To a thread's own place in shared memory, by await_fetched().
template <class A, class S>
__device__ inline void fetch_value(A* to, const S* from) {
  if constexpr (std::is_same_v<A, S>)
    fetch(to, from);
  else
    *to = converted<A>(*from);
}

// The part of a persistent kernel's work that a block of the grid does, and its shared memory: the weights of its units; for each
// warp what it stages, and afterwards its sums; one row's values, twice; `slots` values for each of its pairs of a row and a
// unit; and constants of its units.
template <class S, int tile_rows>
struct Share {
  using A = Sum<S>;
  static constexpr bool counts = tile_rows == 8;  // who has sent
  static constexpr bool one_row = tile_rows == 1;
  const RecurrencePlan& plan;
  int row_group, first_rank, first_unit;
  int rows_bits;
  int units, pairs;  // units of its own; pairs with those that fill up eights
  S* weights[2];
  char* warps;
  S* row;  // one row's values, in turns in its first and its second half
  A *slots, *constants;

  __device__ Share(const RecurrencePlan& p, int all_units, int slot_count)
      : plan(p),
        row_group(blockIdx.x / p.unit_groups),
        first_rank(row_group * p.rows),
        first_unit(blockIdx.x % p.unit_groups * p.units),
        rows_bits(Lanes::bits_of(p.rows)),
        units(min(p.units, all_units - first_unit)),
        pairs(p.pairs()) {
    char* at = shared_memory();
    for (int i = 0; i < 2; ++i) {
      weights[i] = reinterpret_cast<S*>(at);
      at += (p.products[i].weights() * sizeof(S) + 15) / 16 * 16;
    }
    warps = at;
    row = reinterpret_cast<S*>(at + kRecurrenceWarps * p.warp_bytes);
    slots = reinterpret_cast<A*>(at + kRecurrenceWarps * p.warp_bytes + p.row_bytes);
    constants = slots + slot_count * pairs;
  }

  __device__ A& slot(int number, int pair) const { return slots[number * pairs + pair]; }

  // Calls `visit(pair, row, unit)` for the pairs of this thread; the unit counts from the block's first. A warp has 4 rows of 8 units
  // at a time, which are neighbours where they are sent and where they are stored; or the units of one row that it sums.
  template <class Visit>
  __device__ void for_own_pairs(Visit&& visit) const {
    for_pairs(static_cast<int>(threadIdx.x) % kWarp, static_cast<int>(threadIdx.x) / kWarp, visit);
  }
  // The same for other threads, of the same warp where there is one row: what has time until the next step is left to those that
  // have the fewest pairs.
  template <class Visit>
  __device__ void for_pairs_of_others(Visit&& visit) const {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    for_pairs(kWarp - 1 - static_cast<int>(threadIdx.x) % kWarp, one_row ? warp : kRecurrenceWarps - 1 - warp, visit);
  }
  template <class Visit>
  __device__ void for_pairs(int lane, int warp, Visit&& visit) const {
    if constexpr (one_row) {
      const int first = warp * plan.units_of_warp(), last = min(units, first + plan.units_of_warp());
      for (int unit = first + lane; unit < last; unit += kWarp) visit(unit, 0, unit);
    } else {
      for (int i = warp * kWarp + lane; i < pairs; i += kRecurrenceThreads) {
        const int row = (i >> 5 << 2 & (plan.rows - 1)) + (i & 3),
                  unit = (i >> 5 >> (rows_bits - 2) << 3) + (i >> 2 & 7);
        if (unit < units) visit(i, row, unit);
      }
    }
  }

  // The products of what others send with the block's weights, for collect(). `turn` counts them.
  template <int gates>
  __device__ void multiply(int number, const Lanes& lanes, const S* sent, GroupCounter& counter, int& turn) const {
    char* own = warps + threadIdx.x / kWarp * plan.warp_bytes;
    const ProductPlan& product_plan = plan.products[number];
    if constexpr (one_row) {
      S* staged = row + (turn++ % 2 == 0 ? 0 : plan.row_bytes / 2 / static_cast<Index>(sizeof(S)));
      multiply_row<S, gates>(product_plan, units, plan.units_of_warp(), sent, weights[number], staged,
                             reinterpret_cast<A*>(own));
    } else {
      WarpProduct<S, tile_rows> product(product_plan, lanes, plan.rows, sent, weights[number],
                                        reinterpret_cast<S*>(own));
      if constexpr (counts) {
        counter.wait();
        product.multiply_sent();
      } else {
        product.multiply_as_sent();
      }
      product.leave_sums();
    }
    await_fetched();  // what prefetch() started
    meet();
  }

  // Those that share sums and slots.
  __device__ static void meet() {
    if constexpr (one_row)
      __syncwarp();
    else
      __syncthreads();
  }

  // After all have sent their part; and the warps' memory is free again.
  __device__ void sent_all(const GroupCounter& counter) const {
    meet();
    if constexpr (counts) counter.arrive();
  }

  // The products of a row with the vectors of a unit, one for each gate: the sums of all parts.
  template <int gates>
  __device__ void collect(const Lanes& lanes, int row, int unit, A* products) const {
    if constexpr (one_row) {
      const A* sums = reinterpret_cast<const A*>(warps + threadIdx.x / kWarp * plan.warp_bytes) +
                      (unit - static_cast<int>(threadIdx.x) / kWarp * plan.units_of_warp()) * gates;
      for (int gate = 0; gate < gates; ++gate) products[gate] = sums[gate];
      return;
    }
    const int part_stride = lanes.row_tiles * static_cast<int>(plan.warp_bytes / sizeof(A));
    const int gate_stride = plan.units * lanes.sum_stride;
    const A* sums = reinterpret_cast<const A*>(warps + (row >> lanes.width_bits) * plan.warp_bytes) +
                    unit * lanes.sum_stride + (row & ((1 << lanes.width_bits) - 1));
#pragma unroll
    for (int gate = 0; gate < gates; ++gate) products[gate] = sums[gate * gate_stride];
    const auto add_part = [&] {
      sums += part_stride;
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) products[gate] += sums[gate * gate_stride];
    };
    if constexpr (tile_rows < 8) {  // a warp has all rows
#pragma unroll
      for (int part = 1; part < kRecurrenceWarps; ++part) add_part();
    } else {
#pragma unroll 4
      for (int part = 1; part < lanes.parts; ++part) add_part();
    }
  }

  // Where the rows of this group are sent in a step: [depth, in whole packs][rows].
  __device__ S* exchanged(S* all, Index step, int depth) const {
    return all + (step * plan.row_groups + row_group) * exchanged_values<S>(depth, plan.rows);
  }
};

template <class S>
struct Recurrence {
  Step<S> first;  // of the block's first step
  StepBlock block;
  RecurrencePlan plan;
  const S* weights;  // [gates * units][units]
  const S* h_begin;
  S* h_end[2];               // both get the last h: whoever asks for a row's reads one of them
  S *sent_h, *sent_operand;  // [step][row group][units][rows]
  unsigned* arrived;         // [row group][kCounterStride], from zero on
};

constexpr int kLoadsAtATime = 8;  // of a thread, while it waits for the first one

// A block's weights [vector][k] to [k][vector]: eight vectors at a time, so that neither side is read or written one by one. For one row
// they stay [k], in the order of units.
template <class S, int tile_rows>
__device__ inline void load_weights(const Share<S, tile_rows>& share, const ProductPlan& product, const S* from,
                                    int all_units, int gates, S* to) {
  using P = Pack<S>;
  const int vectors = product.vectors, depth = product.tiling.parts * product.part, k_packs = depth / P::count;
  const int count = (vectors + 7) / 8 * 8 * k_packs;
  const bool aligned = all_units % P::count == 0 && reinterpret_cast<std::uintptr_t>(from) % sizeof(P) == 0;
  const auto vector_of = [&](int i) { return i / 8 / k_packs * 8 + i % 8; };
  const auto k_of = [&](int i) { return i / 8 % k_packs * P::count; };
  const auto load = [&](int i) {
    P pack;
    const int v = vector_of(i), k = k_of(i), gate = v / share.plan.units, unit = v % share.plan.units;
    const bool exists = i < count && gate < gates && unit < share.units;
    const S* at = from + ((static_cast<Index>(gate) * all_units + share.first_unit + unit) * all_units + k);
    if (aligned && exists && k < product.depth) return *reinterpret_cast<const P*>(at);
#pragma unroll
    for (int e = 0; e < P::count; ++e) pack.values[e] = exists && k + e < product.depth ? at[e] : converted<S>(0.0f);
    return pack;
  };
  for (int first = threadIdx.x; first < count; first += kLoadsAtATime * kRecurrenceThreads) {
    P packs[kLoadsAtATime];
#pragma unroll
    for (int n = 0; n < kLoadsAtATime; ++n) packs[n] = load(first + n * kRecurrenceThreads);
#pragma unroll
    for (int n = 0; n < kLoadsAtATime; ++n) {
      const int i = first + n * kRecurrenceThreads, v = vector_of(i);
      if (i >= count || v >= vectors) continue;
#pragma unroll
      for (int e = 0; e < P::count; ++e)
        to[tile_rows == 1 ? (v % share.plan.units * gates + v / share.plan.units) * depth + k_of(i) + e
                          : (k_of(i) + e) * vectors + v] = packs[n].values[e];
    }
  }
}

template <class S, Cell cell, int tile_rows>
struct ForwardShare : Share<S, tile_rows> {
  using A = Sum<S>;
  using Facts = About<cell>;
  static constexpr int gates = Facts::gates, slots = Facts::slots;
  static constexpr int h_slot = gates, c_slot = gates + 1, carried_slot = gates + 1;
  static constexpr int slot_count = static_cast<int>(forward_slots(Facts::description));
  const Recurrence<S>& r;

  __device__ explicit ForwardShare(const Recurrence<S>& arguments)
      : Share<S, tile_rows>(arguments.plan, arguments.first.units, slot_count), r(arguments) {}

  __device__ int all_units() const { return r.first.units; }
  __device__ A& bias(int slot, int unit) const { return this->constants[slot * this->plan.units + unit]; }
  __device__ A& peephole(int which, int unit) const {
    return this->constants[(slots + which) * this->plan.units + unit];
  }
  __device__ bool exists(int row) const { return this->first_rank + row < r.first.rows; }

  __device__ void begin() const {
    load_weights(*this, this->plan.products[0], r.weights, all_units(), gates_of<cell, 0>, this->weights[0]);
    if constexpr (Facts::two_stages)
      load_weights(*this, this->plan.products[1],
                   r.weights + Facts::second_gate * static_cast<Index>(all_units()) * all_units(), all_units(),
                   gates_of<cell, 1>, this->weights[1]);
    for (int i = threadIdx.x; i < this->units; i += kRecurrenceThreads) {
      const int unit = this->first_unit + i;
      for (int slot = 0; slot < slots; ++slot) bias(slot, i) = r.first.bias[slot * all_units() + unit];
      for (int which = 0; which < Facts::peepholes; ++which)
        peephole(which, i) = r.first.peephole[which * all_units() + unit];
    }
    S* sent = this->exchanged(r.sent_h, 0, all_units());
    this->for_own_pairs([&](int pair, int row, int unit) {
      const Index at = r.first.at(this->first_rank + row, this->first_unit + unit);
      const S h = exists(row) ? r.h_begin[at] : converted<S>(0.0f);
      this->slot(h_slot, pair) = converted<A>(h);
      if constexpr (Facts::has_c) this->slot(c_slot, pair) = exists(row) ? r.first.c[at] : A(0);
      send(sent + (this->first_unit + unit) * this->plan.rows + row, sendable(h));
    });
  }

  // The projected inputs of a step, while others send theirs.
  __device__ void prefetch(int t) const {
    const int running = running_rows(r.block, t) - this->first_rank;
    const A* from = r.first.projected + (pairs_before(r.block, t) + this->first_rank) * gates * all_units();
    this->for_pairs_of_others([&](int pair, int row, int unit) {
      if (row >= running) return;
      const A* own = from + (row * gates * all_units() + this->first_unit + unit);
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) fetch_value(&this->slot(gate, pair), own + gate * all_units());
    });
  }

  template <int stage>
  __device__ void finish_stage(const Step<S>& step, int running, const Lanes& lanes, S* sent) const {
    constexpr int count = gates_of<cell, stage>;
    this->for_own_pairs([&](int pair, int row, int unit) {
      S* to = sent ? sent + (this->first_unit + unit) * this->plan.rows + row : nullptr;
      if (row >= running) {  // nobody uses it, but others wait for it
        if (to) send(to, converted<S>(0.0f));
        return;
      }
      Unit<A> u;
      A products[count];
      this->template collect<count>(lanes, row, unit, products);
      begin_stage<cell, stage>(
          u, products, [&](int slot) { return bias(slot, unit); }, [&](int gate) { return this->slot(gate, pair); });
      if constexpr (Facts::has_c) u.c_now = this->slot(c_slot, pair);
      if constexpr (Facts::reads_h) u.h_before = this->slot(h_slot, pair);
      if constexpr (stage > 0) u.carried = this->slot(carried_slot, pair);
      for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = peephole(i, unit);
      const S h = converted<S>(go_forward<cell, stage>(u));
      if (to) send(to, sendable(h));
      go_on<cell, stage>(u);
      if constexpr (Facts::has_c) this->slot(c_slot, pair) = u.c_now;
      if constexpr (is_last_stage<cell, stage>)
        this->slot(h_slot, pair) = converted<A>(h);
      else
        this->slot(carried_slot, pair) = u.carried;
      const int rank = this->first_rank + row, own = this->first_unit + unit;
      if (step.kept) keep<cell, stage>(step.kept + (rank * step.kept_slots * all_units() + own), all_units(), u);
      if constexpr (is_last_stage<cell, stage>) step.put_out(rank, own, h);
    });
  }

  __device__ void end() const {
    this->for_own_pairs([&](int pair, int row, int unit) {
      if (!exists(row)) return;
      const Index at = r.first.at(this->first_rank + row, this->first_unit + unit);
      for (S* h : r.h_end) h[at] = converted<S>(this->slot(h_slot, pair));
      if constexpr (Facts::has_c) r.first.c[at] = this->slot(c_slot, pair);
    });
  }
};

template <class S, Cell cell, int tile_rows>
__global__ void __launch_bounds__(kRecurrenceThreads, 1) forward_recurrence(const __grid_constant__ Recurrence<S> r) {
  using Facts = About<cell>;
  const ForwardShare<S, cell, tile_rows> share(r);
  const int units = r.first.units, begin = r.block.begin;
  const Lanes lanes(r.plan.products[0].tiling);
  const Lanes second_lanes(r.plan.products[Facts::two_stages ? 1 : 0].tiling);
  GroupCounter counter(r.arrived + share.row_group * kCounterStride, r.plan.unit_groups);
  share.begin();
  __syncthreads();
  share.sent_all(counter);
  int turn = 0;
  for (int t = begin; t < r.block.end; ++t) {
    const int running = running_rows(r.block, t) - share.first_rank;
    if (running <= 0) break;  // nor later
    Step<S> step = r.first;
    step.step = t;
    if (step.kept) step.kept += pairs_before(r.block, t) * step.kept_slots * units;
    S* next = t + 1 < r.block.end ? share.exchanged(r.sent_h, t + 1 - begin, units) : nullptr;
    share.prefetch(t);
    share.template multiply<Facts::first_gates>(0, lanes, share.exchanged(r.sent_h, t - begin, units), counter, turn);
    if constexpr (Facts::two_stages) {
      S* operand = share.exchanged(r.sent_operand, t - begin, units);
      share.template finish_stage<0>(step, running, lanes, operand);
      share.sent_all(counter);
      share.template multiply<Facts::second_gates>(1, second_lanes, operand, counter, turn);
      share.template finish_stage<1>(step, running, second_lanes, next);
    } else {
      share.template finish_stage<0>(step, running, lanes, next);
    }
    share.sent_all(counter);
  }
  share.end();
}

}  // namespace gatedrnn::cuda
