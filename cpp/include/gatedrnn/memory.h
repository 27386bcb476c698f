// Aligned memory: blocks that are used again, buffers, and an arena that carves a workspace. Writing past the caches.
#pragma once

#include <atomic>
#include <limits>
#include <new>
#include <utility>

#include "gatedrnn/spec.h"
#include "gatedrnn/try_lock.h"

namespace gatedrnn {

constexpr std::size_t kAlignment = 64;  // a cache line, and the widest vector

inline Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
inline Index round_up(Index value, Index multiple) { return ceil_div(value, multiple) * multiple; }

// An odd number of cache lines with room for so many values and a line more: rows that far apart do not all fall into
// the same sets of a cache.
template <class T>
Index odd_lines(Index count) {
  constexpr Index line = static_cast<Index>(kAlignment / sizeof(T));
  return round_up(count, 2 * line) + line;
}

// Throws std::bad_alloc where that many bytes, with what alignment adds, could not be counted.
template <class T>
Index checked_bytes(Index count) {
  constexpr Index most = std::numeric_limits<Index>::max() / 2 - 2 * static_cast<Index>(kAlignment);
  if (count < 0 || count > most / static_cast<Index>(sizeof(T))) throw std::bad_alloc();
  return count * static_cast<Index>(sizeof(T));
}

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

// Owns `size` uninitialised values of a trivial type, in a block of the process's.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size, Index huge_bytes = kHugeBlock, Fit fit = Fit::close)
      : block_(blocks().take(checked_bytes<T>(size), huge_bytes, fit)), size_(size) {}
  Buffer(Buffer&& from) noexcept : block_(std::exchange(from.block_, {})), size_(std::exchange(from.size_, 0)) {}
  Buffer& operator=(Buffer&& from) noexcept {
    std::swap(block_, from.block_);
    std::swap(size_, from.size_);
    return *this;
  }
  ~Buffer() {
    if (block_.data) blocks().give(block_);
  }

  T* data() { return static_cast<T*>(block_.data); }
  const T* data() const { return static_cast<const T*>(block_.data); }
  Index size() const { return size_; }

 private:
  Block block_;
  Index size_ = 0;
};

// Zeros past the caches, as far as whole lines go: for what nobody reads soon.
void stream_zeros(void* to, Index bytes);

// Whoever sees what this thread writes from now on sees what it, or a kernel on it, has written past the caches.
void publish_streamed();

// Hands out aligned pieces of one block, as long as there is room. After that it only counts, so that the same code measures and
// carves.
class Arena {
 public:
  Arena() = default;
  Arena(char* block, Index size) : block_(block), size_(size) {}

  template <class T>
  T* take(Index count) {
    const Index at = used_;
    used_ = checked_bytes<char>(round_up(at + checked_bytes<T>(count), kAlignment));
    return block_ && used_ <= size_ ? reinterpret_cast<T*>(block_ + at) : nullptr;
  }
  Index used() const { return used_; }

 private:
  char* block_ = nullptr;
  Index size_ = 0, used_ = 0;
};

// Memory that no one sees after a call; grows to the largest call and then stays.
class Workspace {
 public:
  char* reserve(Index bytes) {
    if (bytes > buffer_.size()) buffer_ = Buffer<char>(bytes, kHugeBlock, Fit::loose);
    return buffer_.data();
  }
  Index size() const { return buffer_.size(); }

  // `carve(arena)` takes what it needs; once more where there was not enough. Returns how many bytes that were.
  template <class Carve>
  Index carve(Carve&& carve) {
    Arena arena(buffer_.data(), buffer_.size());
    carve(arena);
    const Index bytes = arena.used();
    if (bytes > size()) {
      arena = Arena(reserve(bytes), bytes);
      carve(arena);
    }
    return bytes;
  }

 private:
  Buffer<char> buffer_;
};

}  // namespace gatedrnn
