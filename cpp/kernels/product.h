// The packed matrix product in any format: tiles of R rows x P panels, whose sums over a block of the terms stay in registers and
// then are added to those in memory. A `Product` (dot_product.h) starts the sums of a tile, multiplies, and finishes them into vectors.
#pragma once

#include "tile.h"

namespace gatedrnn::GATEDRNN_ISA {

constexpr int kMaxRows = 8;    // a panel has at least three vectors
constexpr int kMaxPanels = 4;  // more only helps a single row, whose chains four panels already hide

// Panels of four vectors can be worked in halves, which lets a tile be taller.
template <class Product>
constexpr int tile_vectors(int rows, int width) {
  return rows * width > Product::accumulators && width % 2 == 0 ? width / 2 : width;
}

template <class Product>
constexpr int max_whole_rows(int width) {
  const int fit = Product::accumulators / width;
  return fit < kMaxRows ? fit : kMaxRows;
}

template <class Product>
constexpr int max_rows(int width) {
  const int whole = max_whole_rows<Product>(width);
  return width % 2 == 0 && whole < 6 ? max_whole_rows<Product>(width / 2) : whole;
}

template <class Product>
constexpr int max_panels(int rows, int width) {
  const int fit = Product::accumulators / (rows * width);
  return fit < 1 ? 1 : fit < kMaxPanels ? fit : kMaxPanels;
}

// Rows that are evenly spaced.
struct EvenRows {
  Index at[kMaxRows];

  explicit EvenRows(Index stride) {
    for (int r = 0; r < kMaxRows; ++r) at[r] = r * stride;
  }
};

template <class Product>
GATEDRNN_INLINE void start_from(TileArgs<Product>& tile, Block<const typename Product::T> in, int vectors) {
  tile.in = in;
  tile.last_in = {in.data + (vectors - 1) * Product::S::lanes, in.panel_stride, in.row_stride};
}

// out = in + x W for the words k .. end, which are one block, and N of the W vectors that a panel is wide. A function of its own:
// inlined into the loop over blocks, its addresses found no room in registers, which took small steps 8 % longer.
template <class Product, int R, int P, int N, int W, bool prefetch>
__attribute__((noinline)) void multiply_block(const TileArgs<Product>& a, Index k, Index end, bool first) {
  using S = typename Product::S;
  typename Product::template Sums<R, P, N, W> sums;
  sums.start();
  sums.template multiply<prefetch>(a, k, end);
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
        S::store(out, sums.finish(a, S::load(first ? in : out), p, r, v));
      }
}

// The blocks of a slice.
template <class Product, int R, int P, int N, int W, bool prefetch>
void multiply_tile(const TileArgs<Product>& a) {
  const Index begin = a.terms->begin(a.first_block);
  for (Index block = a.first_block, k = 0; block < a.last_block; ++block) {
    const Index end = ceil_div(a.terms->begin(block + 1) - begin, Product::layout.terms);
    multiply_block<Product, R, P, N, W, prefetch>(a, k, end, block == a.first_block);
    k = end;
  }
}

template <class Product, int R, int N, int W>
GATEDRNN_INLINE void multiply_one_panel(const TileArgs<Product>& a) {
  return a.prefetch ? multiply_tile<Product, R, 1, N, W, true>(a) : multiply_tile<Product, R, 1, N, W, false>(a);
}

// `vectors` is W for whole panels, of which there may be several, or half of it.
template <class Product, int R, int W>
GATEDRNN_INLINE void multiply_rows(int panels, int vectors, const TileArgs<Product>& a) {
  constexpr int half = W % 2 == 0 ? W / 2 : W;
  if constexpr (R <= max_whole_rows<Product>(W)) {
    constexpr int most = max_panels<Product>(R, W);
    if constexpr (most >= 4)
      if (panels == 4) return multiply_tile<Product, R, 4, W, W, false>(a);
    if constexpr (most >= 3)
      if (panels == 3) return multiply_tile<Product, R, 3, W, W, false>(a);
    if constexpr (most >= 2)
      if (panels == 2) return multiply_tile<Product, R, 2, W, W, false>(a);
    if (vectors == W) return multiply_one_panel<Product, R, W, W>(a);
  }
  if constexpr (half < W && R <= max_rows<Product>(W)) return multiply_one_panel<Product, R, half, W>(a);
}

