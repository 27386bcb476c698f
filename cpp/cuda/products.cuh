// The products of a persistent kernel: of what others sent with the weights that a block keeps in shared memory.
#pragma once

#include "exchange.cuh"

namespace gatedrnn::cuda {

template <class S, int count>
struct alignas(sizeof(S) * count < 16 ? sizeof(S) * count : 16) Values {
  S values[count];
};

// A thread's tile: `row_count` times `row_width` neighbouring rows, `vector_count` times 4 neighbouring vectors. Lanes have neighbouring
// fours, so that they read shared memory together.
template <int tile_rows>
struct Tile {
  static constexpr int row_width = 4, row_count = tile_rows / row_width;
  static constexpr int vector_count = tile_rows == 8 ? 2 : 1, vectors = 4 * vector_count;
};

// What a thread does in a product; see Tiling.
struct Lanes {
  int vector_lanes, row_lanes, vector, row;
  int k, k_turn, turn_bits;
  int tile, part, parts, row_tiles;  // the warp's rows, and its range of k
  int width_bits;                    // of the warp's number of rows
  int sum_stride;                    // between the sums of two vectors

  __device__ explicit Lanes(const Tiling& t) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    vector_lanes = t.vector_lanes;
    row_lanes = t.row_lanes;
    row = lane % row_lanes;
    vector = lane / row_lanes % vector_lanes;
    k = lane / (vector_lanes * row_lanes);
    k_turn = t.k_turn();
    turn_bits = bits_of(k_turn);
    parts = t.parts;
    row_tiles = t.row_tiles();
    tile = warp % row_tiles;
    part = warp / row_tiles;
    width_bits = bits_of(t.warp_rows);
    sum_stride = t.sum_stride();
  }
  __device__ static int bits_of(int power) {
    int bits = 0;
    while ((1 << bits) < power) ++bits;
    return bits;
  }
};

// Adds up what the lanes with other k have: at each distance a lane passes on one half of its values and keeps the other. Then
// calls `visit(values, first, count)` with those that this lane has the sums of. The order of the sums is that of a butterfly.
template <int count, class A, class Visit>
__device__ inline void sum_over_k(A* v, int distance, int first, bool own, Visit&& visit) {
  if (distance == kWarp) {
    if (own) visit(v, first, std::integral_constant<int, count>());
    return;
  }
  const bool upper = threadIdx.x & distance;
  if constexpr (count == 1) {
    v[0] += __shfl_xor_sync(0xffffffffu, v[0], distance);
    sum_over_k<1>(v, 2 * distance, first, own && !upper, visit);
  } else {
    constexpr int half = count / 2;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const A sent = upper ? v[i] : v[i + half], kept = upper ? v[i + half] : v[i];
      v[i] = kept + __shfl_xor_sync(0xffffffffu, sent, distance);
    }
    sum_over_k<half>(v, 2 * distance, upper ? first + half : first, own, visit);
  }
}

// What a thread multiplies at a time: its rows' and vectors' values of one k.
template <class S, int tile_rows>
struct Operands {
  using A = Sum<S>;
  using T = Tile<tile_rows>;
  Values<S, T::row_width> x[T::row_count];
  Values<S, 4> w[T::vector_count];

  __device__ void load(const S* x_at, const S* w_at, const int* row_at, const int* vector_at) {
#pragma unroll
    for (int n = 0; n < T::row_count; ++n) x[n] = *reinterpret_cast<const Values<S, T::row_width>*>(x_at + row_at[n]);
#pragma unroll
    for (int n = 0; n < T::vector_count; ++n) w[n] = *reinterpret_cast<const Values<S, 4>*>(w_at + vector_at[n]);
  }
  __device__ void multiply(A* sums) const {
#pragma unroll
    for (int j = 0; j < T::vectors; ++j)
#pragma unroll
      for (int i = 0; i < tile_rows; ++i)
        sums[j * tile_rows + i] = ::fma(converted<A>(x[i / T::row_width].values[i % T::row_width]),
                                        converted<A>(w[j / 4].values[j % 4]), sums[j * tile_rows + i]);
  }
};

