// The threads of a grid as fibers. A fiber runs until it waits for others: for its warp, for its block, or, spinning, for
// another block; then the next one that need not wait takes over.
#include <cuda_runtime.h>
#include <ucontext.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace emulated {

thread_local Place place;

namespace {

constexpr std::size_t kStack = 64 << 10;

// Stacks that no fiber has at the moment.
thread_local std::vector<std::unique_ptr<char[]>> free_stacks;

std::unique_ptr<char[]> take_stack() {
  if (free_stacks.empty()) return std::unique_ptr<char[]>(new char[kStack]);
  std::unique_ptr<char[]> stack = std::move(free_stacks.back());
  free_stacks.pop_back();
  return stack;
}
constexpr unsigned kWarp = 32;

struct Meeting {
  unsigned members = 0, arrived = 0, passed = 0;
};

struct Warp {
  Meeting meeting;
  std::uint64_t values[2][kWarp] = {};
};

struct Block {
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<char> shared;
};

struct Fiber {
  ucontext_t context{};
  std::unique_ptr<char[]> stack = take_stack();
  Place place;
  Block* block = nullptr;
  bool done = false;
  Meeting* waiting = nullptr;
  unsigned waiting_for = 0;
  unsigned exchanges = 0;

  ~Fiber() { free_stacks.push_back(std::move(stack)); }
};

struct Grid {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Block>> blocks;
  ucontext_t scheduler{};
  Fiber* running = nullptr;
  const std::function<void()>* thread = nullptr;
};

thread_local Grid* grid = nullptr;

void enter() {
  (*grid->thread)();
  grid->running->done = true;
  swapcontext(&grid->running->context, &grid->scheduler);
}

void leave() {
  Fiber* self = grid->running;
  swapcontext(&self->context, &grid->scheduler);
  place = self->place;
}

void meet(Meeting& meeting) {
  Fiber* self = grid->running;
  const unsigned turn = meeting.passed;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.passed;
    return;
  }
  self->waiting = &meeting;
  self->waiting_for = turn;
  leave();
}

void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

void add_block(Grid& of, const dim3& blocks, const dim3& threads, unsigned number, std::size_t shared_bytes) {
  auto block = std::make_unique<Block>();
  block->meeting.members = threads.x;
  block->warps.resize((threads.x + kWarp - 1) / kWarp);
  block->shared.assign(shared_bytes + 16, static_cast<char>(0xff));
  for (unsigned thread = 0; thread < threads.x; ++thread) {
    auto fiber = std::make_unique<Fiber>();
    fiber->place = {dim3(thread), dim3(number % blocks.x, number / blocks.x), threads, blocks};
    fiber->block = block.get();
    ++block->warps[thread / kWarp].meeting.members;
    prepare(*fiber);
    of.fibers.push_back(std::move(fiber));
  }
  of.blocks.push_back(std::move(block));
}

void run_fibers(Grid& of) {
  std::size_t left = of.fibers.size();
  while (left > 0) {
    bool moved = false;
    for (const auto& fiber : of.fibers) {
      if (fiber->done || (fiber->waiting && fiber->waiting->passed == fiber->waiting_for)) continue;
      fiber->waiting = nullptr;
      of.running = fiber.get();
      place = fiber->place;
      swapcontext(&of.scheduler, &fiber->context);
      moved = true;
      if (fiber->done) --left;
    }
    if (!moved) throw std::logic_error("emulated: all threads of a grid wait");
  }
}

}  // namespace

void run(const dim3& blocks, const dim3& threads, std::size_t shared_bytes, bool together,
         const std::function<void()>& thread) {
  const unsigned count = blocks.x * blocks.y;
  if (!together && shared_bytes == 0) {  // whose threads have nothing to wait for
    for (unsigned number = 0; number < count; ++number)
      for (unsigned i = 0; i < threads.x; ++i) {
        place = {dim3(i), dim3(number % blocks.x, number / blocks.x), threads, blocks};
        thread();
      }
    return;
  }
  Grid whole;
  Grid* const before = grid;
  grid = &whole;
  whole.thread = &thread;
  for (unsigned number = 0; number < count; ++number) {
    add_block(whole, blocks, threads, number, shared_bytes);
    if (together && number + 1 < count) continue;
    run_fibers(whole);
    whole.fibers.clear();
    whole.blocks.clear();
  }
  grid = before;
}

void meet_block() { meet(grid->running->block->meeting); }

void meet_warp() {
  Fiber* self = grid->running;
  meet(self->block->warps[self->place.thread.x / kWarp].meeting);
}

std::uint64_t exchange_in_warp(std::uint64_t value, int lane_mask) {
  Fiber* self = grid->running;
  Warp& warp = self->block->warps[self->place.thread.x / kWarp];
  const unsigned lane = self->place.thread.x % kWarp, turn = self->exchanges++ % 2;  // the one before may still be read
  warp.values[turn][lane] = value;
  meet(warp.meeting);
  return warp.values[turn][lane ^ static_cast<unsigned>(lane_mask)];
}

void give_way() { leave(); }

char* shared_memory() {
  char* data = grid->running->block->shared.data();
  return data + (16 - reinterpret_cast<std::uintptr_t>(data) % 16) % 16;
}

}  // namespace emulated
