// Persistent kernels for networks so small that one multiprocessor holds all recurrent weights: each block of the grid has all units
// of one row or two, and blocks know nothing of each other. A step waits for a barrier of its block instead of an exchange.
//
// The weights are in registers, as many as there is room for, and the others in shared memory (Diamos et al. 2016 keep them in both
// too). Eight lanes share the products of four units: each multiplies every eighth four of k with all weight vectors of the four. So
// a block has few threads with many registers each, and few of them do the same.
//
// What takes the time is that one instruction waits for the one before, so nothing is decided or worked out within a step that
// could be before: what a step needs of memory is on its way a step ahead, sizes in shared memory are constants, and a row that
// has ended is computed like others and dropped.
#pragma once

#include "recurrence_backward.cuh"

namespace gatedrnn::cuda {

// The row and unit whose sums a lane gets, with `copies` - 1 others; `row` counts from the block's first.
template <int rows>
struct UndividedLane {
  static constexpr int copies = kLanesOfUnits / kUnitsOfLanes / rows;
  int k, first_unit;  // of what it multiplies: its four of every eight, and four units from this one on
  int unit, row, copy;
  int rank;

  __device__ UndividedLane() {
    k = static_cast<int>(threadIdx.x) % kLanesOfUnits;
    first_unit = static_cast<int>(threadIdx.x) / kLanesOfUnits * kUnitsOfLanes;
    unit = first_unit + k % kUnitsOfLanes;
    row = k / kUnitsOfLanes % rows;
    copy = k / kUnitsOfLanes / rows;
    rank = static_cast<int>(blockIdx.x) * rows + row;
  }
  __device__ int place() const { return row * kMostUndividedUnits + unit; }
};

// A block's shared memory: what its products multiply, in turns for even and odd steps; and weights.
template <class A, int rows, int operands>
struct UndividedMemory {
  static constexpr int kRow = kMostUndividedUnits, kValues = 2 * operands * rows * kRow;

  __device__ static void clear() {  // also for units that do not exist
    for (int i = threadIdx.x; i < kValues; i += blockDim.x) operand(0, 0)[i] = 0;
    __syncthreads();
  }
  // [rows][units]
  __device__ static A* operand(int step, int number) {
    return reinterpret_cast<A*>(shared_memory()) + (step % 2 * operands + number) * rows * kRow;
  }
  __device__ static Values<A, 4>* weights() { return reinterpret_cast<Values<A, 4>*>(operand(0, 0) + kValues); }
};

// A thread's recurrent weights, `vectors` for each of its units.
template <class A, int vectors, int rows>
class LaneWeights {
 public:
  using Four = Values<A, 4>;

  // `weight(vector, unit, k)` is zero where nothing exists; `others` are [four][thread] in shared memory.
  template <class Weight>
  __device__ LaneWeights(const UndividedLane<rows>& lane, int fours, Four* others, Weight&& weight)
      : fours_(fours), others_(others + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int four = i / kUnitsOfLanes / vectors, vector = i / kUnitsOfLanes % vectors, unit = i % kUnitsOfLanes;
      if (four >= fours) break;
      Four w;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        w.values[e] = weight(vector, lane.first_unit + unit, (four * kLanesOfUnits + lane.k) * 4 + e);
      if (i < kOwn)
        own_[i] = w;
      else
        others_[(i - kOwn) * kMostUndividedThreads] = w;
    }
  }

  // The products of an operand, [rows][units], with the vectors from `first` to `last`: the sums of this lane's row and unit.
  template <int first, int last>
  __device__ void multiply(const UndividedLane<rows>& lane, const A* operand, A (&products)[last - first]) const {
    A sums[last - first][kUnitsOfLanes][rows] = {};
#pragma unroll
    for (int four = 0; four < kMostFours; ++four) {
      if (four >= fours_) break;
      const Fours x(lane, operand, four);
#pragma unroll
      for (int vector = first; vector < last; ++vector) add_products(four, vector, x, sums[vector - first]);
    }
#pragma unroll
    for (int n = 0; n < last - first; ++n) products[n] = sum_of_lanes(sums[n]);
  }

