// The memory of one call: measured, then carved from one block.
#pragma once

#include <new>

#include "gatedrnn/buffer.h"
#include "gatedrnn/checked_bytes.h"

namespace gatedrnn {

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
  // So many structs, each of which `carve(it)` gives what it has of the arena.
  template <class Struct, class Carve>
  Struct* take_each(Index count, Carve&& carve) {
    Struct* const taken = take<Struct>(count);
    for (Index i = 0; i < count; ++i) {
      Struct measured;
      carve(taken ? *new (taken + i) Struct : measured);
    }
    return taken;
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
