// Blocks, buffers, the arena and the workspace: alignment, sizes that overflow, what waits to be used again, and a steady state
// without allocations.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "check.h"
#include "gatedrnn/streaming_stores.h"
#include "networks.h"

// ---- Every allocation of this program's own code is counted ---------------------------------------------------------------
// The linker is told to send calls of the C functions here (--wrap); operator new is replaced.

namespace {
std::atomic<long> allocations{0};
}

extern "C" {
void* __real_malloc(std::size_t size);
void* __real_calloc(std::size_t count, std::size_t size);
void* __real_realloc(void* old, std::size_t size);
void* __real_aligned_alloc(std::size_t alignment, std::size_t size);
int __real_posix_memalign(void** result, std::size_t alignment, std::size_t size);
void* __real_mmap(void* address, std::size_t size, int protection, int flags, int file, off_t offset);

void* __wrap_malloc(std::size_t size) {
  ++allocations;
  return __real_malloc(size);
}
void* __wrap_calloc(std::size_t count, std::size_t size) {
  ++allocations;
  return __real_calloc(count, size);
}
void* __wrap_realloc(void* old, std::size_t size) {
  ++allocations;
  return __real_realloc(old, size);
}
void* __wrap_aligned_alloc(std::size_t alignment, std::size_t size) {
  ++allocations;
  return __real_aligned_alloc(alignment, size);
}
int __wrap_posix_memalign(void** result, std::size_t alignment, std::size_t size) {
  ++allocations;
  return __real_posix_memalign(result, alignment, size);
}
void* __wrap_mmap(void* address, std::size_t size, int protection, int flags, int file, off_t offset) {
  ++allocations;
  return __real_mmap(address, size, protection, flags, file, offset);
}
}

