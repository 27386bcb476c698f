// A stack of recurrent layers on the device: weights there, forward, and backward through a tape.
#pragma once

#include <memory>
#include <vector>

#include "blas.h"
#include "gatedrnn/parameters.h"
#include "gatedrnn/tape_options.h"
#include "plan.h"

namespace gatedrnn::cuda {

// Features in the device's memory, whatever their type.
struct AnyFeatures {
  void* data = nullptr;
  Storage storage = Storage::float32;
  Index time_stride = 0, row_stride = 0;
};

// [layer * direction][row][width] of states, contiguous.
struct AnyState {
  void* data = nullptr;  // null: zeros, or not wanted
  Storage storage = Storage::float32;
  bool of_all_rows = false;  // [layer * direction][width]: the same for all
};

// Where the rows were cut from others: of each (step, row), [steps][batch], its number among those, or -1; in the device's memory.
// What is dropped of it depends on that.
struct OtherPlaces {
  const int* numbers = nullptr;  // null: rows are as they were
  Index count = 0;
};

struct ForwardCall {
  Index steps = 0, batch = 0;
  const Index* lengths = nullptr;  // in the host's memory, by row; null: `steps` for every row
  AnyFeatures x, y;
  bool y_may_overlap = false;  // with x or the states
  OtherPlaces places;          // which live as long as the tape
  AnyState h_0, c_0, h_n, c_n;
};

// Where the gradients of one layer's and direction's parameters go: contiguous sums, in the layout of the parameters.
struct GradientPlaces {
  void *weight_ih = nullptr, *weight_hh = nullptr, *bias_ih = nullptr, *bias_hh = nullptr, *weight_hr = nullptr;
  void* peephole[kMostPeepholes] = {};
  void *weight_ln = nullptr, *weight_ln_hh = nullptr, *weight_ln_c = nullptr, *bias_ln_c = nullptr;
  void *h_0 = nullptr, *c_0 = nullptr;  // where rows began with learnt states
};

struct BackwardCall {
  AnyFeatures x;         // as forward saw it
  AnyFeatures d_output;  // no data: zeros
  AnyFeatures d_x;       // no data: not wanted
  AnyState d_h_n, d_c_n, d_h_0, d_c_0;
  std::vector<GradientPlaces> gradients;  // by track
  bool accumulate = false;                // add to what stands there
};

// What forward keeps. Freed in the order of the stream that it was made on.
class Tape {
 public:
  virtual ~Tape() = default;
  virtual Index bytes() const = 0;
};

class Network {
 public:
  virtual ~Network() = default;
  virtual void run(const ForwardCall& call, cudaStream_t stream) = 0;
  virtual std::unique_ptr<Tape> forward(const ForwardCall& call, const TapeOptions& options, cudaStream_t stream) = 0;
  virtual void backward(const Tape& tape, const BackwardCall& call, cudaStream_t stream) = 0;
  virtual Plan plan(Index steps, Index batch) const = 0;
};

// Parameters in the host's memory: of float, or for float64 storage of double.
template <class Host>
std::unique_ptr<Network> make_network(const Spec& spec, const Parameters<Host>& parameters, Storage storage, bool tf32);

// One of them for each type of stored values, in a translation unit of its own.
template <class S>
std::unique_ptr<Network> make_typed_network(const Spec& spec, const Parameters<Sum<S>>& parameters, bool tf32);

}  // namespace gatedrnn::cuda