// A warp's part of the products of a group's rows, [depth][rows] as sent, with weights [depth][vectors].
template <class S, int tile_rows>
struct WarpProduct {
  using A = Sum<S>;
  using T = Tile<tile_rows>;
  const ProductPlan& plan;
  const Lanes& lanes;
  int rows;
  const S *sent, *weights;
  S* staged;
  OwnPacks<S> own;
  A sums[T::vectors * tile_rows] = {};

  __device__ WarpProduct(const ProductPlan& plan, const Lanes& lanes, int rows, const S* sent, const S* weights,
                         S* staged)
      : plan(plan),
        lanes(lanes),
        rows(rows),
        sent(sent),
        weights(weights),
        staged(staged),
        own(rows, lanes.width_bits) {}

  // Of k.
  __device__ int begin() const { return lanes.part * plan.part; }
  __device__ int last() const { return begin() + plan.part; }
  __device__ int end() const { return min(last(), plan.depth); }

  // A chunk of k: where it is sent, how many values that are, and how many are staged.
  __device__ const S* chunk_from(int k) const { return sent + k * rows + (lanes.tile << lanes.width_bits); }
  __device__ int values_sent(int k) const { return (min(k + plan.chunk, end()) - k) << lanes.width_bits; }
  __device__ int values_staged(int k) const { return (min(k + plan.chunk, last()) - k) << lanes.width_bits; }

  __device__ void multiply_chunk(int first, const S* from) {
    const int count = min(plan.chunk, last() - first), vectors = plan.vectors;
    int vector_at[T::vector_count], row_at[T::row_count];
#pragma unroll
    for (int n = 0; n < T::vector_count; ++n)
      vector_at[n] =
          min(lanes.vector + n * lanes.vector_lanes, vectors / 4 - 1) * 4;  // those past the end are not used
#pragma unroll
    for (int n = 0; n < T::row_count; ++n) row_at[n] = (lanes.row + n * lanes.row_lanes) * T::row_width;
    const S* x_at = from + (lanes.k << lanes.width_bits);
    const S* w_at = weights + (first + lanes.k) * vectors;
    const int x_turn = lanes.k_turn << lanes.width_bits, w_turn = lanes.k_turn * vectors;
    // While some are multiplied, the next ones are on their way; the last turn loads something that exists, for nobody.
    Operands<S, tile_rows> operands[2];
    operands[0].load(x_at, w_at, row_at, vector_at);
    int turns = count >> lanes.turn_bits;
    for (; turns >= 2; turns -= 2) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const bool more = n == 0 || turns > 2;
        x_at += more ? x_turn : 0;
        w_at += more ? w_turn : 0;
        operands[1 - n].load(x_at, w_at, row_at, vector_at);
        operands[n].multiply(sums);
      }
    }
    if (turns > 0) operands[0].multiply(sums);
  }

  // Reads until all is sent; while a chunk is multiplied, the next one is on its way.
  __device__ void multiply_as_sent() {
    Incoming<S> incoming;
    const int end = this->end();
    if (begin() < end) {
      incoming.start(chunk_from(begin()), own, values_sent(begin()));
      incoming.finish(chunk_from(begin()), own, values_sent(begin()), values_staged(begin()), staged);
    }
    for (int first = begin(); first < end; first += plan.chunk) {
      const int next = first + plan.chunk;
      __syncwarp();
      if (next < end) incoming.start(chunk_from(next), own, values_sent(next));
      multiply_chunk(first, staged);
      __syncwarp();
      if (next < end) incoming.finish(chunk_from(next), own, values_sent(next), values_staged(next), staged);
    }
  }

  // Where all has been sent: two chunks are staged, and one of them is fetched while the other one is multiplied.
  __device__ void multiply_sent() {
    const int end = this->end(), size = plan.chunk << lanes.width_bits;
    fetch_chunk(begin(), staged);
    fetch_chunk(begin() + plan.chunk, staged + size);
    int place = 0;
    for (int first = begin(); first < end; first += plan.chunk) {
      await_fetched_but_one();
      __syncwarp();
      multiply_chunk(first, staged + place);
      __syncwarp();
      fetch_chunk(first + 2 * plan.chunk, staged + place);
      place = size - place;
    }
  }
  __device__ void fetch_chunk(int first, S* to) const {
    using Own = OwnPacks<S>;
    if (first < end()) {
      const S* from = chunk_from(first) + own.first;
      const int values = values_staged(first) - Own::staged(), exist = values_sent(first) - Own::staged();
      to += Own::staged();
#pragma unroll
      for (int n = 0; n < kStagedPacks; ++n) {
        if (n * Own::turn >= values) break;
        fetch_16_bytes(to + n * Own::turn, from, n * Own::turn < exist);
        from += own.stride;
      }
    }
    end_of_fetch();
  }

  // The sums to the warp's memory, [vector][row of the warp].
  __device__ void leave_sums() {
    A* to = reinterpret_cast<A*>(staged);
    sum_over_k<T::vectors * tile_rows>(
        sums, lanes.vector_lanes * lanes.row_lanes, 0, true, [&](const A* v, int first_sum, auto sum_count) {
          constexpr int count = decltype(sum_count)::value, together = count < T::row_width ? count : T::row_width;
#pragma unroll
          for (int n = 0; n < count; n += together) {
            const int j = (first_sum + n) / tile_rows, i = (first_sum + n) % tile_rows;
            const int vector = (lanes.vector + j / 4 * lanes.vector_lanes) * 4 + j % 4;
            if (vector >= plan.vectors) continue;
            Values<A, together> values;
#pragma unroll
            for (int e = 0; e < together; ++e) values.values[e] = v[n + e];
            const int row = (lanes.row + i / T::row_width * lanes.row_lanes) * T::row_width + i % T::row_width;
            *reinterpret_cast<Values<A, together>*>(to + vector * lanes.sum_stride + row) = values;
          }
        });
  }
};

