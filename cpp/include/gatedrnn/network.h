// A stack of recurrent layers with its weights packed for one instruction set. Immutable: any number of threads may run it
// at once, each with a workspace of its own.
#pragma once

#include <vector>

#include "gatedrnn/memory.h"
#include "gatedrnn/packed.h"
#include "gatedrnn/parameters.h"
#include "gatedrnn/plan.h"

namespace gatedrnn {

// One call's data. Strides count values; features are contiguous. x and y do not overlap.
template <class T>
struct Sequence {
  Index steps = 0;  // T
  Index batch = 0;  // B
  const T* x = nullptr;
  Index x_step = 0, x_row = 0;
  T* y = nullptr;
  Index y_step = 0, y_row = 0;
  const Index* lengths = nullptr;  // [B] in 0 .. T; null: T for every row
  const T* h_0 = nullptr;          // [L * D][B][state_size]; null: zeros
  const T* c_0 = nullptr;          // [L * D][B][H]; null: zeros
  T* h_n = nullptr;                // may be h_0
  T* c_n = nullptr;                // LSTM only; may be c_0
};

template <class T>
class Network {
 public:
  Network(const Spec& spec, const Parameters<T>& parameters, const KernelTable& table);

  Plan plan(Index steps, Index batch, Index valid, int max_threads, Team team = Team::asleep) const;
  // Runs with as many threads as pay; with a plan of one's own, returns false where run_team does.
  void run(const Sequence<T>& sequence, Workspace& workspace) const;
  bool run(const Sequence<T>& sequence, Workspace& workspace, const Plan& plan) const;

  const Spec& spec() const { return spec_; }
  const Kernels<T>& kernels() const { return kernels_; }
  const PackedLayer<T>& layer(Index layer, Index direction) const {
    return layers_[layer * spec_.directions + direction];
  }
  Index state_stride() const;  // of a row of h or c in scratch, padded to whole panels

 private:
  Spec spec_;
  const Kernels<T>& kernels_;
  std::vector<PackedLayer<T>> layers_;
};

}  // namespace gatedrnn
