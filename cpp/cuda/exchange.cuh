// What the blocks of a persistent kernel send each other, and two ways to wait for it.
//
// For few rows a value is its own signal: every step has memory of its own, full of `unsent` before the kernel starts, and who
// needs a value reads until it is another. So a step waits neither for a barrier nor for its other results to be written. For
// many rows it is cheaper to count who has sent all, and then to fetch without looking.
#pragma once

#include "rows.cuh"

namespace gatedrnn::cuda {

// 16 bytes of values, which one access of a thread reads.
template <class S>
struct alignas(16) Pack {
  static constexpr int count = 16 / sizeof(S);
  S values[count];
};

// Not a number, with all bits set: no sum has them.
template <class S>
__host__ __device__ inline bool is_unsent(S value) {
  using Bits = std::conditional_t<sizeof(S) == 2, std::uint16_t, typename Arithmetic<Sum<S>>::Bits>;
  Bits bits;
  memcpy(&bits, &value, sizeof bits);
  return bits == static_cast<Bits>(~Bits(0));
}

// A value as others may receive it: a number that is none has other bits than `unsent`, whatever the caller's x or h_0 had.
template <class S>
__device__ inline S sendable(S value) {
  return is_unsent(value) ? converted<S>(std::numeric_limits<Sum<S>>::quiet_NaN()) : value;
}

constexpr int kCounterStride = 32;  // so that groups do not share a line

// Counts the blocks of a group of rows that have sent their part.
class GroupCounter {
 public:
  __device__ GroupCounter(unsigned* arrived, int members) : arrived_(arrived), members_(members) {}

  // After all threads of the block have sent, and met.
  __device__ void arrive() const {
    if (threadIdx.x == 0) arrive_release(arrived_);
  }
  // For a warp: until all have arrived once more.
  __device__ void wait() {
    target_ += members_;
    while (load_acquire(arrived_) < target_) wait_a_little();
    __syncwarp();
  }

 private:
  unsigned* arrived_;
  unsigned members_, target_ = 0;
};

// What one step of a group of rows sends, in whole packs.
template <class S>
__host__ __device__ inline Index exchanged_values(Index depth, Index rows) {
  constexpr Index pack = Pack<S>::count;
  return (depth + pack - 1) / pack * pack * rows;
}

// What a lane fetches of a chunk of k of a warp's rows, [k][rows]: a pack, and further ones, each a turn of the warp further. A turn is
// whole rows of k, so that its packs are equally far from each other.
template <class S>
struct OwnPacks {
  static constexpr int turn = kWarp * Pack<S>::count;  // values
  int first, stride;                                   // in what is sent

  __device__ OwnPacks(int rows, int width_bits) {
    first = (staged() >> width_bits) * rows + (staged() & ((1 << width_bits) - 1));
    stride = (turn >> width_bits) * rows;
  }
  // Where the first one stands in the chunk.
  __device__ static int staged() { return static_cast<int>(threadIdx.x) % kWarp * Pack<S>::count; }
};

// Values of a chunk of k of a warp's rows on their way from other blocks: what a lane fetches of them.
template <class S>
struct Incoming {
  using P = Pack<S>;
  using Own = OwnPacks<S>;
  P packs[kStagedPacks];

  // `end` is the number of values that are sent.
  __device__ void start(const S* sent, const Own& own, int end) {
    const S* from = sent + own.first;
#pragma unroll
    for (int n = 0; n < kStagedPacks; ++n) {
      if (n * Own::turn >= end) break;
      if (Own::staged() + n * Own::turn < end) packs[n] = load_sent<P>(from);
      from += own.stride;
    }
  }
  __device__ bool complete(int end) const {
    bool all = true;
#pragma unroll
    for (int n = 0; n < kStagedPacks; ++n) {
      if (n * Own::turn >= end) break;
#pragma unroll
      for (int e = 0; e < P::count; ++e)
        all &= Own::staged() + n * Own::turn + e >= end || !is_unsent(packs[n].values[e]);
    }
    return all;
  }
  // Waits for the rest, and leaves `count` values in shared memory, zeros from `end` on.
  __device__ void finish(const S* sent, const Own& own, int end, int count, S* staged) {
    while (!complete(end)) {
      wait_a_little();
      start(sent, own, end);
    }
#pragma unroll
    for (int n = 0; n < kStagedPacks; ++n) {
      if (n * Own::turn >= count) break;
      const int at = Own::staged() + n * Own::turn;
      if (at >= count) continue;
      if (at + P::count > end)
#pragma unroll
        for (int e = 0; e < P::count; ++e)
          if (at + e >= end) packs[n].values[e] = converted<S>(0.0f);
      *reinterpret_cast<P*>(staged + at) = packs[n];
    }
  }
};

}  // namespace gatedrnn::cuda
