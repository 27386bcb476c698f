// The packed matrix product: tiles of R rows x P panels whose accumulators stay in registers over a block of the terms, and then
// are added to the sums in memory. Whatever the tile, each accumulator is one chain of fused multiply-adds in the order of k.
#pragma once

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/sums.h"
#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// Registers left for accumulators when one operand of each product is held and the other streams.
constexpr int kAccumulators = sizeof(Simd<float>::V) == 64 ? 24 : 12;

// With more than one row tile, this much of the weights stays in the first-level cache across the tiles.
constexpr Index kSliceBytes = kAccumulators > 12 ? 32 << 10 : 16 << 10;

constexpr int kMaxRows = 8;    // a panel has at least three vectors
constexpr int kMaxPanels = 4;  // more only helps a single row, whose chains four panels already hide

// Panels of four vectors can be worked in halves, which lets a tile be taller.
constexpr int tile_vectors(int rows, int width) {
  return rows * width > kAccumulators && width % 2 == 0 ? width / 2 : width;
}

constexpr int max_whole_rows(int width) {
  const int fit = kAccumulators / width;
  return fit < kMaxRows ? fit : kMaxRows;
}

constexpr int max_rows(int width) {
  return width % 2 == 0 && max_whole_rows(width) < 6 ? max_whole_rows(width / 2) : max_whole_rows(width);
}

constexpr int max_panels(int rows, int width) {
  const int fit = kAccumulators / (rows * width);
  return fit < 1 ? 1 : fit < kMaxPanels ? fit : kMaxPanels;
}

// A block of vectors in memory: [panel][row][vectors][lanes].
template <class T>
struct Block {
  T* data;
  Index panel_stride, row_stride;
};

// Written field by field, and read so: what is stored as a whole vector and read back in pieces makes a tile wait until the one
// before is done. So rows are offsets, which stand in memory long before, and no struct is copied into this one.
template <class T>
struct TileArgs {
  const T* x;           // the left side, at the slice's beginning
  const Index* row_at;  // where each of its rows begins, counted from there
  const T* weights;     // the first panel, at the slice's beginning
  Index panel_stride;
  const T* prefetch;  // a cache line of the weights to come for each k, or null
  const Terms* terms;
  Index first_block, last_block;  // of the slice
  Block<const T> in, last_in;     // what the sums start from; the last vector's may stand elsewhere
  Block<T> out;
};

// Rows that are evenly spaced.
struct EvenRows {
  Index at[kMaxRows];

  explicit EvenRows(Index stride) {
    for (int r = 0; r < kMaxRows; ++r) at[r] = r * stride;
  }
};

template <class S>
GATEDRNN_INLINE void start_from(TileArgs<typename S::T>& tile, Block<const typename S::T> in, int vectors) {
  tile.in = in;
  tile.last_in = {in.data + (vectors - 1) * S::lanes, in.panel_stride, in.row_stride};
}

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

// out = in + x W for the terms k .. end, which are one block, and N of the W vectors that a panel is wide. A function of its own:
// inlined into the loop over blocks, its addresses found no room in registers, which took small steps 8 % longer.
template <class S, int R, int P, int N, int W, bool prefetch>
__attribute__((noinline)) void multiply_block(const TileArgs<typename S::T>& a, Index k, Index end, bool first) {
  using V = typename S::V;
  V acc[P][R][N];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) acc[p][r][v] = S::set(0);

  const typename S::T* rows[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) rows[r] = a.x + a.row_at[r];
  const typename S::T* w = a.weights + k * (W * S::lanes);
#pragma GCC unroll 4
  for (; k < end; ++k, w += W * S::lanes) {
    if constexpr (prefetch) prefetch_line(a.prefetch + k * line<typename S::T>);
    if constexpr (R < N) {  // hold the rows, stream the panel
      V x[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) x[r] = S::set(rows[r][k]);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) {
          const V wv = S::load(w + p * a.panel_stride + v * S::lanes);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) acc[p][r][v] = S::madd(x[r], wv, acc[p][r][v]);
        }
    } else {  // hold the panel, stream the rows
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        V wv[N];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) wv[v] = S::load(w + p * a.panel_stride + v * S::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const V x = S::set(rows[r][k]);
#pragma GCC unroll 8
          for (int v = 0; v < N; ++v) acc[p][r][v] = S::madd(x, wv[v], acc[p][r][v]);
        }
      }
    }
  }

