// The ring of blocks of time steps that lies between the recurrence backward and the products over what it leaves.
#pragma once

#include "call.h"
#include "gatedrnn/tape.h"

namespace gatedrnn {

template <class T>
class BlockRing {
 public:
  // What the recurrence of one block leaves, a row for each (step, rank) pair: from the last step to the first, in each by rank.
  struct Block {
    Index begin = 0, end = 0;  // steps
    Index pairs = 0;
    const Index* offsets = nullptr;    // of each step's pairs, from the last step to the first, and their end
    const Index* pair_ends = nullptr;  // of its blocks of pairs
    Index pair_blocks = 0, first = 0;  // so many of them, the first of which is the how manieth of all
    T* d_a = nullptr;                  // [pair][d_a_stride]
    T* operand_of_weights = nullptr;   // [pair][slot]
    T* d_h = nullptr;                  // [pair][d_h_stride]: before the projection
    Index ring_end = 0;                // where it ends in the ring

    Index offset(Index step) const { return offsets[end - 1 - step]; }
  };

  BlockRing(const Call<T>& call, const Tape<T>& tape)
      : call_(call),
        gradient_blocks_(call.plan.gradient_threads > 0 ? tape.cut(call.plan.block_pairs, tape.steps) : StepBlocks{}),
        blocks_(call.plan.gradient_threads > 0 ? gradient_blocks_ : tape.blocks) {}

  void carve(Arena& arena) {
    d_a_ = arena.take<T>(ring_pairs() * d_a_stride());
    operand_of_weights_ = arena.take<T>(has_operand_of_weights() ? ring_pairs() * slot() : 0);
    d_h_ = arena.take<T>(call_.spec.proj_size > 0 ? ring_pairs() * d_h_stride() : 0);
    offsets_ = arena.take<Index>(2 * call_.plan.threads() * offsets_size());
  }

  Index slot() const { return slot_stride(call_.spec.hidden_size, call_.lanes()); }
  // A line more than the values, so that what reads on to a multiple of kGemmColumns, or to a whole vector, stays in the row.
  Index d_a_stride() const { return odd_lines<T>(call_.cell.gradient_slots() * slot()); }
  Index d_h_stride() const { return odd_lines<T>(call_.spec.state_size()); }
  bool has_operand_of_weights() const { return call_.cell.two_stages() || call_.spec.proj_size > 0; }

  Index count() const { return blocks_.count(); }
  Index most_pairs() const { return blocks_.most_pairs; }

  // The b-th block from the end, with a place in the ring behind the one before. A thread has two of them at a time.
  Block take(int thread, Index b, const Block& before) const {
    const Index i = count() - 1 - b;
    Block block;
    block.begin = blocks_.begins[i];
    block.end = blocks_.begins[i + 1];
    block.first = blocks_.pair_blocks[i];
    list_offsets(block, offsets_ + (2 * thread + b % 2) * offsets_size());
    const Index at = before.ring_end + block.pairs <= ring_pairs() ? before.ring_end : 0;
    block.d_a = d_a_ + at * d_a_stride();
    block.operand_of_weights = operand_of_weights_ + at * slot();
    block.d_h = d_h_ + at * d_h_stride();
    block.ring_end = at + block.pairs;
    return block;
  }

  // `visit(pair, step, rank)`
  template <class Visit>
  void for_each_pair(const Block& block, Visit&& visit) const {
    Index pair = 0;
    for (Index step = block.end - 1; step >= block.begin; --step)
      for (Index r = 0, running = call_.running_ranks(step); r < running; ++r, ++pair) visit(pair, step, r);
  }

 private:
  // Of a thread's lists of a block's offsets and, behind them, ends of blocks of pairs.
  Index offsets_size() const { return blocks_.most_steps + 1 + PairBlocks::most(most_pairs()); }

  // Blocks follow each other in a ring, which so stays in the cache. What the next one must not overwrite while it begins: a
  // thread alone reads the last step's pairs; of several, some may still be at the products of the whole block. With room for
  // two of these beyond a block, one that goes back to the front does not reach them while they are in use.
  Index ring_pairs() const { return most_pairs() + 2 * most_pairs_behind(); }
  Index most_pairs_behind() const {
    return call_.plan.threads() == 1 ? std::min(call_.batch, most_pairs()) : most_pairs();
  }

  // Where each step's pairs begin, and where blocks of pairs end.
  void list_offsets(Block& block, Index* offsets) const {
    Index* pair_ends = offsets + blocks_.most_steps + 1;
    block.offsets = offsets;
    block.pair_ends = pair_ends;
    const auto list_end = [&](Index pairs) { *pair_ends++ = pairs; };
    PairBlocks pair_blocks;
    for (Index step = block.end - 1; step >= block.begin; --step) {
      *offsets++ = block.pairs;
      const Index running = call_.running_ranks(step);
      pair_blocks.add_step(running, list_end);
      block.pairs += running;
    }
    pair_blocks.finish(list_end);
    *offsets = block.pairs;
    block.pair_blocks = pair_ends - block.pair_ends;
  }

  const Call<T>& call_;
  const StepBlocks gradient_blocks_;  // shorter than the tape's
  const StepBlocks& blocks_;
  T* d_a_ = nullptr;
  T* operand_of_weights_ = nullptr;
  T* d_h_ = nullptr;
  Index* offsets_ = nullptr;  // [thread][2, in turns][offsets_size]
};

}  // namespace gatedrnn