  // The same with an operand for each vector, [vector][rows][units], and their sum.
  template <int first, int last>
  __device__ A multiply_each(const UndividedLane<rows>& lane, const A* operands) const {
    A sums[kUnitsOfLanes][rows] = {};
#pragma unroll
    for (int four = 0; four < kMostFours; ++four) {
      if (four >= fours_) break;
#pragma unroll
      for (int vector = first; vector < last; ++vector) {
        const Fours x(lane, operands + (vector - first) * rows * kMostUndividedUnits, four);
        add_products(four, vector, x, sums);
      }
    }
    return sum_of_lanes(sums);
  }

 private:
  static constexpr int kCount = kMostFours * kUnitsOfLanes * vectors;
  static constexpr int kOwn = static_cast<int>(fours_in_registers(vectors, rows, sizeof(A)));

  // A lane's part of k of the operand's rows.
  struct Fours {
    Four of_row[rows];
    __device__ Fours(const UndividedLane<rows>& lane, const A* operand, int four) {
#pragma unroll
      for (int row = 0; row < rows; ++row)
        of_row[row] =
            *reinterpret_cast<const Four*>(operand + row * kMostUndividedUnits + (four * kLanesOfUnits + lane.k) * 4);
    }
  };

  __device__ void add_products(int four, int vector, const Fours& x, A (&sums)[kUnitsOfLanes][rows]) const {
#pragma unroll
    for (int unit = 0; unit < kUnitsOfLanes; ++unit) {
      const int i = (four * vectors + vector) * kUnitsOfLanes + unit;
      const Four w = i < kOwn ? own_[i < kOwn ? i : 0] : others_[(i - kOwn) * kMostUndividedThreads];
#pragma unroll
      for (int e = 0; e < 4; ++e)
#pragma unroll
        for (int row = 0; row < rows; ++row)
          sums[unit][row] = ::fma(x.of_row[row].values[e], w.values[e], sums[unit][row]);
    }
  }

  // What is another lane's goes there, and what is this one's comes from it.
  __device__ static A sum_of_lanes(const A (&sums)[kUnitsOfLanes][rows]) {
    static_assert(kUnitsOfLanes == 4 && kLanesOfUnits == 8);
    A of_row[rows];
#pragma unroll
    for (int row = 0; row < rows; ++row)
      of_row[row] = exchanged(exchanged(sums[0][row], sums[1][row], 1), exchanged(sums[2][row], sums[3][row], 1), 2);
    if constexpr (rows == 2)
      return exchanged(of_row[0], of_row[1], 4);
    else
      return of_row[0] + __shfl_xor_sync(0xffffffff, of_row[0], 4);
  }
  __device__ static A exchanged(A lower, A upper, int distance) {
    const bool is_upper = threadIdx.x & distance;
    return (is_upper ? upper : lower) + __shfl_xor_sync(0xffffffff, is_upper ? lower : upper, distance);
  }

  int fours_;
  Four own_[kOwn];
  Four* others_;
};

// Pairs of a block of steps: those before the first, fewer than an int counts.
__device__ inline int first_pair(const StepBlock& block, int step) {
  return static_cast<int>(pairs_before(block, step));
}
__device__ inline int rows_if_in(const StepBlock& block, int step) {
  return step >= block.begin && step < block.end ? running_rows(block, step) : 0;
}

// Also for a step in which the rank's row does not run.
template <class T>
__device__ inline Index offset_of(const Features<T>& features, const Order& order, bool reverse, int step, int rank) {
  return time_of(order, reverse, step, rank) * features.time_stride + order.row(rank) * features.row_stride;
}

template <class S, Cell cell, int rows>
struct UndividedForward {
  using A = Sum<S>;
  using Facts = About<cell>;
  using Memory = UndividedMemory<A, rows, static_cast<int>(undivided_operands_forward(Facts::description))>;
  static constexpr int gates = Facts::gates, first_gates = Facts::first_gates, slots = Facts::slots;

  const Recurrence<S>& r;
  const UndividedLane<rows> lane;
  const int units;
  const bool exists;  // the lane's unit, and its row in the block's first step
  const LaneWeights<A, gates, rows> weights;
  const A* projected;  // of the lane's row and unit, with the block's first pair
  A* kept;
  bool has_output;
  Index y_at = 0, y_step;  // where the output of a step stands, and from there that of the next one
  A bias[slots] = {}, peephole[kMostPeepholes] = {};
  A input[gates] = {}, next_input[gates] = {};
  A h = 0, c = 0, carried = 0;