// The forms of new that the engine uses: a sanitizer has replacements of its own for those that are not here. Not inlined, or
// the compiler takes the pairs for mismatched.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  void* p = __real_malloc(size > 0 ? size : 1);
  if (!p) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  ++allocations;
  void* p = nullptr;
  return __real_posix_memalign(&p, static_cast<std::size_t>(alignment), size) == 0 ? p : nullptr;
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  void* p = operator new(size, alignment, std::nothrow);
  if (!p) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t, const std::nothrow_t&) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace gatedrnn::test {
namespace {

constexpr Index kLargest = std::numeric_limits<Index>::max();

bool aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kAlignment == 0; }

void check_stream_zeros() {
  constexpr Index room = 300;
  alignas(kAlignment) char bytes[room];
  for (const Index offset : {0, 1, 4, 60, 63, 64, 65})
    for (const Index count : {0, 1, 3, 4, 63, 64, 65, 127, 128, 129, 200}) {
      std::fill_n(bytes, room, char(7));
      stream_zeros(bytes + offset, count);
      publish_streamed();
      for (Index i = 0; i < room; ++i) CHECK_EQUAL(i < offset || i >= offset + count ? 7 : 0, int(bytes[i]));
    }
}

void check_allocations_are_counted() {
  long before = allocations;
  int* volatile number = new int(1);  // volatile, or the compiler leaves both out
  delete number;
  CHECK(allocations > before);
  before = allocations;
  {
    const Buffer<float> buffer(10);
  }
  CHECK(allocations > before);
  before = allocations;
  void* volatile p = std::malloc(3);
  std::free(p);
  CHECK(allocations > before);
}

constexpr Index kMegabyte = 1 << 20;

// A store of its own, from which nothing is left at the end.
class Store {
 public:
  Block take(Index bytes, Fit fit = Fit::close) { return store_.take(bytes, kHugeBlock, fit); }
  void give(const Block& block) { store_.give(block); }
  Index waiting() const { return store_.waiting(); }
  bool uses_again(Index bytes, Fit fit = Fit::close) {
    const long before = allocations;
    const Block block = take(bytes, fit);
    const bool used = allocations == before;
    give(block);
    return used;
  }
  ~Store() { store_.clear(); }

 private:
  BlockStore store_;
};

void check_blocks_are_used_again() {
  for (const Index bytes : {BlockStore::kLeast, Index(100000), kMegabyte, 9 * kMegabyte + 1}) {
    Store store;
    const Block first = store.take(bytes);
    CHECK(first.bytes >= bytes && first.bytes <= bytes + bytes / 8 + 4096);
    CHECK(aligned(first.data));
    CHECK_EQUAL(bytes >= kHugeBlock, first.huge);
    std::memset(first.data, 0x5a, static_cast<std::size_t>(first.bytes));
    store.give(first);
    CHECK_EQUAL(first.bytes, store.waiting());
    const Block second = store.take(bytes);
    CHECK(second.data == first.data);
    CHECK_EQUAL(Index(0), store.waiting());
    const Block third = store.take(bytes);
    CHECK(third.data != second.data);
    store.give(second);
    store.give(third);
    CHECK(store.take(bytes).data == third.data);  // the latest
    store.give(third);
    CHECK(!store.uses_again(bytes / 2));
    CHECK(!store.uses_again(3 * bytes));
  }
  Store store;
  store.give(store.take(BlockStore::kLeast - 4096));
  CHECK_EQUAL(Index(0), store.waiting());  // the allocator's
  store.give(store.take(3 * kMegabyte));
  CHECK(!store.uses_again(2 * kMegabyte));
  CHECK(store.uses_again(2 * kMegabyte, Fit::loose));
  CHECK(store.uses_again(3 * kMegabyte / 2 + 1, Fit::loose));
  CHECK(!store.uses_again(kMegabyte / 2, Fit::loose));
}

// Gives so many blocks of this size that were in use at once.
void give_many(Store& store, int count, Index bytes) {
  std::vector<Block> held;
  for (int i = 0; i < count; ++i) held.push_back(store.take(bytes));
  for (const Block& block : held) store.give(block);
}

void check_what_waits_is_bounded() {
  for (const Index bytes : {BlockStore::kLeast, kMegabyte, 20 * kMegabyte, 150 * kMegabyte}) {
    Store store;
    give_many(store, bytes > kMegabyte ? 20 : 300, bytes);
    CHECK(store.waiting() > 0 && store.waiting() <= BlockStore::kFew + bytes + bytes / 8 + 4096);
  }
  Store store;
  give_many(store, 20, 10 * kMegabyte);
  give_many(store, 3, 900 * kMegabyte);
  const Block large = store.take(900 * kMegabyte);
  CHECK(store.waiting() <= BlockStore::kFew);  // besides the largest, which was taken
  give_many(store, 100, kMegabyte);
  CHECK(store.waiting() >= 100 * kMegabyte && store.waiting() <= large.bytes);  // with as much in use, as much may wait
  store.give(large);
  Store other;
  other.give(other.take(BlockStore::kMany + 1));
  CHECK_EQUAL(Index(0), other.waiting());
}

// What is too much for the system goes to those who ask rather than wait.
void check_memory_that_is_short() {
  Store store;
  CHECK_THROWS(std::bad_alloc, store.take(kLargest / 4));
  give_many(store, 3, kMegabyte);
  CHECK(store.waiting() > 0);
  CHECK_THROWS(std::bad_alloc, store.take(kLargest / 4));
  CHECK_EQUAL(Index(0), store.waiting());
}

// Nobody waits, and nobody gets what another has.
void check_store_with_threads() {
  Store store;
  std::atomic<int> wrong{0};
  const auto work = [&](int id) {
    for (int i = 0; i < 3000; ++i) {
      const Block block = store.take(BlockStore::kLeast << (i % 3));
      auto* const words = static_cast<volatile int*>(block.data);
      words[0] = words[100] = id;
      if (i % 7 == 0) std::this_thread::yield();
      if (words[0] != id || words[100] != id) ++wrong;
      store.give(block);
    }
  };
  std::vector<std::thread> threads;
  for (int id = 1; id <= 4; ++id) threads.emplace_back(work, id);
  for (std::thread& thread : threads) thread.join();
  CHECK_EQUAL(0, wrong.load());
}

// A lock that another thread held at the fork is free in the child, which is told.
void check_try_lock() {
  TryLock lock;
  CHECK(lock.try_lock() == TryLock::Taken::yes);
  CHECK(lock.try_lock() == TryLock::Taken::no);
  const pid_t child = fork();
  if (child == 0) {
    const bool right = lock.try_lock() == TryLock::Taken::left_by_fork && lock.try_lock() == TryLock::Taken::no;
    lock.unlock();
    _exit(right && lock.try_lock() == TryLock::Taken::yes ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK_EQUAL(0, status);
  CHECK(lock.try_lock() == TryLock::Taken::no);
  lock.unlock();
  CHECK(lock.try_lock() == TryLock::Taken::yes);
}

void check_buffer() {
  for (const Index size : {0, 1, 7, 64, 1000, 1 << 20, (1 << 20) + 1}) {
    Buffer<double> buffer(size);
    CHECK(buffer.data() != nullptr);
    CHECK(aligned(buffer.data()));
    CHECK_EQUAL(size, buffer.size());
    for (Index i = 0; i < size; ++i) buffer.data()[i] = 1;
  }
  CHECK(Buffer<float>().data() == nullptr);
  for (const Index size : {Index(-1), -kLargest, kLargest, kLargest - 1, kLargest - 63, kLargest - 64, kLargest / 8,
                           kLargest / 8 + 1, kLargest / 4, kLargest / 2}) {
    CHECK_THROWS(std::bad_alloc, Buffer<double>(size));
    CHECK_THROWS(std::bad_alloc, Buffer<char>(size < kLargest / 2 ? kLargest / 2 : size));
  }
}

// The same pieces whether measured or carved, each aligned, none overlapping.
Index carve(Arena& arena, char* block) {
  char* free_from = block;
  const auto take = [&](auto value, Index count) {
    using Value = decltype(value);
    Value* piece = arena.take<Value>(count);
    CHECK_EQUAL(block == nullptr, piece == nullptr);
    CHECK_EQUAL(Index(0), arena.used() % static_cast<Index>(kAlignment));
    if (!block) return;
    CHECK(aligned(piece));
    CHECK(reinterpret_cast<char*>(piece) >= free_from);
    std::memset(static_cast<void*>(piece), 0x5a, count * sizeof(Value));
    free_from = reinterpret_cast<char*>(piece + count);
    CHECK(free_from <= block + arena.used());
  };
  for (const Index count : {0, 1, 3, 16, 17, 63, 64, 65, 1000}) {
    take(char(), count);
    take(float(), count);
    take(double(), count);
    take(Index(), count);
  }
  return arena.used();
}

void check_arena() {
  Arena measure;
  const Index measured = carve(measure, nullptr);
  Buffer<char> block(measured);
  Arena arena(block.data(), block.size());
  CHECK_EQUAL(measured, carve(arena, block.data()));

  for (const Index count : {kLargest, kLargest - 1, kLargest / 8, kLargest / 8 + 1, kLargest / 4}) {
    Arena overflowing;
    overflowing.take<char>(1);
    CHECK_THROWS(std::bad_alloc, overflowing.take<double>(count));
  }
  Arena adding;
  adding.take<char>(kLargest / 4);
  CHECK_THROWS(std::bad_alloc, adding.take<char>(kLargest / 4));
  CHECK_THROWS(std::bad_alloc, adding.take<char>(-1));
}

void check_workspace() {
  Workspace workspace;
  CHECK_EQUAL(Index(0), workspace.size());
  char* large = workspace.reserve(1000);
  CHECK_EQUAL(Index(1000), workspace.size());
  CHECK(workspace.reserve(10) == large);
  CHECK_EQUAL(Index(1000), workspace.size());
  CHECK_THROWS(std::bad_alloc, workspace.reserve(kLargest));
  CHECK_THROWS(std::bad_alloc, workspace.reserve(kLargest / 2));
  CHECK(workspace.reserve(1000) == large);  // the failure left it as it was

  int calls = 0;
  double *first = nullptr, *second = nullptr;
  const auto take = [&](Index count) {
    return workspace.carve([&](Arena& taken) {
      ++calls;
      first = taken.take<double>(8);
      second = taken.take<double>(count);
    });
  };
  CHECK_EQUAL(Index(896), take(100));
  CHECK_EQUAL(1, calls);
  CHECK(reinterpret_cast<char*>(first) == large && second == first + 8);
  CHECK_EQUAL(Index(64 + 8000), take(1000));  // more than there is
  CHECK_EQUAL(3, calls);
  CHECK_EQUAL(Index(64 + 8000), workspace.size());
  CHECK(second == first + 8);
  CHECK_EQUAL(Index(64 + 8000), take(1000));
  CHECK_EQUAL(4, calls);
}

template <class T>
void check_steady_state(const NamedCell& cell, const Shape& shape, const Plan& plan) {
  const Problem<T> problem(cell, shape);
  const Network<T> network(problem.spec, problem.parameters, *available_tables().back());
  Workspace workspace;
  Results<T> first, second;
  const Sequence<T> cold = problem.sequence(first), warm = problem.sequence(second);
  blocks().clear();
  const long before = allocations;
  CHECK(network.forward(cold, workspace, nullptr, plan));
  CHECK(allocations > before);
  const Index size = workspace.size();
  CHECK(size > 0);
  const long after = allocations;
  CHECK(network.forward(warm, workspace, nullptr, plan));
  CHECK_EQUAL(after, allocations.load());
  CHECK_EQUAL(size, workspace.size());
  CHECK_NOTHING_WRONG(first.difference(second), problem.name());
  network.forward(warm,
                  workspace);  // with a plan of its own, which is the same each time as long as there is one thread
  const Index grown = workspace.size();
  const long settled = allocations;
  network.forward(warm, workspace);
  CHECK_EQUAL(settled, allocations.load());
  CHECK_EQUAL(grown, workspace.size());
}

// Scratch does not depend on the number of steps (but for two directions in several layers, which have a sequence between).
Index scratch(Index steps, Index batch, Index directions) {
  const Problem<float> problem(all_cells()[0], {8, 24, steps, batch, 1, directions});
  const Network<float> network(problem.spec, problem.parameters, *available_tables().back());
  Workspace workspace;
  Results<float> results;
  CHECK(network.forward(problem.sequence(results), workspace, nullptr, network.plan(steps, batch, steps * batch, 1)));
  return workspace.size();
}

}  // namespace
}  // namespace gatedrnn::test

int main() {
  using namespace gatedrnn;
  using namespace gatedrnn::test;
  set_num_threads(1);
  check_allocations_are_counted();
  check_stream_zeros();
  check_blocks_are_used_again();
  check_what_waits_is_bounded();
  check_memory_that_is_short();
  check_store_with_threads();
  check_try_lock();
  check_buffer();
  check_arena();
  check_workspace();
  for (const NamedCell& cell : all_cells()) {
    const Shape ragged{17, 33, 6, 5, 3, 2, {6, 0, 1, 3, 6}}, one_step{17, 33, 1, 1};
    check_steady_state<float>(cell, ragged, {1, 1, 1, 1, 8, 0});
    check_steady_state<double>(cell, one_step, {1, 1, 1, 1, 1, 0});
    check_steady_state<float>(cell, ragged, {1, 2, 2, 1, 8, 2e12});  // cycles: it waits for its threads
    check_steady_state<float>(cell, ragged, {1, 1, 1, 2, 8, 2e12});
  }
  for (const Index directions : {1, 2})
    for (const Index batch : {1, 3}) CHECK_EQUAL(scratch(4000, batch, directions), scratch(12000, batch, directions));
  return finish("test_memory");
}
