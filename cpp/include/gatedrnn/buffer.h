// An array that owns a block of the process's store.
#pragma once

#include <utility>

#include "gatedrnn/block_store.h"
#include "gatedrnn/checked_bytes.h"

namespace gatedrnn {

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

}  // namespace gatedrnn
