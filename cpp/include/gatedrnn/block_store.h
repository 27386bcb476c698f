// Blocks of memory that are used again.
#pragma once

#include <atomic>

#include "gatedrnn/sizes.h"
#include "gatedrnn/try_lock.h"

namespace gatedrnn {

// Blocks of this size and more ask for huge pages: a step that reads that many weights would miss the translation cache with small
// ones. Smaller blocks do not: weights that just fit into second-level caches lost up to a tenth.
constexpr Index kHugeBlock = 8 << 20;

// Memory from the system, aligned to kAlignment.
struct Block {
  void* data = nullptr;
  Index bytes = 0;
  bool huge = false;  // whether it asked for huge pages
};

// Which block that is there may serve: one of the size that a new one would have, or also one of up to twice that.
enum class Fit { close, loose };

// Blocks that nobody uses, to be used again. What an allocator gives back to the system comes again page by page, cleared, which can
// take a fifth of an update's time. What waits here is bounded: the largest block, of up to kMany bytes, and of the others kFew
// bytes, or as many as are in use where those are more, up to kMany. The longest unused go first. Nobody waits for the lock: a
// thread that does not get it at once goes on without.
class BlockStore {
 public:
  static constexpr Index kLeast = 16 << 10;  // smaller ones are left to the allocator
  static constexpr Index kFew = 128 << 20, kMany = Index(1) << 30;

  // Throws std::bad_alloc.
  Block take(Index bytes, Index huge_bytes, Fit fit);
  void give(const Block& block) noexcept;
  void clear();  // gives all that waits back to the system

  Index waiting() const { return waiting_; }  // bytes, while nobody else uses it

 private:
  static constexpr int kMostBlocks = 128;

  class Hold;
  Block removed(int place);
  void shrink();

  TryLock lock_;
  Block free_[kMostBlocks];  // the longest unused first
  int count_ = 0;
  Index waiting_ = 0;
  std::atomic<Index> in_use_{0};
};

// The process's own.
BlockStore& blocks();

}  // namespace gatedrnn
