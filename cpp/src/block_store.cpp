#include "gatedrnn/block_store.h"

#include <algorithm>
#include <atomic>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GATEDRNN_ASAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define GATEDRNN_ASAN
#endif
#if defined(GATEDRNN_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace gatedrnn {

namespace {

// Up to an eighth more, which nobody touches, so that a block serves sizes that differ a little.
Index rounded(Index bytes) {
  if (bytes < BlockStore::kLeast) return std::max<Index>(bytes, 1);
  Index step = 4096;
  while (step <= bytes / 16) step *= 2;
  return round_up(bytes, step);
}

constexpr std::size_t kHugePage = std::size_t(2) << 20;

std::align_val_t alignment_of(const Block& block) { return std::align_val_t(block.huge ? kHugePage : kAlignment); }

// Null where there is no memory.
void* allocated(const Block& block) {
  const auto bytes = static_cast<std::size_t>(block.bytes);
  void* const data = ::operator new(bytes, alignment_of(block), std::nothrow);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Only whole pages, so that no more memory is taken than is used. A refusal costs nothing but time.
  if (data && block.huge) madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return data;
}

// GNU's allocator keeps what is freed below something that is in use, unless it is told to look for it. (Blocks from the system
// itself would go back at once, but calls were 4 to 8 % slower on weights and scratch that lay in such.)
void release(const Block& block) {
  ::operator delete(block.data, alignment_of(block));
#if defined(__GLIBC__)
  constexpr Index looked_for = 64 << 20;
  static std::atomic<Index> freed{0};
  if (freed.fetch_add(block.bytes, std::memory_order_relaxed) + block.bytes < looked_for) return;
  freed.store(0, std::memory_order_relaxed);
  malloc_trim(0);
#endif
}

// For sanitizers: nobody may look at a block that waits.
void forbid([[maybe_unused]] const Block& block) {
#if defined(GATEDRNN_ASAN)
  ASAN_POISON_MEMORY_REGION(block.data, static_cast<std::size_t>(block.bytes));
#endif
}

void permit([[maybe_unused]] const Block& block) {
#if defined(GATEDRNN_ASAN)
  ASAN_UNPOISON_MEMORY_REGION(block.data, static_cast<std::size_t>(block.bytes));
#endif
}

}  // namespace

// The lock, if nobody else has it.
class BlockStore::Hold {
 public:
  explicit Hold(BlockStore& store) : store_(store), taken_(store.lock_.try_lock()) {
    if (taken_ != TryLock::Taken::left_by_fork) return;
    store.count_ = 0;  // the list may have been half changed: what it had is lost
    store.waiting_ = 0;
  }
  ~Hold() {
    if (*this) store_.lock_.unlock();
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  explicit operator bool() const { return taken_ != TryLock::Taken::no; }

 private:
  BlockStore& store_;
  const TryLock::Taken taken_;
};

Block BlockStore::take(Index bytes, Index huge_bytes, Fit fit) {
  Block block{nullptr, rounded(bytes), bytes >= huge_bytes};
  if (block.bytes >= kLeast) {
    const Hold hold(*this);
    const auto fits = [&](Index there) {
      return there == block.bytes || (fit == Fit::loose && there > block.bytes && there / 2 <= block.bytes);
    };
    int best = -1;  // the smallest, and of those the latest, of which the most may be in a cache
    for (int i = hold ? count_ - 1 : -1; i >= 0; --i)
      if (free_[i].huge == block.huge && fits(free_[i].bytes) && (best < 0 || free_[i].bytes < free_[best].bytes))
        best = i;
    if (best >= 0) block = removed(best);
  }
  if (!block.data) block.data = allocated(block);
  if (!block.data) {
    clear();
    block.data = allocated(block);
    if (!block.data) throw std::bad_alloc();
  }
  if (block.bytes >= kLeast) in_use_.fetch_add(block.bytes, std::memory_order_relaxed);
  return block;
}

void BlockStore::give(const Block& block) noexcept {
  if (block.bytes >= kLeast) {
    in_use_.fetch_sub(block.bytes, std::memory_order_relaxed);
    const Hold hold(*this);
    if (hold && block.bytes <= kMany) {
      if (count_ == kMostBlocks) release(removed(0));
      forbid(block);
      free_[count_++] = block;
      waiting_ += block.bytes;
      return shrink();
    }
  }
  release(block);
}

Block BlockStore::removed(int place) {
  const Block block = free_[place];
  std::copy(free_ + place + 1, free_ + count_, free_ + place);
  --count_;
  waiting_ -= block.bytes;
  permit(block);
  return block;
}

void BlockStore::shrink() {
  const Index most = std::clamp(in_use_.load(std::memory_order_relaxed), kFew, kMany);
  int largest = 0;
  for (int i = 1; i < count_; ++i)
    if (free_[i].bytes >= free_[largest].bytes) largest = i;
  while (waiting_ - free_[largest].bytes > most) {
    release(removed(largest == 0 ? 1 : 0));
    if (largest > 0) --largest;
  }
}

void BlockStore::clear() {
  const Hold hold(*this);
  while (hold && count_ > 0) release(removed(0));
}

BlockStore& blocks() {
  // Without constructor or destructor: there from the start, and still when the last array goes.
  static BlockStore store;
  return store;
}

}  // namespace gatedrnn
