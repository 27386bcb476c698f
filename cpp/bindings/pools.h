// What calls, tapes and changes of parameters have left, for the next ones.
#pragma once

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "gatedrnn/memory.h"
#include "gatedrnn/network.h"

namespace gatedrnn::bindings {

// Things that nobody uses, up to so many. Nobody waits: whoever does not get the lock at once does without the pool. So a process
// forked while another thread held it cannot hang.
template <class Thing>
class Pool {
 public:
  explicit Pool(std::size_t most) : most_(most) { free_.reserve(most); }

  // Null where there is none.
  std::unique_ptr<Thing> take() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || free_.empty()) return nullptr;
    std::unique_ptr<Thing> thing = std::move(free_.back());
    free_.pop_back();
    return thing;
  }

  void give(std::unique_ptr<Thing> thing) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock && free_.size() < most_) free_.push_back(std::move(thing));
  }

 private:
  const std::size_t most_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Thing>> free_;
};

// A workspace per concurrent user, kept for the next one unless a single huge call needed it.
class WorkspacePool {
 public:
  explicit WorkspacePool(Index most_bytes) : most_bytes_(most_bytes) {}

  // Goes back to its pool, which has to outlive it.
  class Borrowed {
   public:
    Borrowed(WorkspacePool& pool, std::unique_ptr<Workspace> workspace)
        : pool_(pool), workspace_(std::move(workspace)) {}
    ~Borrowed() {
      if (workspace_->size() <= pool_.most_bytes_) pool_.free_.give(std::move(workspace_));
    }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    Workspace& operator*() const { return *workspace_; }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

  Borrowed borrow() {
    std::unique_ptr<Workspace> workspace = free_.take();
    return {*this, workspace ? std::move(workspace) : std::make_unique<Workspace>()};
  }

 private:
  const Index most_bytes_;
  Pool<Workspace> free_{64};
};

// Passed on from network to network as a module's parameters change, so that training too settles without allocations.
template <class T>
struct Pools {
  WorkspacePool scratch{64 << 20};
  WorkspacePool tapes{Index(1) << 30};
  Pool<Network<T>> networks{1};
};

// A network, in the memory of one that trained and is no longer used, if there is one. Others, whose parameters may never
// change again, leave nothing behind.
template <class T>
std::shared_ptr<const Network<T>> make_network(const Spec& spec, const Parameters<T>& parameters,
                                               const std::shared_ptr<Pools<T>>& pools) {
  std::unique_ptr<Network<T>> network = pools->networks.take();
  if (network)
    network->renew(parameters);
  else
    network = std::make_unique<Network<T>>(spec, parameters, active_table());
  return {network.release(), [pools](Network<T>* unused) {
            std::unique_ptr<Network<T>> owned(unused);
            if (owned->packed_for_backward()) pools->networks.give(std::move(owned));
          }};
}

}  // namespace gatedrnn::bindings
