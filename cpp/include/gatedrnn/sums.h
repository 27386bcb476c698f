// The order in which every sum of products is added up, whatever computes it: a sum takes up the sums of blocks of successive
// terms, one after the other, each block being one chain of fused multiply-adds from zero. So rounding errors grow with the square
// root of a block's terms, and stay below those of chains over the whole.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

// Terms of a block of a product with weights: inputs or units, or gradients of pre-activations. (Other formats have their own.)
constexpr Index kBlockTerms = 128;

// Gradients of parameters are sums over (step, row) pairs: most of a block, and the blocks of a group, whose sum starts from zero
// too and goes to the gradient when it is complete.
constexpr Index kBlockPairs = 128;
constexpr Index kGroupBlocks = 128;

// The terms of one product with weights. Gradients of pre-activations stand in slots that are padded to whole vectors; the padding
// multiplies zeros and counts for no block.
class Terms {
 public:
  explicit constexpr Terms(Index depth, Index block = kBlockTerms) : Terms(depth, depth, depth, block) {}
  constexpr Terms(Index depth, Index slot, Index slot_stride, Index block = kBlockTerms)
      : depth_(depth),
        slot_(slot),
        stride_(slot_stride),
        block_(block),
        count_(depth <= slot || slot == slot_stride ? depth : ((depth - slot) / slot_stride + 1) * slot) {}

  Index depth() const { return depth_; }  // with padding
  Index blocks() const { return count_ > block_ ? (count_ + block_ - 1) / block_ : 1; }
  // Where a block begins, counted with padding.
  Index begin(Index block) const {
    const Index term = block * block_;
    if (term >= count_) return depth_;
    return slot_ == stride_ ? term : term / slot_ * stride_ + term % slot_;
  }

 private:
  Index depth_, slot_, stride_, block_, count_;
};

// Cuts (step, row) pairs into blocks: whole steps, from the last to the first, while their pairs together fill at most one; a step
// that exceeds one has blocks of its own.
class PairBlocks {
 public:
  // Goes on with a step of so many pairs. `end(pairs)` is called for each block that ends, with all pairs so far.
  template <class End>
  void add_step(Index count, End&& end) {
    if (open_ + count > kBlockPairs) finish(end);
    pairs_ += count;
    open_ += count;
    if (count <= kBlockPairs) return;
    for (Index cut = pairs_ - count + kBlockPairs; cut < pairs_; cut += kBlockPairs) end(cut);
    finish(end);
  }

  template <class End>
  void finish(End&& end) {
    if (open_ > 0) end(pairs_);
    open_ = 0;
  }

  // How many blocks so many pairs have at most: two that follow each other are more than one holds.
  static constexpr Index most(Index pairs) { return 2 * pairs / kBlockPairs + 1; }

 private:
  Index pairs_ = 0, open_ = 0;
};

}  // namespace gatedrnn
