// What a product gets of a tile: rows and panels, a slice of the terms, and where the sums stand.
#pragma once

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/sums.h"
#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// Registers left for accumulators when one operand of each product is held and the other streams: AVX-512 and AArch64 have 32 in all,
// the others 16.
#if defined(__aarch64__)
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = sizeof(Simd<float>::V) == 64 ? 24 : 12;
#endif

// A block of vectors in memory: [panel][row][vectors][lanes].
template <class T>
struct Block {
  T* data;
  Index panel_stride, row_stride;
};

// Written field by field, and read so: what is stored as a whole vector and read back in pieces makes a tile wait until the one
// before is done. So rows are offsets, which stand in memory long before, and no struct is copied into this one.
template <class Product>
struct TileArgs {
  using T = typename Product::T;
  const typename Product::Word* x;   // the left side, at the slice's beginning
  const Index* row_at;               // where each of its rows begins, counted from there
  const unsigned char* weights;      // the first panel, at the slice's beginning
  Index panel_stride;                // bytes
  const unsigned char* prefetch;     // a cache line of the weights to come for each word of a row, or null
  const unsigned char* unit_scales;  // of the first panel, where the format has scales; and of its rows
  const T* row_scales;
  const Terms* terms;
  Index first_block, last_block;  // of the slice
  Block<const T> in, last_in;     // what the sums start from; the last vector's may stand elsewhere
  Block<T> out;
};

template <class T>
constexpr Index line = 64 / sizeof(T);

// Into the second-level cache: the first level is full of the slice at work. A kernel that waits for the third level at each
// new slice loses a quarter of its time at middle batches.
template <class T>
GATEDRNN_INLINE void prefetch_line(const T* p) {
  __builtin_prefetch(p, 0, 2);
}
template <class T>
GATEDRNN_INLINE void prefetch_lines(const T* p, Index count) {
  for (Index i = 0; i < count; i += line<T>) prefetch_line(p + i);
}

}  // namespace gatedrnn::GATEDRNN_ISA