  __device__ explicit UndividedForward(const Recurrence<S>& arguments)
      : r(arguments),
        units(r.first.units),
        exists(lane.unit < units && lane.rank < r.first.rows),
        weights(lane, r.plan.fours(), Memory::weights(),
                [&](int gate, int unit, int k) {
                  return unit < units && k < units
                             ? converted<A>(r.weights[(static_cast<Index>(gate) * units + unit) * units + k])
                             : A(0);
                }),
        projected(r.first.projected + static_cast<Index>(lane.rank) * gates * units + lane.unit),
        kept(r.first.kept ? r.first.kept + static_cast<Index>(lane.rank) * r.first.kept_slots * units + lane.unit
                          : nullptr),
        has_output(r.first.has_output && lane.copy == 0),
        y_step(r.first.reverse ? -r.first.output.time_stride : r.first.output.time_stride) {
    Memory::clear();
    if (!exists) return;
#pragma unroll
    for (int slot = 0; slot < slots; ++slot) bias[slot] = r.first.bias[slot * units + lane.unit];
    for (int i = 0; i < Facts::peepholes; ++i) peephole[i] = r.first.peephole[i * units + lane.unit];
    h = converted<A>(r.h_begin[r.first.at(lane.rank, lane.unit)]);
    if constexpr (Facts::has_c) c = r.first.c[r.first.at(lane.rank, lane.unit)];
    put(Memory::operand(r.block.begin, 0), h);
    y_at = offset_of(r.first.output, r.first.order, r.first.reverse, r.block.begin, lane.rank) + lane.unit;
  }

  __device__ void put(A* operand, A value) const {
    if (lane.copy == 0) operand[lane.place()] = value;
  }

  // The projected inputs of a step, which begins with `pair`.
  __device__ void fetch_step(int pair, int running) {
    if (!exists || lane.rank >= running) return;
    const A* from = projected + static_cast<Index>(pair) * (gates * units);
#pragma unroll
    for (int gate = 0; gate < gates; ++gate) next_input[gate] = from[gate * units];
  }

  // Where the row has ended (it does not `live`) results are dropped.
  template <int stage>
  __device__ void finish_stage(int pair, bool lives, const A* products, A* next) {
    Unit<A> u;
    begin_stage<cell, stage>(u, products, [&](int slot) { return bias[slot]; }, [&](int gate) { return input[gate]; });
    if constexpr (Facts::has_c) u.c_now = c;
    if constexpr (Facts::reads_h) u.h_before = h;
    if constexpr (stage > 0) u.carried = carried;
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = peephole[i];
    const S sent = converted<S>(go_forward<cell, stage>(u));
    if (lives) put(next, converted<A>(sent));
    go_on<cell, stage>(u);
    if constexpr (Facts::has_c) c = lives ? u.c_now : c;
    if constexpr (is_last_stage<cell, stage>)
      h = lives ? converted<A>(sent) : h;
    else
      carried = u.carried;
    if (!lives || lane.copy > 0) return;
    if (kept) keep<cell, stage>(kept + static_cast<Index>(pair) * (r.first.kept_slots * units), units, u);
    if constexpr (is_last_stage<cell, stage>)
      if (has_output) r.first.output.data[y_at] = sent;
  }

  __device__ void take_step(int t, int pair, bool lives) {
    A products[first_gates];
    weights.template multiply<0, first_gates>(lane, Memory::operand(t, 0), products);
    if constexpr (Facts::two_stages) {
      A* operand = Memory::operand(0, 1);
      finish_stage<0>(pair, lives, products, operand);
      __syncthreads();
      A of_second[gates - first_gates];
      weights.template multiply<first_gates, gates>(lane, operand, of_second);
      finish_stage<1>(pair, lives, of_second, Memory::operand(t + 1, 0));
    } else {
      finish_stage<0>(pair, lives, products, Memory::operand(t + 1, 0));
    }
    __syncthreads();
  }

