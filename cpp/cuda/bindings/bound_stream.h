// Sequences that go forward together on the device, one time step at a time.
#pragma once

#include "../../bindings/stream_in_use.h"
#include "bound_network.h"

namespace gatedrnn::cuda {

using bindings::StreamInUse;

// Sequences that go forward together, their state on the device.
class BoundStream {
 public:
  BoundStream(const BoundNetwork& network, Index batch)
      : spec_(network.spec()),
        network_(network.network()),
        storage_(network.host_storage()),
        initial_(network.initial()),
        batch_(batch),
        h_({layers(), batch, spec_.state_size()}, storage_, own_),
        c_({spec_.description().has_c ? layers() : 0, batch, spec_.hidden_size}, storage_, own_) {
    reset(py::none());
  }

  py::object step(const py::object& x, const py::object& out, std::uintptr_t stream, const py::object& resets,
                  const py::object& mask) {
    Transfer transfer(x, storage_, stream);
    const ArrayView in = transfer.input("x", x);
    const bool single = in.axes() == 1 && batch_ == 1;
    const Sizes expected = single ? Sizes{spec_.input_size} : Sizes{batch_, spec_.input_size};
    if (in.shape != expected) refuse_value("x", text(expected), text(in.shape));
    Sizes shape = in.shape;
    shape.back() = spec_.output_size();
    py::object y;
    ArrayView to;
    if (out.is_none()) {
      to = transfer.output(shape, in.storage, y);
    } else {
      if (transfer.host())
        bindings::out_argument(out, py::dtype(name_of(storage_)),
                               single ? bindings::Shape{shape[0]} : bindings::Shape{shape[0], shape[1]},
                               {py::array(x)});
      to = transfer.output_into("out", out, shape, transfer.host() ? storage_ : in.storage);
      y = out;
    }
    const std::vector<Index> begun = bindings::rows_with(true, "resets", resets, batch_);
    const std::vector<Index> lengths = bindings::lengths_of_step(mask, batch_);
    const StreamInUse in_use(lock_);
    begin(begun, initial_->h.get(), h_);
    begin(begun, initial_->c.get(), c_);
    ForwardCall call;
    call.steps = 1;
    call.batch = batch_;
    call.lengths = lengths.empty() ? nullptr : lengths.data();
    call.x = {in.data, in.storage, 0, single ? 0 : in.strides[0]};
    call.y = {to.data, to.storage, 0, single ? 0 : to.strides[0]};
    call.h_0 = call.h_n = {h_.view().data, storage_};
    if (spec_.description().has_c) call.c_0 = call.c_n = {c_.view().data, storage_};
    {
      const GilRelease release;
      const Following order(own_, transfer.stream());
      network_->run(call, transfer.stream());
    }
    transfer.finish();
    return y;
  }

  py::object state() const {
    const StreamInUse in_use(lock_);
    const py::object h = read_only(h_);
    return spec_.description().has_c ? py::object(py::make_tuple(h, read_only(c_))) : h;
  }

  void set_state(const py::object& state) {
    if (state.is_none()) return reset(state);
    py::object h = state, c;
    if (spec_.description().has_c) std::tie(h, c) = bindings::state_pair("state", state);
    const std::optional<py::array> checked_h = checked("state: h", h, h_), checked_c = checked("state: c", c, c_);
    const StreamInUse in_use(lock_);
    checked_h ? assign(*checked_h, h_) : begin_all(initial_->h.get(), h_);
    checked_c ? assign(*checked_c, c_) : begin_all(initial_->c.get(), c_);
  }

  void reset(const py::object& rows) {
    const std::vector<Index> chosen = bindings::rows_argument(rows, batch_);
    const StreamInUse in_use(lock_);
    for (const auto& [learnt, states] : {std::pair(initial_->h.get(), &h_), std::pair(initial_->c.get(), &c_)})
      rows.is_none() ? begin_all(learnt, *states) : begin(chosen, learnt, *states);
  }

  Index batch_size() const { return batch_; }

 private:
  Index layers() const { return spec_.num_layers; }

  Index row_bytes(const Array& states) const { return states.view().shape[2] * bytes_of(storage_); }
  char* row_of(const Array& states, Index layer, Index row) const {
    return static_cast<char*>(states.view().data) + (layer * batch_ + row) * row_bytes(states);
  }

  // Rows as they are before their first step.
  void begin(const std::vector<Index>& rows, const Array* learnt, const Array& states) const {
    for (Index layer = 0; layer < states.view().shape[0]; ++layer)
      for (const Index row : rows) begin(layer, row, learnt, states);
  }
  void begin(Index layer, Index row, const Array* learnt, const Array& states) const {
    const Index width = row_bytes(states);
    char* const to = row_of(states, layer, row);
    if (!learnt) return clear(to, width, own_);
    copy(to, static_cast<const char*>(learnt->view().data) + layer * width, width, cudaMemcpyDeviceToDevice, own_);
  }
  void begin_all(const Array* learnt, const Array& states) const {
    const Index width = row_bytes(states);
    if (!learnt) return clear(static_cast<char*>(states.view().data), states.view().size() * bytes_of(storage_), own_);
    for (Index layer = 0; layer < states.view().shape[0]; ++layer) {
      begin(layer, 0, learnt, states);
      for (Index done = 1; done < batch_; done *= 2)  // copies of what is there already
        copy(row_of(states, layer, done), row_of(states, layer, 0), std::min(done, batch_ - done) * width,
             cudaMemcpyDeviceToDevice, own_);
    }
  }

  // As bindings::TypedStream's.
  py::object read_only(const Array& array) const {
    const py::array copy = array.to_numpy(own_);
    copy.attr("flags").attr("writeable") = false;
    return copy;
  }

  // Nothing for None, or where there is no such part.
  std::optional<py::array> checked(const char* name, const py::object& value, const Array& of) const {
    if (!value || value.is_none()) return std::nullopt;
    const py::array array = bindings::float_array(name, value);
    const Sizes& shape = of.view().shape;
    if (!bindings::has_state_shape(array, {shape[0], shape[1], shape[2]}, batch_ == 1))
      refuse_value(name, text(shape), bindings::shape_text(array));
    return storage_ == Storage::float64 ? py::array(bindings::contiguous<double>(name, array))
                                        : py::array(bindings::contiguous<float>(name, array));
  }
  void assign(const py::array& from, Array& to) {
    copy(to.view().data, from.data(), from.nbytes(), cudaMemcpyHostToDevice, own_);
    check(cudaStreamSynchronize(own_), "copying a state");
  }

  const Spec spec_;
  const std::shared_ptr<Network> network_;
  const Storage storage_;
  const std::shared_ptr<const InitialState> initial_;
  const Index batch_;
  const OwnStream own_;  // in whose order the state is read and written, whichever thread and stream a step is given to
  Array h_, c_;
  mutable TryLock lock_;
};

}  // namespace gatedrnn::cuda
