// Scratch and tapes that calls have left, for the next ones.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gatedrnn/memory.h"

namespace gatedrnn::bindings {

// A workspace per concurrent user, kept for the next one unless a single huge call needed it. Nobody waits: whoever does not get
// the lock at once does without the pool. So a process forked while another thread held it cannot hang.
class WorkspacePool {
 public:
  explicit WorkspacePool(Index most_bytes) : most_bytes_(most_bytes) { free_.reserve(kMostKept); }

  // Goes back to its pool, which has to outlive it.
  class Borrowed {
   public:
    Borrowed(WorkspacePool& pool, std::unique_ptr<Workspace> workspace)
        : pool_(pool), workspace_(std::move(workspace)) {}
    ~Borrowed() { pool_.give_back(std::move(workspace_)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

  Borrowed borrow() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || free_.empty()) return {*this, std::make_unique<Workspace>()};
    std::unique_ptr<Workspace> workspace = std::move(free_.back());
    free_.pop_back();
    return {*this, std::move(workspace)};
  }

 private:
  static constexpr std::size_t kMostKept = 64;

  void give_back(std::unique_ptr<Workspace> workspace) {
    if (workspace->size() > most_bytes_) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && free_.size() < kMostKept) free_.push_back(std::move(workspace));
  }

  const Index most_bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

// Passed on from network to network as a module's parameters change, so that training too settles without allocations.
struct Pools {
  WorkspacePool scratch{64 << 20};
  WorkspacePool tapes{Index(1) << 30};
};

}  // namespace gatedrnn::bindings
