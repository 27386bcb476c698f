// A stack of recurrent layers with its weights packed for one instruction set. Any number of threads may run it at once, each with a
// workspace of its own. What calls add to it (the weights packed for backward, the plans they made, the direction of the next walk
// through the panels) is safe among threads and changes no result.
#pragma once

#include <atomic>
#include <optional>
#include <vector>

#include "gatedrnn/core.h"
#include "gatedrnn/packed.h"
#include "gatedrnn/parameters.h"
#include "gatedrnn/pieces.h"
#include "gatedrnn/plan.h"
#include "gatedrnn/workspace.h"

namespace gatedrnn {

// Called now and then by the thread that made a call, in the middle of it. What it throws ends the call, whose results are then
// half written.
struct Poll {
  void (*function)(void* context) = nullptr;
  void* context = nullptr;
};

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
  // Where the rows are pieces, which `steps`, `batch`, `lengths` and the states then count: where they stand in x and y, of which
  // nothing else is read or written. A tape needs them as long as it lives.
  const Pieces* pieces = nullptr;
  const T* h_0 = nullptr;  // [L * D][B][state_size]; null: zeros
  const T* c_0 = nullptr;  // [L * D][B][H]; null: zeros
  T* h_n = nullptr;        // may be h_0
  T* c_n = nullptr;        // where the state has c; may be c_0
  Poll poll;
};

template <class T>
class Tape;
template <class T>
struct BackwardCall;

// What computes a network whose products may be of a format: so few units gain nothing from rounding, on any machine.
constexpr Index kMostPlainUnits = 16;
template <class T>
Format format_for(const Spec& spec, Format wanted) {
  return spec.hidden_size > kMostPlainUnits ? wanted : plain_format<T>;
}

// int8 leaves the product with so few inputs to float32. It takes little time; and inputs are often quantities of different kinds,
// whose weights differ more than 8 bits can hold.
constexpr Index kMostPlainInputs = 16;

template <class T>
class Network {
 public:
  // Its products are of `format_for<T>(spec, format)`, but see `input_kernels`. Throws std::invalid_argument where the table has no
  // such kernels.
  Network(const Spec& spec, const Parameters<T>& parameters, const KernelTable& table,
          const Core& core = gatedrnn::core(), Format format = plain_format<T>);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  // For threads that are asleep.
  Plan plan(Index steps, Index batch, Index valid, int max_threads) const;
  Plan backward_plan(Index steps, Index batch, Index valid, bool recomputing, int max_threads) const;
  // Packs what backward needs of the parameters, which have to be those that the network was made of. Comes before the
  // first forward with a tape; does nothing after that.
  void pack_for_backward(const Parameters<T>& parameters) const;
  bool packed_for_backward() const { return back_layers_.load(std::memory_order_acquire) != nullptr; }

  // One call, for training with a tape. It takes as many threads as pay, and returns true; with a plan of the caller's, false
  // where run_team does. Throws std::invalid_argument where that plan has no group of a kind, or no room for a step of the rows of
  // a group.
  bool forward(const Sequence<T>& sequence, Workspace& workspace, Tape<T>* tape = nullptr,
               const std::optional<Plan>& plan = std::nullopt) const;
  // The gradients of what forward computed. The tape stays as it is.
  bool backward(const Tape<T>& tape, const BackwardCall<T>& call, Workspace& workspace,
                const std::optional<Plan>& plan = std::nullopt) const;

  const Spec& spec() const { return spec_; }
  const Kernels<T>& kernels() const { return kernels_; }
  const Kernels<T>& input_kernels(Index layer) const {
    const bool plain = kernels_.layout.scaled && spec_.layer_input_size(layer) <= kMostPlainInputs;
    return plain ? plain_kernels_ : kernels_;
  }
  const Core& core() const { return core_; }
  const CellOptions<T>& options() const { return options_; }
  const PackedLayer<T>& layer(Index layer, Index direction) const {
    return layers_[layer * spec_.directions + direction];
  }
  const PackedBackLayer<T>& back_layer(Index layer, Index direction) const {
    return (*back_layers_.load(std::memory_order_acquire))[layer * spec_.directions + direction];
  }
  Index bytes() const;         // of all packed weights, with those for backward once there are any
  Index state_stride() const;  // of a row of h or c in scratch, padded to whole panels

 private:
  // Calls in turns walk through the weights up and down: what exceeds a cache is then partly found still there.
  int next_turn() const {
    const int turn = turn_.load(std::memory_order_relaxed) ^ 1;  // calls at once may get the same
    turn_.store(turn, std::memory_order_relaxed);
    return turn;
  }
  Workload workload(Index steps, Index batch, Index valid) const;
  Workload backward_workload(Index steps, Index batch, Index valid, bool recomputing) const;

  using BackLayers = std::vector<PackedBackLayer<T>>;

  Spec spec_;
  const CellOptions<T> options_;
  const Kernels<T>&kernels_, &plain_kernels_;
  const Core core_;
  std::vector<PackedLayer<T>> layers_;
  mutable std::atomic<BackLayers*> back_layers_{nullptr};  // made when first needed
  mutable std::atomic<int> turn_{0};
  mutable PlanCache plans_;
};

}  // namespace gatedrnn