#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) {
        auto* const out = a.out.data + p * a.out.panel_stride + r * a.out.row_stride + v * S::lanes;
        const auto& from = v == N - 1 ? a.last_in : a.in;
        const auto* const in =
            from.data + p * from.panel_stride + r * from.row_stride + (v == N - 1 ? 0 : v * S::lanes);
        S::store(out, S::add(S::load(first ? in : out), acc[p][r][v]));
      }
}

// The blocks of a slice.
template <class S, int R, int P, int N, int W, bool prefetch>
void multiply_tile(const TileArgs<typename S::T>& a) {
  const Index begin = a.terms->begin(a.first_block);
  for (Index block = a.first_block, k = 0; block < a.last_block; ++block) {
    const Index end = a.terms->begin(block + 1) - begin;
    multiply_block<S, R, P, N, W, prefetch>(a, k, end, block == a.first_block);
    k = end;
  }
}

template <class S, int R, int N, int W>
GATEDRNN_INLINE void multiply_one_panel(const TileArgs<typename S::T>& a) {
  return a.prefetch ? multiply_tile<S, R, 1, N, W, true>(a) : multiply_tile<S, R, 1, N, W, false>(a);
}

// `vectors` is W for whole panels, of which there may be several, or half of it.
template <class S, int R, int W>
GATEDRNN_INLINE void multiply_rows(int panels, int vectors, const TileArgs<typename S::T>& a) {
  constexpr int half = W % 2 == 0 ? W / 2 : W;
  if constexpr (R <= max_whole_rows(W)) {
    constexpr int most = max_panels(R, W);
    if constexpr (most >= 4)
      if (panels == 4) return multiply_tile<S, R, 4, W, W, false>(a);
    if constexpr (most >= 3)
      if (panels == 3) return multiply_tile<S, R, 3, W, W, false>(a);
    if constexpr (most >= 2)
      if (panels == 2) return multiply_tile<S, R, 2, W, W, false>(a);
    if (vectors == W) return multiply_one_panel<S, R, W, W>(a);
  }
  if constexpr (half < W && R <= max_rows(W)) return multiply_one_panel<S, R, half, W>(a);
}

template <class S, int W>
void multiply(int rows, int panels, int vectors, const TileArgs<typename S::T>& a) {
  switch (rows) {
    case 1: return multiply_rows<S, 1, W>(panels, vectors, a);
    case 2: return multiply_rows<S, 2, W>(panels, vectors, a);
    case 3: return multiply_rows<S, 3, W>(panels, vectors, a);
    case 4: return multiply_rows<S, 4, W>(panels, vectors, a);
    case 5: return multiply_rows<S, 5, W>(panels, vectors, a);
    case 6: return multiply_rows<S, 6, W>(panels, vectors, a);
    case 7: return multiply_rows<S, 7, W>(panels, vectors, a);
    case 8: return multiply_rows<S, 8, W>(panels, vectors, a);
  }
}

// `count` things in parts that differ by at most one: a lone row in the last tile would cost as much as a full tile.
struct EvenParts {
  const Index parts, least, larger;  // so many have one more than the least

  EvenParts(Index count, Index most)
      : parts(count > most ? (count + most - 1) / most : 1), least(count / parts), larger(count % parts) {}
  Index begin(Index part) const { return part * least + (part < larger ? part : larger); }
};

// A slice of the terms of some rows and panels, and of a panel's vectors.
struct TilePlace {
  Index panel;
  int panels;
  Index row;
  int rows;
  int vector, vectors;  // the first of them, and how many
  Index begin;
  bool last;  // nothing remains to be multiplied for these rows and panels
};

// How one product is cut into tiles.
template <int W, class S>
struct Tiling {
  using T = typename S::T;
  static constexpr Index width = W * S::lanes;  // of a panel

  const EvenParts rows, panels;
  const int vectors;  // of a panel that a tile covers at once
  // Of whole blocks. Where a vector takes a core a cycle, weights come from the second level as fast as they are wanted, and tiles
  // that go through all blocks save more than slices do.
  const EvenParts slices;
  const bool far;

