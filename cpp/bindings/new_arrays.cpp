#include "new_arrays.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gatedrnn/memory.h"

namespace gatedrnn::bindings {

namespace {

// Memory of arrays that are gone. A program that calls or trains again and again makes and drops arrays of the same sizes. What an
// allocator gives back to the system in between comes again page by page, cleared, which can take a fifth of an update's time.
// Nobody waits, as in a Pool (pools.h).
class ArrayMemory {
 public:
  ArrayMemory() { free_.reserve(kMostBlocks); }

  Buffer<char> take(Index bytes) {
    const Index size = rounded(bytes);
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (lock)
        for (std::size_t i = free_.size(); i-- > 0;)  // the latest first, of which the most may be in a cache
          if (free_[i].size() == size) return removed(i);
    }
    return Buffer<char>(size, kHugeBytes);
  }

  // Keeps it, in the place of the oldest ones, unless it is large.
  void give(Buffer<char> block) noexcept {
    if (block.size() > kMostBytes) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    while (free_.size() == kMostBlocks || bytes_ + block.size() > kMostBytes) removed(0);
    bytes_ += block.size();
    free_.push_back(std::move(block));
  }

 private:
  static constexpr Index kHugeBytes = 4 << 20;  // as NumPy's own
  static constexpr Index kMostBytes = 64 << 20;
  static constexpr std::size_t kMostBlocks = 64;

  // Up to an eighth more, which nobody touches, so that a block serves sizes that differ a little.
  static Index rounded(Index bytes) {
    Index step = 4096;
    while (step <= bytes / 16) step *= 2;
    return round_up(std::max<Index>(checked_bytes<char>(bytes), 1), step);
  }

  Buffer<char> removed(std::size_t i) {
    Buffer<char> block = std::move(free_[i]);
    free_.erase(free_.begin() + static_cast<std::ptrdiff_t>(i));
    bytes_ -= block.size();
    return block;
  }

  std::mutex mutex_;
  std::vector<Buffer<char>> free_;  // the oldest first
  Index bytes_ = 0;
};

}  // namespace

py::array new_aligned_array(const py::dtype& dtype, const Shape& shape) {
  static ArrayMemory& memory = *new ArrayMemory;  // for ever: arrays may go after everything else
  const py::ssize_t elements = shape.elements();
  if (elements > PY_SSIZE_T_MAX / dtype.itemsize()) throw std::bad_alloc();
  auto block = std::make_unique<Buffer<char>>(memory.take(elements * dtype.itemsize()));
  char* const data = block->data();
  const py::capsule owner(block.get(), [](void* unused) {
    const std::unique_ptr<Buffer<char>> owned(static_cast<Buffer<char>*>(unused));
    memory.give(std::move(*owned));
  });
  block.release();
  return py::array(dtype, std::vector<py::ssize_t>(shape.begin(), shape.end()), data, owner);
}

}  // namespace gatedrnn::bindings
