// The left side of a product: rows of states, inputs or gradients, as they are or rounded to the format.
#pragma once

#include "tile.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class Product>
struct LeftSide {
  const typename Product::Word* data;
  Index stride;                           // words, from row to row
  const typename Product::T* row_scales;  // where the format has them

  // For the tile whose first row this is, in a slice that begins with this term.
  GATEDRNN_INLINE void place(TileArgs<Product>& tile, Index row, Index begin) const {
    tile.x = data + row * stride + begin / Product::layout.terms;
    if constexpr (Product::layout.scaled) tile.row_scales = row_scales + row;
  }
};

// Rounds `rows` rows, each of some slots of `units` terms; `row(i, slot)` is where a slot of a row is. `least` is the least scale of a
// row: that of the state is 1 as long as it stays in -1 .. 1.
template <class Product, class RowAt>
LeftSide<Product> rounded(void* scratch, Index rows, Index slots, Index units, Index depth, typename Product::T least,
                          RowAt&& row_at) {
  using Word = typename Product::Word;
  constexpr PanelLayout layout = Product::layout;
  constexpr Index word_bytes = layout.terms * layout.operand_bytes;
  static_assert(word_bytes == sizeof(Word));
  const Index stride = layout.rounded_stride(depth) / word_bytes, slot_words = layout.slot_stride(units) / layout.terms;
  Word* const to = static_cast<Word*>(scratch);
  auto* const scales = reinterpret_cast<typename Product::T*>(to + rows * stride);
  for (Index i = 0; i < rows; ++i)
    for (Index slot = 0; slot < slots; ++slot)
      scales[i] = Product::round(row_at(i, slot), units, least, to + i * stride + slot * slot_words);
  return {to, stride, scales};
}

}  // namespace gatedrnn::GATEDRNN_ISA