  Tiling(const Core& core, Index row_count, Index panel_count, const Terms& terms)
      : Tiling(core, row_count, panel_count, terms.depth(), terms.blocks()) {}
  Tiling(const Core& core, Index row_count, Index panel_count, Index depth, Index blocks)
      : rows(row_count,
             panel_count * depth * width * static_cast<Index>(sizeof(T)) > kFarBytes ? max_whole_rows(W) : max_rows(W)),
        panels(panel_count, most_panels(core, panel_count, depth)),
        vectors(tile_vectors(tallest(), W)),
        slices(blocks, vectors == W && (rows.parts == 1 || core.takes_a_cycle(sizeof(typename S::V))) ? blocks
                                                                                                      : slice_blocks()),
        far(panel_count * depth * width * static_cast<Index>(sizeof(T)) > kNearBytes) {}

  // Panels of a tile that fit into the first-level cache are found there by the next step, which begins where this one ends.
  Index most_panels(const Core& core, Index count, Index depth) const {
    const Index most = max_panels(tallest(), W), panel_bytes = depth * width * Index(sizeof(T));
    const Index resident = panel_bytes > 0 ? core.l1 / panel_bytes : count;
    return resident >= 2 && resident < count && resident < most ? resident : most;
  }
  // Halves of a panel read by a single tile gain nothing from depth, and lose the hardware's prefetching to it.
  Index slice_blocks() const {
    const Index bytes = rows.parts == 1 ? kSliceBytes / 2 : kSliceBytes;
    const Index fit = bytes / (vectors * S::lanes * Index(sizeof(T)) * kBlockTerms);
    return fit < 1 ? 1 : fit;
  }
  int tallest() const { return static_cast<int>(rows.begin(1)); }
};

// Visits every tile of (rows x panels) for each slice of the terms. Panels outermost and rows innermost, so that a slice of
// the weights, once in the first-level cache, serves all rows. The tile arrives with its weights filled in. `panels_reversed` visits
// the panels from the last to the first.
template <int W, class S, class Visit>
GATEDRNN_INLINE void for_each_tile(const Core& core, Index rows, Index first_panel, Index last_panel,
                                   const Terms& terms, const typename S::T* weights, bool panels_reversed,
                                   Visit&& visit) {
  using T = typename S::T;
  if (rows == 0 || first_panel == last_panel) return;
  const Tiling<W, S> tiling(core, rows, last_panel - first_panel, terms);
  const Index depth = terms.depth(), width = tiling.width, panel_size = depth * width;
  const auto part_at = [&](Index i) { return panels_reversed ? tiling.panels.parts - 1 - i : i; };
  for (Index i = 0; i < tiling.panels.parts; ++i) {
    const Index part = part_at(i), panel = first_panel + tiling.panels.begin(part);
    const int panels = static_cast<int>(tiling.panels.begin(part + 1) - tiling.panels.begin(part));
    const bool more = i + 1 < tiling.panels.parts;
    const Index next_panel = more ? first_panel + tiling.panels.begin(part_at(i + 1)) : panel;
    for (Index slice = 0; slice < tiling.slices.parts; ++slice) {
      const Index first_block = tiling.slices.begin(slice), last_block = tiling.slices.begin(slice + 1);
      const Index begin = terms.begin(first_block), end = terms.begin(last_block);
      const T* here = weights + panel * panel_size + begin * width;
      const T* next = end < depth ? weights + panel * panel_size + end * width : weights + next_panel * panel_size;
      Index fetched = 0;  // the tiles of this slice fetch the next one between them, a line for each k
      for (int vector = 0; vector < W; vector += tiling.vectors) {
        for (Index rp = 0; rp < tiling.rows.parts; ++rp, fetched += (end - begin) * line<T>) {
          const Index row = tiling.rows.begin(rp);
          TileArgs<T> tile;
          tile.weights = here + vector * S::lanes;
          tile.panel_stride = panel_size;
          tile.terms = &terms;
          tile.first_block = first_block;
          tile.last_block = last_block;
          tile.prefetch = tiling.far && fetched < (end - begin) * width ? next + fetched : nullptr;
          visit(TilePlace{panel, panels, row, static_cast<int>(tiling.rows.begin(rp + 1) - row), vector, tiling.vectors,
                          begin, end == depth && vector + tiling.vectors == W},
                tile);
        }
      }
    }
  }
}

}  // namespace gatedrnn::GATEDRNN_ISA
