// The persistent kernel of a block of time steps, backward.
#pragma once

#include "recurrence.cuh"

namespace gatedrnn::cuda {

template <class S>
struct BackRecurrence {
  BackStep<S> first;  // its arrays of pairs those of the block's first step
  StepBlock block;
  RecurrencePlan plan;
  const S* weights;           // [gates * units][units]
  const Sum<S>* c_at_begin;   // [rank][units]
  S *sent_d_a, *sent_second;  // [step][row group][recurrent slots * units, or the second stage's][rows]
  unsigned* arrived;          // [row group][kCounterStride], from zero on
};

template <class S, Cell cell, int tile_rows>
struct BackShare : Share<S, tile_rows> {
  using A = Sum<S>;
  using Facts = About<cell>;
  static constexpr int kept = Facts::kept;
  // c[t-1], h[t-1] or h[t]; then the gradient of the output
  static constexpr int before_slot = kept, d_output_slot = kept + 1, d_h_slot = kept + 2, d_c_slot = kept + 3;
  static constexpr int slot_count = static_cast<int>(backward_slots(Facts::description));
  static constexpr int recurrent = Facts::first_gates;
  static constexpr int first_recurrent = Facts::first_recurrent_slot;
  const BackRecurrence<S>& r;

  __device__ explicit BackShare(const BackRecurrence<S>& arguments)
      : Share<S, tile_rows>(arguments.plan, arguments.first.units, slot_count), r(arguments) {}

  __device__ int all_units() const { return r.first.units; }
  __device__ bool exists(int row) const { return this->first_rank + row < r.first.rows; }
  __device__ A& peephole(int which, int unit) const { return this->constants[which * this->plan.units + unit]; }

  // The rows of the weights from `first_k` on, as they multiply gradients.
  __device__ void load(int number, Index first_k) const {
    const ProductPlan& product = this->plan.products[number];
    const int fours = (product.vectors + 3) / 4, depth = product.tiling.parts * product.part, count = depth * fours;
    for (int first = threadIdx.x; first < count; first += kLoadsAtATime * kRecurrenceThreads) {
      Values<S, 4> values[kLoadsAtATime];
#pragma unroll
      for (int n = 0; n < kLoadsAtATime; ++n) {
        const int i = first + n * kRecurrenceThreads, k = i / fours, unit = i % fours * 4;
        const S* from = r.weights + ((first_k + k) * all_units() + this->first_unit + unit);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          values[n].values[e] = i < count && k < product.depth && unit + e < this->units ? from[e] : converted<S>(0.0f);
      }
#pragma unroll
      for (int n = 0; n < kLoadsAtATime; ++n) {
        const int i = first + n * kRecurrenceThreads, k = i / fours, unit = i % fours * 4;
        if (i >= count) continue;
        S* to = this->weights[number];
        if constexpr (tile_rows == 1) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (unit + e < product.vectors) to[(unit + e) * depth + k] = values[n].values[e];
        } else {
          reinterpret_cast<Values<S, 4>*>(to)[i] = values[n];
        }
      }
    }
  }

  __device__ void begin() const {
    load(0, 0);
    if constexpr (Facts::two_stages) load(1, Facts::second_gate * static_cast<Index>(all_units()));
    for (int i = threadIdx.x; i < Facts::peepholes * this->units; i += kRecurrenceThreads)
      peephole(i / this->units, i % this->units) =
          r.first.peephole[i / this->units * all_units() + this->first_unit + i % this->units];
    this->for_own_pairs([&](int pair, int row, int unit) {
      const Index at = r.first.at(this->first_rank + row, this->first_unit + unit);
      this->slot(d_h_slot, pair) = exists(row) ? r.first.d_h[at] : A(0);
      if constexpr (Facts::has_c) this->slot(d_c_slot, pair) = exists(row) ? r.first.d_c[at] : A(0);
    });
    prefetch(at_step(r.block.end - 1));
    await_fetched();
    __syncthreads();
  }

  // With its arrays at a step.
  __device__ BackStep<S> at_step(int t) const {
    BackStep<S> step = r.first;
    const Index pair = pairs_before(r.block, t), row_size = static_cast<Index>(step.kept_slots) * all_units();
    step.rows = running_rows(r.block, t);
    step.step = t;
    step.d_a += pair * step.slots * all_units();
    if (step.h_before) step.h_before += pair * all_units();
    if (step.h) step.h += pair * all_units();
    if (step.operand) step.operand += pair * all_units();
    if constexpr (Facts::has_c) {
      const bool first = t == r.block.begin;
      step.c_before =
          first ? r.c_at_begin : step.kept + pairs_before(r.block, t - 1) * row_size + (kept - 1) * all_units();
      step.c_before_stride = first ? all_units() : row_size;
    }
    if (step.kept) step.kept += pair * row_size;
    return step;
  }

  // What forward left of a step, while others send their gradients.
  __device__ void prefetch(const BackStep<S>& step) const {
    this->for_pairs_of_others([&](int pair, int row, int unit) {
      const int rank = this->first_rank + row, own = this->first_unit + unit;
      if (rank >= step.rows) return;
#pragma unroll
      for (int slot = 0; slot < kept; ++slot) fetch_value(&this->slot(slot, pair), step.kept_at(rank, own, slot));
      A* before = &this->slot(before_slot, pair);
      if constexpr (Facts::has_c)
        fetch_value(before, step.c_before_at(rank, own));
      else
        fetch_value(before, (Facts::backward_reads_h_before ? step.h_before : step.h) + step.at(rank, own));
      fetch_value(&this->slot(d_output_slot, pair), step.d_output_at(rank, own));
    });
  }