  __device__ void run() {
    const StepBlock& block = r.block;
    int pair = 0, running = rows_if_in(block, block.begin), running_next = rows_if_in(block, block.begin + 1);
    fetch_step(pair, running);
    __syncthreads();
    for (int t = block.begin; t < block.end && running > static_cast<int>(blockIdx.x) * rows; ++t) {
      const int running_then = rows_if_in(block, t + 2);
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) input[gate] = next_input[gate];
      fetch_step(pair + running, running_next);
      take_step(t, pair, exists && lane.rank < running);
      y_at += y_step;
      pair += running;
      running = running_next;
      running_next = running_then;
    }
    if (!exists || lane.copy > 0) return;
    const Index at = r.first.at(lane.rank, lane.unit);
    for (S* to : r.h_end) to[at] = converted<S>(h);
    if constexpr (Facts::has_c) r.first.c[at] = c;
  }
};

template <class S, Cell cell, int rows>
__global__ void __launch_bounds__(kMostUndividedThreads, 1) forward_undivided(const __grid_constant__ Recurrence<S> r) {
  UndividedForward<S, cell, rows>(r).run();
}

template <class S, Cell cell, int rows>
struct UndividedBackward {
  using A = Sum<S>;
  using Facts = About<cell>;
  static constexpr int recurrent = Facts::first_gates, first_recurrent = Facts::first_recurrent_slot;
  static constexpr int vectors = static_cast<int>(undivided_operands_backward(Facts::description));
  static constexpr int slots = Facts::slots, kept_count = Facts::kept;
  using Memory = UndividedMemory<A, rows, vectors>;

  // What forward left of a step.
  struct Left {
    using Before = std::conditional_t<Facts::has_c, A, S>;
    A kept[kept_count > 0 ? kept_count : 1] = {};
    Before before = converted<Before>(0.0f);  // c[t-1], h[t-1] or h[t]
    A d_output = 0;
  };

  const BackRecurrence<S>& r;
  const UndividedLane<rows> lane;
  const int units;
  const bool exists;  // the lane's unit, and its row in the block's first step
  const LaneWeights<A, vectors, rows> weights;
  // Of the lane's row and unit, with the block's first pair.
  const A* kept;
  const S* state;
  S *d_a, *operand;
  Index d_output_at = 0,
        d_output_step;  // where the gradient of a step's output stands, and from there that of the next one
  A peephole[kMostPeepholes] = {};
  Left left, next_left;
  A d_h = 0, d_c = 0;

  __device__ explicit UndividedBackward(const BackRecurrence<S>& arguments)
      : r(arguments),
        units(r.first.units),
        exists(lane.unit < units && lane.rank < r.first.rows),
        weights(lane, r.plan.fours(), Memory::weights(), [&](int gate, int unit, int k) {
          return unit < units && k < units
                     ? converted<A>(r.weights[(static_cast<Index>(gate) * units + k) * units + unit])
                     : A(0);
        }) {
    Memory::clear();
    const auto rank = static_cast<Index>(lane.rank);
    kept = r.first.kept + rank * kept_count * units + lane.unit;
    state = (Facts::backward_reads_h_before ? r.first.h_before : r.first.h) + rank * units + lane.unit;
    d_a = r.first.d_a + rank * slots * units + lane.unit;
    operand = r.first.operand ? r.first.operand + rank * units + lane.unit : nullptr;
    d_output_step = r.first.reverse ? r.first.d_output.time_stride : -r.first.d_output.time_stride;
    if (!exists) return;
    for (int i = 0; i < Facts::peepholes; ++i) peephole[i] = r.first.peephole[i * units + lane.unit];
    d_h = r.first.d_h[r.first.at(lane.rank, lane.unit)];
    if constexpr (Facts::has_c) d_c = r.first.d_c[r.first.at(lane.rank, lane.unit)];
    d_output_at = offset_of(r.first.d_output, r.first.order, r.first.reverse, r.block.end - 1, lane.rank) + lane.unit;
  }

