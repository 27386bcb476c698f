// The memory that a call computes in.
#pragma once

#include "gatedrnn/workspace.h"

namespace gatedrnn::bindings {

// The calling thread's own, kept for its next call as long as it is small; large blocks go back to the process's store.
class Scratch {
 public:
  Scratch() : kept_(of_this_thread()), outer_(!kept_.used) { kept_.used = true; }
  ~Scratch() {
    if (!outer_) return;
    if (kept_.workspace.size() > kMostKept) kept_.workspace = Workspace();
    kept_.used = false;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Workspace& operator*() { return outer_ ? kept_.workspace : inner_; }

 private:
  static constexpr Index kMostKept = 256 << 10;

  struct Kept {
    Workspace workspace;
    bool used = false;  // by a call that this one comes in the middle of
  };
  static Kept& of_this_thread() {
    static thread_local Kept kept;
    return kept;
  }

  Kept& kept_;
  const bool outer_;
  Workspace inner_;
};

}  // namespace gatedrnn::bindings