  __device__ void load_unit(int pair, int unit, BackUnit<A>& u) const {
#pragma unroll
    for (int slot = 0; slot < kept; ++slot) u.kept_values[slot] = this->slot(slot, pair);
    u.c_read = u.h_read = this->slot(before_slot, pair);
    u.d_h_now = u.carried = this->slot(d_h_slot, pair);
    if constexpr (Facts::has_c) u.d_c_now = this->slot(d_c_slot, pair);
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = peephole(i, unit);
  }

  // Gradients of a slot's pre-activations, to others and to where they are merged.
  __device__ void give_d_a(const BackStep<S>& step, S* sent, int rank, int row, int unit, int slot, A value) const {
    const S d_a = converted<S>(value);
    const int own = this->first_unit + unit, recurrent_slot = slot - first_recurrent;
    if (recurrent_slot >= 0 && recurrent_slot < recurrent)
      send(sent + (recurrent_slot * all_units() + own) * this->plan.rows + row, sendable(d_a));
    *step.d_a_at(rank, own, slot) = d_a;
  }

  __device__ void through_cell(const BackStep<S>& step, S* sent, S* sent_second) const {
    this->for_own_pairs([&](int pair, int row, int unit) {
      const int rank = this->first_rank + row, own = this->first_unit + unit;
      if (rank >= step.rows) {  // nobody uses it, but others wait for it
        for (int slot = 0; slot < recurrent; ++slot)
          send(sent + (slot * all_units() + own) * this->plan.rows + row, converted<S>(0.0f));
        for (int slot = 0; slot < Facts::second_gates; ++slot)
          send(sent_second + (slot * all_units() + own) * this->plan.rows + row, converted<S>(0.0f));
        return;
      }
      BackUnit<A> u;
      load_unit(pair, unit, u);
      u.d_h_now += this->slot(d_output_slot, pair);
      go_back<cell>(u);
      for (int slot = 0; slot < Facts::second_gates; ++slot)
        send(sent_second + (slot * all_units() + own) * this->plan.rows + row,
             sendable(converted<S>(u.d_a[Facts::second_slot + slot])));
#pragma unroll
      for (int slot = Facts::late_slots; slot < Facts::slots; ++slot)
        give_d_a(step, sent, rank, row, unit, slot, u.d_a[slot]);
      this->slot(d_h_slot, pair) = u.carried;
      if constexpr (Facts::has_c) this->slot(d_c_slot, pair) = u.d_c_now;
    });
  }

  __device__ void through_second_operand(const BackStep<S>& step, const Lanes& lanes, S* sent) const {
    this->for_own_pairs([&](int pair, int row, int unit) {
      const int rank = this->first_rank + row;
      if (rank >= step.rows) return;
      BackUnit<A> u;
      load_unit(pair, unit, u);
      A product[1];
      this->template collect<1>(lanes, row, unit, product);
      u.products = product[0];
      Mathematics<cell>::template backward<1>(u);
      for (int slot = 0; slot < Facts::late_slots; ++slot) give_d_a(step, sent, rank, row, unit, slot, u.d_a[slot]);
      this->slot(d_h_slot, pair) = u.carried;
      step.operand[step.at(rank, this->first_unit + unit)] = converted<S>(u.operand);
    });
  }

  __device__ void add_products(int running, const Lanes& lanes) const {
    this->for_own_pairs([&](int pair, int row, int unit) {
      if (row >= running) return;
      A product[1];
      this->template collect<1>(lanes, row, unit, product);
      this->slot(d_h_slot, pair) += product[0];
    });
  }

  __device__ void end() const {
    this->for_own_pairs([&](int pair, int row, int unit) {
      if (!exists(row)) return;
      const Index at = r.first.at(this->first_rank + row, this->first_unit + unit);
      r.first.d_h[at] = this->slot(d_h_slot, pair);
      if constexpr (Facts::has_c) r.first.d_c[at] = this->slot(d_c_slot, pair);
    });
  }
};

template <class S, Cell cell, int tile_rows>
__global__ void __launch_bounds__(kRecurrenceThreads, 1)
    backward_recurrence(const __grid_constant__ BackRecurrence<S> r) {
  using Shared = BackShare<S, cell, tile_rows>;
  const Shared share(r);
  const int units = r.first.units, begin = r.block.begin;
  const Lanes lanes(r.plan.products[0].tiling);
  const Lanes second_lanes(r.plan.products[Shared::Facts::two_stages ? 1 : 0].tiling);
  GroupCounter counter(r.arrived + share.row_group * kCounterStride, r.plan.unit_groups);
  share.begin();
  int turn = 0;
  for (int t = r.block.end - 1; t >= begin; --t) {
    const BackStep<S> step = share.at_step(t);
    const int running = step.rows - share.first_rank;
    if (running <= 0) {  // not yet
      if (t > begin) share.prefetch(share.at_step(t - 1));
      await_fetched();
      __syncthreads();
      continue;
    }
    S* sent = share.exchanged(r.sent_d_a, t - begin, Shared::recurrent * units);
    if constexpr (Shared::Facts::two_stages) {
      S* second = share.exchanged(r.sent_second, t - begin, Shared::Facts::second_gates * units);
      share.through_cell(step, sent, second);
      share.sent_all(counter);
      share.template multiply<1>(1, second_lanes, second, counter, turn);
      share.through_second_operand(step, second_lanes, sent);
    } else {
      share.through_cell(step, sent, nullptr);
    }
    share.sent_all(counter);
    if (t > begin) share.prefetch(share.at_step(t - 1));
    share.template multiply<1>(0, lanes, sent, counter, turn);
    share.add_products(running, lanes);
  }
  share.end();
}

}  // namespace gatedrnn::cuda
