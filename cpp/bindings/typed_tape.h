// A tape of one value type, with what keeps it alive.
#pragma once

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "bound_tape.h"
#include "call.h"
#include "gatedrnn/threads.h"
#include "initial_state.h"
#include "pieces.h"

namespace gatedrnn::bindings {

// A tape with what keeps it alive: the network whose weights it was made with, and its memory.
template <class T>
class TypedTape final : public BoundTape {
 public:
  // `x_stays`: nobody is going to write into x, so that it need not be copied.
  TypedTape(std::shared_ptr<const Network<T>> network, const Call<T>& call, const TapeOptions& options, bool x_stays,
            bool bias)
      : network(std::move(network)),
        bias(bias),
        kept_x(x_stays || call.x_is_ours ? call.x : py::object()),
        pieces(call.pieces),
        repeats(call.repeats),
        steps(pieces ? pieces->pieces().steps : call.sequence.steps),
        batch(call.batch()),
        layout(call.layout),
        x(call.sequence.x),
        x_step(call.sequence.x_step),
        x_row(call.sequence.x_row) {
    if (!pieces) {
      parts_.push_back(std::make_unique<Part>(*this->network, call.sequence, options));
      return;
    }
    for (const PieceRange& range : ranges_of(*pieces, this->network->spec().hidden_size))
      parts_.push_back(std::make_unique<Part>(*this->network, range, call.sequence, options));
  }

  // Comes before anybody can write into the caller's x.
  void copy_x() {
    if (kept_x || batch == 0) return;
    const Index width = network->spec().input_size, step = batch * width;
    own_x_ = Buffer<T>(steps * step, kHugeBlock, Fit::loose);
    share_out(steps, steps * step * static_cast<Index>(sizeof(T)), [&](Index t) {
      if (x_row == width) {
        std::copy_n(x + t * x_step, step, own_x_.data() + t * step);
        return;
      }
      for (Index row = 0; row < batch; ++row)
        std::copy_n(x + t * x_step + row * x_row, width, own_x_.data() + t * step + row * width);
    });
    x = own_x_.data();
    x_step = step;
    x_row = width;
  }

  Index bytes() const override {
    Index bytes = 0;
    for (const auto& part : parts_) bytes += part->tape.bytes();
    return bytes;
  }

  // Of all rows, or of each range of pieces.
  Tape<T>& part(std::size_t i) { return parts_[i]->tape; }
  const Tape<T>& part(std::size_t i) const { return parts_[i]->tape; }

  const std::shared_ptr<const Network<T>> network;
  const bool bias;
  const py::object kept_x;  // where there is no copy
  const std::shared_ptr<const PieceList> pieces;
  const bool repeats;        // see Call
  const Index steps, batch;  // of x
  const Layout layout;
  const T* x;
  Index x_step, x_row;
  LearntParts learnt;  // of the initial state

 private:
  struct Part {
    Part(const Network<T>& network, const Sequence<T>& sequence, const TapeOptions& options)
        : tape(network, sequence, options, memory) {}
    Part(const Network<T>& network, const PieceRange& range, const Sequence<T>& call, const TapeOptions& options)
        : tape(network, sequence_of(range, call, view), options, memory) {}

    Pieces view;
    Workspace memory;
    Tape<T> tape;
  };

  Buffer<T> own_x_;
  std::vector<std::unique_ptr<Part>> parts_;
};

}  // namespace gatedrnn::bindings
