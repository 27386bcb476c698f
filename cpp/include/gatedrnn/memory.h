// Aligned memory: buffers, and an arena that carves a workspace. Writing past the caches.
#pragma once

#include <cstdlib>
#include <limits>
#include <memory>
#include <new>

#include "gatedrnn/spec.h"

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

// Blocks that ask for huge pages: who streams through that much memory, as a step does through its weights, misses the translation
// cache with small ones. Not for less: weights that just fit into second-level caches lost up to a tenth.
constexpr Index kHugeBlock = 8 << 20;

// For std::free, aligned to kAlignment. Asks for huge pages from `huge` bytes on. Throws std::bad_alloc.
void* allocate_block(std::size_t bytes, std::size_t huge);

// Owns `size` uninitialised values of a trivial type.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Index size, Index huge_bytes = kHugeBlock) : size_(size) {
    const auto bytes = static_cast<std::size_t>(checked_bytes<T>(size) + 1);
    data_.reset(static_cast<T*>(allocate_block(bytes, static_cast<std::size_t>(huge_bytes))));
  }

  // Values of no meaning; in the same memory where the size is the same.
  void resize(Index size) {
    if (size != size_) *this = Buffer(size);
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  Index size() const { return size_; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
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
    if (bytes > buffer_.size()) buffer_ = Buffer<char>(bytes);
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

  // Calls in turns walk through the weights up and down: what exceeds a cache is then partly found still there.
  int next_turn() { return turn_ ^= 1; }

 private:
  Buffer<char> buffer_;
  int turn_ = 1;
};

}  // namespace gatedrnn
