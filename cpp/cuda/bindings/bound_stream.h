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
    const std::vector<Index> zeroed = bindings::rows_with(true, "resets", resets, batch_);
    const std::vector<Index> lengths = bindings::lengths_of_step(mask, batch_);
    const StreamInUse in_use(lock_);
    set_to_zeros(zeroed);
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
    const py::array checked_h = checked("state: h", h, h_), checked_c = c ? checked("state: c", c, c_) : py::array();
    const StreamInUse in_use(lock_);
    assign(checked_h, h_);
    if (c) assign(checked_c, c_);
  }

  void reset(const py::object& rows) {
    std::vector<Index> chosen;
    if (!rows.is_none()) chosen = bindings::rows_argument(rows, batch_);
    const StreamInUse in_use(lock_);
    if (rows.is_none())
      for (const Array* array : {&h_, &c_})
        clear(static_cast<char*>(array->view().data), array->view().size() * bytes_of(storage_), own_);
    set_to_zeros(chosen);
  }

  Index batch_size() const { return batch_; }

 private:
  Index layers() const { return spec_.num_layers; }

  void set_to_zeros(const std::vector<Index>& rows) {
    for (const Array* array : {&h_, &c_}) {
      const ArrayView& view = array->view();
      const Index width = view.shape[2] * bytes_of(storage_);
      for (Index layer = 0; layer < view.shape[0]; ++layer)
        for (const Index row : rows) clear(static_cast<char*>(view.data) + (layer * batch_ + row) * width, width, own_);
    }
  }

  // As bindings::TypedStream's.
  py::object read_only(const Array& array) const {
    const py::array copy = array.to_numpy(own_);
    copy.attr("flags").attr("writeable") = false;
    return copy;
  }

  py::array checked(const char* name, const py::object& value, const Array& of) const {
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
  const Index batch_;
  const OwnStream own_;  // in whose order the state is read and written, whichever thread and stream a step is given to
  Array h_, c_;
  mutable TryLock lock_;
};

}  // namespace gatedrnn::cuda