// The products of one row, [depth] as sent, with weights [unit][gate][depth], zeros up to whole parts. The warps wait for a part of the
// values each, and then each makes the sums of its units, [unit][gate] in its own shared memory.
template <class S, int gates>
__device__ inline void multiply_row(const ProductPlan& plan, int units, int units_of_warp, const S* sent,
                                    const S* weights, S* staged, Sum<S>* sums) {
  using A = Sum<S>;
  using P = Pack<S>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int last = (warp + 1) * plan.part, depth = kRecurrenceWarps * plan.part;
  for (int first = warp * plan.part; first < last; first += plan.chunk) {
    const int count = min(plan.chunk, last - first), end = min(count, plan.depth - first);
    const OwnPacks<S> own(1, 0);
    Incoming<S> incoming;
    incoming.start(sent + first, own, end);
    incoming.finish(sent + first, own, end, count, staged + first);
  }
  __syncthreads();
  const int first_unit = warp * units_of_warp, last_unit = min(units, first_unit + units_of_warp);
  for (int unit = first_unit; unit < last_unit; ++unit) {
    constexpr int count = gates == 3 ? 4 : gates;  // a power of two
    A products[count] = {};
    const S* w = weights + unit * gates * depth;
#pragma unroll 2
    for (int k = lane * P::count; k < depth; k += kWarp * P::count) {
      const P x = *reinterpret_cast<const P*>(staged + k);
#pragma unroll
      for (int gate = 0; gate < gates; ++gate) {
        const P of_gate = *reinterpret_cast<const P*>(w + gate * depth + k);
#pragma unroll
        for (int e = 0; e < P::count; ++e)
          products[gate] = ::fma(converted<A>(x.values[e]), converted<A>(of_gate.values[e]), products[gate]);
      }
    }
    sum_over_k<count>(products, 1, 0, true, [&](const A* v, int gate, auto) {
      if (gate < gates) sums[(unit - first_unit) * gates + gate] = v[0];
    });
  }
}

}  // namespace gatedrnn::cuda