  // A step begins with `pair`; `running_before` rows run in the step before.
  __device__ void fetch_step(int t, int pair, int running, int running_before) {
    if (exists && lane.rank < running) {
      const int row = kept_count * units;
      const A* of_step = kept + static_cast<Index>(pair) * row;
#pragma unroll
      for (int slot = 0; slot < kept_count; ++slot) next_left.kept[slot] = of_step[slot * units];
      if constexpr (!Facts::has_c)
        next_left.before = state[static_cast<Index>(pair) * units];
      else if (t > r.block.begin)
        next_left.before = kept[static_cast<Index>(pair - running_before) * row + (kept_count - 1) * units];
      else
        next_left.before = r.c_at_begin[lane.rank * units + lane.unit];
      next_left.d_output = r.first.d_output.data[d_output_at];
    }
    d_output_at += d_output_step;
  }

  __device__ void load(BackUnit<A>& u) const {
#pragma unroll
    for (int slot = 0; slot < kept_count; ++slot) u.kept_values[slot] = left.kept[slot];
    u.c_read = u.h_read = converted<A>(left.before);
    u.d_h_now = u.carried = d_h;
    u.d_c_now = d_c;
    for (int i = 0; i < Facts::peepholes; ++i) u.peepholes[i] = peephole[i];
  }

  // Gradients of a slot's pre-activations, to the products and to where they are merged.
  __device__ void give_d_a(int t, int pair, int slot, A value) const {
    const S rounded = converted<S>(value);
    const int number = slot - first_recurrent;
    if (number >= 0 && number < vectors) Memory::operand(t, number)[lane.place()] = converted<A>(rounded);
    d_a[(static_cast<Index>(pair) * slots + slot) * units] = rounded;
  }

  __device__ void through_cell(int t, int pair, bool lives) {
    BackUnit<A> u;
    load(u);
    u.d_h_now += left.d_output;
    go_back<cell>(u);
    if (lives && lane.copy == 0) {
#pragma unroll
      for (int slot = Facts::late_slots; slot < slots; ++slot) give_d_a(t, pair, slot, u.d_a[slot]);
    }
    d_h = lives ? u.carried : d_h;
    if constexpr (Facts::has_c) d_c = lives ? u.d_c_now : d_c;
  }

  __device__ void through_second_operand(int t, int pair, bool lives, A product) {
    BackUnit<A> u;
    load(u);
    u.products = product;
    Mathematics<cell>::template backward<1>(u);
    d_h = lives ? u.carried : d_h;
    if (!lives || lane.copy > 0) return;
    for (int slot = 0; slot < Facts::late_slots; ++slot) give_d_a(t, pair, slot, u.d_a[slot]);
    operand[static_cast<Index>(pair) * units] = converted<S>(u.operand);
  }

  __device__ void take_step(int t, int pair, bool lives) {
    through_cell(t, pair, lives);
    __syncthreads();
    if constexpr (Facts::two_stages) {
      const A product = weights.template multiply_each<recurrent, vectors>(lane, Memory::operand(t, recurrent));
      through_second_operand(t, pair, lives, product);
      __syncthreads();
    }
    const A product = weights.template multiply_each<0, recurrent>(lane, Memory::operand(t, 0));
    d_h = lives ? d_h + product : d_h;
  }

  __device__ void run() {
    const StepBlock& block = r.block;
    int t = block.end - 1;
    int pair = first_pair(block, t), running = rows_if_in(block, t), running_next = rows_if_in(block, t - 1);
    fetch_step(t, pair, running, running_next);
    __syncthreads();
    for (; t >= block.begin; --t) {
      const int running_then = rows_if_in(block, t - 2);
      left = next_left;
      fetch_step(t - 1, pair - running_next, running_next, running_then);  // of no rows where there is no such step
      // or not yet
      if (running > static_cast<int>(blockIdx.x) * rows) take_step(t, pair, exists && lane.rank < running);
      pair -= running_next;
      running = running_next;
      running_next = running_then;
    }
    if (!exists || lane.copy > 0) return;
    const Index at = r.first.at(lane.rank, lane.unit);
    r.first.d_h[at] = d_h;
    if constexpr (Facts::has_c) r.first.d_c[at] = d_c;
  }
};

template <class S, Cell cell, int rows>
__global__ void __launch_bounds__(kMostUndividedThreads, 1)
    backward_undivided(const __grid_constant__ BackRecurrence<S> r) {
  UndividedBackward<S, cell, rows>(r).run();
}

}  // namespace gatedrnn::cuda