template <class Product, int W>
void multiply_tiles(int rows, int panels, int vectors, const TileArgs<Product>& a) {
  switch (rows) {
    case 1: return multiply_rows<Product, 1, W>(panels, vectors, a);
    case 2: return multiply_rows<Product, 2, W>(panels, vectors, a);
    case 3: return multiply_rows<Product, 3, W>(panels, vectors, a);
    case 4: return multiply_rows<Product, 4, W>(panels, vectors, a);
    case 5: return multiply_rows<Product, 5, W>(panels, vectors, a);
    case 6: return multiply_rows<Product, 6, W>(panels, vectors, a);
    case 7: return multiply_rows<Product, 7, W>(panels, vectors, a);
    case 8: return multiply_rows<Product, 8, W>(panels, vectors, a);
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
template <int W, class Product>
struct Tiling {
  static constexpr PanelLayout layout = Product::layout;

  const EvenParts rows, panels;
  const int vectors;  // of a panel that a tile covers at once
  // Of whole blocks. Where a vector takes a core a cycle, weights come from the second level as fast as they are wanted, and tiles
  // that go through all blocks save more than slices do.
  const EvenParts slices;
  const bool far;

  Tiling(const Core& core, Index row_count, Index panel_count, const Terms& terms)
      : Tiling(core, row_count, panel_count, terms.depth(), terms.blocks()) {}
  Tiling(const Core& core, Index row_count, Index panel_count, Index depth, Index blocks)
      : rows(row_count, panel_count * layout.panel_bytes(depth, W) > kFarBytes ? max_whole_rows<Product>(W)
                                                                               : max_rows<Product>(W)),
        panels(panel_count, most_panels(core, panel_count, depth)),
        vectors(tile_vectors<Product>(tallest(), W)),
        slices(blocks, vectors == W && (rows.parts == 1 || core.takes_a_cycle(sizeof(typename Product::V)))
                           ? blocks
                           : slice_blocks()),
        far(panel_count * layout.panel_bytes(depth, W) > kNearBytes) {}

  // Panels of a tile that fit into the first-level cache are found there by the next step, which begins where this one ends.
  Index most_panels(const Core& core, Index count, Index depth) const {
    const Index most = max_panels<Product>(tallest(), W), panel_bytes = layout.panel_bytes(depth, W);
    const Index resident = panel_bytes > 0 ? core.l1 / panel_bytes : count;
    return resident >= 2 && resident < count && resident < most ? resident : most;
  }
  // Halves of a panel read by a single tile gain nothing from depth, and lose the hardware's prefetching to it.
  Index slice_blocks() const {
    const Index bytes = rows.parts == 1 ? Product::slice_bytes / 2 : Product::slice_bytes;
    const Index fit = bytes / layout.weights_bytes(layout.block_terms, vectors);
    return fit < 1 ? 1 : fit;
  }
  int tallest() const { return static_cast<int>(rows.begin(1)); }
};

// Visits every tile of (rows x panels) for each slice of the terms. Panels outermost and rows innermost, so that a slice of
// the weights, once in the first-level cache, serves all rows. The tile arrives with its weights filled in. `panels_reversed` visits
// the panels from the last to the first.
template <int W, class Product, class Visit>
GATEDRNN_INLINE void visit_tiles(const Core& core, Index rows, Index first_panel, Index last_panel, const Terms& terms,
                                 const void* panels_of_weights, bool panels_reversed, Visit&& visit) {
  if (rows == 0 || first_panel == last_panel) return;
  const Tiling<W, Product> tiling(core, rows, last_panel - first_panel, terms);
  constexpr PanelLayout layout = Product::layout;
  const auto* const weights = static_cast<const unsigned char*>(panels_of_weights);
  const Index depth = terms.depth(), panel_bytes = layout.panel_bytes(depth, W);
  const auto part_at = [&](Index i) { return panels_reversed ? tiling.panels.parts - 1 - i : i; };
  for (Index i = 0; i < tiling.panels.parts; ++i) {
    const Index part = part_at(i), panel = first_panel + tiling.panels.begin(part);
    const int panels = static_cast<int>(tiling.panels.begin(part + 1) - tiling.panels.begin(part));
    const bool more = i + 1 < tiling.panels.parts;
    const Index next_panel = more ? first_panel + tiling.panels.begin(part_at(i + 1)) : panel;
    for (Index slice = 0; slice < tiling.slices.parts; ++slice) {
      const Index first_block = tiling.slices.begin(slice), last_block = tiling.slices.begin(slice + 1);
      const Index begin = terms.begin(first_block), end = terms.begin(last_block);
      const Index slice_bytes = layout.weights_bytes(end - begin, W);
      const unsigned char* here = weights + panel * panel_bytes + layout.weights_bytes(begin, W);
      const unsigned char* next = end < depth ? here + slice_bytes : weights + next_panel * panel_bytes;
      Index fetched = 0;  // the tiles of this slice fetch the next one between them, a line for each word
      for (int vector = 0; vector < W; vector += tiling.vectors) {
        for (Index rp = 0; rp < tiling.rows.parts;
             ++rp, fetched += ceil_div(end - begin, layout.terms) * line<unsigned char>) {
          const Index row = tiling.rows.begin(rp);
          TileArgs<Product> tile;
          tile.weights = here + vector * layout.vector_bytes();
          tile.panel_stride = panel_bytes;
          if constexpr (layout.scaled)
            tile.unit_scales = weights + panel * panel_bytes + layout.weights_bytes(depth, W) +
                               vector * Product::S::lanes * layout.sum_bytes;
          tile.terms = &terms;
          tile.first_block = first_block;
          tile.last_block = last_block;
          tile.prefetch = tiling.far && fetched < slice_bytes ? next + fetched : nullptr;
          visit(TilePlace{panel, panels, row, static_cast<int>(tiling.rows.begin(rp + 1) - row), vector, tiling.vectors,
                          begin, end == depth && vector + tiling.vectors == W},
                tile);
        }
      }
    }
  }
}

}  // namespace gatedrnn::GATEDRNN_ISA
