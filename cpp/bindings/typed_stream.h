// A stream of one value type.
#pragma once

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "bound_network.h"
#include "call.h"
#include "gil_release.h"
#include "initial_state.h"
#include "stream_in_use.h"
#include "thread_limit.h"

namespace gatedrnn::bindings {

template <class T>
class TypedStream final : public BoundStream {
 public:
  TypedStream(std::shared_ptr<const Network<T>> network, std::shared_ptr<const InitialState<T>> initial, Index batch)
      : network_(std::move(network)),
        initial_(std::move(initial)),
        batch_(batch),
        states_{State(spec(), batch), State(spec(), batch)} {
    reset(py::none());
  }

  // x (B, I) -> y (B, P or H); a stream of one row takes and gives single vectors too.
  py::object step(py::handle x, py::handle out, py::handle resets, py::handle mask) override {
    apply_thread_limit();
    py::array in = float_array("x", x);
    const bool single = in.ndim() == 1 && batch_ == 1;
    const Shape expected = single ? Shape{spec().input_size} : Shape{batch_, spec().input_size};
    if (!has_shape(in, expected)) refuse_value("x", text(expected), shape_text(in));
    const Shape y_shape = single ? Shape{spec().output_size()} : Shape{batch_, spec().output_size()};
    py::object y, given;
    if (out.is_none()) {
      y = new_array<T>(y_shape);
    } else {
      given = out_argument(out, py::dtype::of<T>(), y_shape, {in});
      y = usable_in_place<T>(py::array(given)) ? given : new_array<T>(y_shape);
    }
    if (!usable_in_place<T>(in)) in = contiguous<T>("x", in);
    std::vector<Index> begun, lengths;
    if (!resets.is_none()) begun = rows_with(true, "resets", resets, batch_);
    if (!mask.is_none()) lengths = lengths_of_step(mask, batch_);

    Sequence<T> sequence;
    sequence.steps = 1;
    sequence.batch = batch_;
    sequence.x = values<T>(in);
    sequence.x_row = single ? 0 : stride_in_values<T>(in, 0);
    sequence.y = values<T>(y);
    sequence.y_row = single ? 0 : stride_in_values<T>(py::reinterpret_borrow<py::array>(y), 0);
    sequence.lengths = lengths.empty() ? nullptr : lengths.data();
    const Use in_use(*this);
    State &next = states_[1 - current_], &now = begun.empty() ? states_[current_] : next;
    if (!begun.empty()) {
      states_[current_].copy_to(next);
      begin(begun, next);
    }
    sequence.h_0 = now.h.data();
    sequence.h_n = next.h.data();
    if (spec().description().has_c) {
      sequence.c_0 = now.c.data();
      sequence.c_n = next.c.data();
    }
    if (work_ < kWorkWorthReleasing) {
      network_->forward(sequence, workspace_);
    } else {
      const GilRelease release;
      network_->forward(sequence, workspace_);
    }
    current_ = 1 - current_;
    return deliver(y, given);
  }

  py::object state() const override {
    const Use in_use(*this);
    const State& now = states_[current_];
    const py::object h = copy_of(now.h, spec().state_size());
    if (!spec().description().has_c) return h;
    return py::make_tuple(h, copy_of(now.c, spec().hidden_size));
  }

  void set_state(py::handle state) override {
    if (state.is_none()) return reset(state);
    const auto [h, c] = state_arguments<T>("state", spec(), state, batch_, false, batch_ == 1);
    const Use in_use(*this);
    State& now = states_[current_];
    for (Index layer = 0; layer < spec().num_layers; ++layer)
      for (Index row = 0; row < batch_; ++row) begin(now, layer, row);
    if (h) std::copy_n(values<T>(h), now.h.size(), now.h.data());
    if (c) std::copy_n(values<T>(c), now.c.size(), now.c.data());
  }

  void reset(py::handle rows) override {
    const std::vector<Index> chosen = rows_argument(rows, batch_);
    const Use in_use(*this);
    begin(chosen, states_[current_]);
  }

  Index batch_size() const override { return batch_; }

  std::unique_ptr<BoundStream> copy() const override {
    auto other = std::make_unique<TypedStream>(network_, initial_, batch_);
    other->network = network;
    const Use in_use(*this);
    states_[current_].copy_to(other->states_[other->current_]);
    return other;
  }

 private:
  struct State {
    State(const Spec& spec, Index batch)
        : h(spec.num_layers * batch * spec.state_size()),
          c(spec.description().has_c ? spec.num_layers * batch * spec.hidden_size : 0) {}
    void copy_to(State& other) const {
      std::copy_n(h.data(), h.size(), other.h.data());
      std::copy_n(c.data(), c.size(), other.c.data());
    }
    Buffer<T> h, c;
  };

  struct Use : StreamInUse {
    explicit Use(const TypedStream& stream) : StreamInUse(stream.lock_) {
      if (interrupted()) new (&stream.workspace_) Workspace;  // the fork may have found it half made: it is left alone
    }
  };

  const Spec& spec() const { return network_->spec(); }

  // Read-only: who writes into it would think to change the stream.
  py::array copy_of(const Buffer<T>& from, Index width) const {
    py::array copy = new_array<T>({spec().num_layers, batch_, width});
    std::copy_n(from.data(), from.size(), values<T>(copy));
    py::detail::array_proxy(copy.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return copy;
  }

  // Rows as they are before their first step.
  void begin(const std::vector<Index>& rows, State& state) const {
    for (Index layer = 0; layer < spec().num_layers; ++layer)
      for (const Index row : rows) begin(state, layer, row);
  }
  void begin(State& state, Index layer, Index row) const {
    const Index at = layer * batch_ + row;
    initial_->begin_h(layer, state.h.data() + at * spec().state_size());
    if (spec().description().has_c) initial_->begin_c(layer, state.c.data() + at * spec().hidden_size);
  }

  std::shared_ptr<const Network<T>> network_;
  std::shared_ptr<const InitialState<T>> initial_;
  Index batch_;
  State states_[2];  // a step computes one from the other: there is a whole one whenever the process is forked
  int current_ = 0;
  mutable Workspace workspace_;
  double work_ = static_cast<double>(batch_ * spec().gate_weights());
  mutable TryLock lock_;
};

}  // namespace gatedrnn::bindings
