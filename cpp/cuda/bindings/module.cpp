// gatedrnn._cuda: the engine on a device, for Python. The same classes as gatedrnn._core, for arrays in the host's memory, which
// are copied, and for those on the device, which are shared.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>

#include "../../bindings/arrays.h"
#include "../../bindings/gil_release.h"
#include "../../bindings/named_parameters.h"
#include "../../bindings/stream_in_use.h"
#include "../network.h"
#include "device_array.h"

namespace gatedrnn::cuda {
namespace {

using bindings::GilRelease;
using bindings::refuse_type;
using bindings::refuse_value;
using bindings::StreamInUse;
using bindings::type_name;
using Sizes = std::vector<Index>;

cudaStream_t stream_of(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

// The arrays of one call: all of them in the host's memory, or all on the device. Those of the host are copied to the device
// as they come, and the results back by `finish`.
class Transfer {
 public:
  // `x` decides. `host_storage` is the module's type.
  Transfer(const py::object& x, Storage host_storage, std::uintptr_t stream)
      : host_(py::isinstance<py::array>(x)),
        host_storage_(host_storage),
        stream_(host_ ? cudaStreamPerThread : stream_of(stream)) {}

  bool host() const { return host_; }
  cudaStream_t stream() const { return stream_; }

  // What an argument holds, its features next to each other.
  ArrayView input(const char* name, const py::object& object) {
    if (!host_) {
      const std::shared_ptr<Array> array = Array::shared(name, object);
      kept_.push_back(array);
      const ArrayView& view = array->view();
      if (view.axes() > 0 && view.shape.back() > 1 && view.strides.back() != 1)
        refuse_value(name, "features next to each other in memory",
                     "a stride of " + std::to_string(view.strides.back()));
      return view;
    }
    py::array given = bindings::float_array(name, object);
    const py::array contiguous = host_storage_ == Storage::float64
                                     ? py::array(bindings::contiguous<double>(name, given))
                                     : py::array(bindings::contiguous<float>(name, given));
    kept_.push_back(Array::from_numpy(contiguous, stream_));
    return kept_.back()->view();
  }

  // A new array of this shape: on the host in the module's type, on the device in that of x.
  ArrayView output(const Sizes& shape, Storage device_storage, py::object& object) {
    const auto array = std::make_shared<Array>(shape, host_ ? host_storage_ : device_storage, stream_);
    kept_.push_back(array);
    object = py::cast(array);
    if (host_) results_.push_back({array, &object});
    return array->view();
  }

  // An array of the caller's for a result. On the host it is filled by `finish`.
  ArrayView output_into(const char* name, const py::object& given, const Sizes& shape, Storage storage) {
    if (!host_) {
      const std::shared_ptr<Array> array = Array::shared(name, given);
      const ArrayView& view = array->view();
      if (view.shape != shape) refuse_value(name, "shape " + text(shape), "shape " + text(view.shape));
      if (view.storage != storage) refuse_type(name, name_of(storage), name_of(view.storage));
      if (!view.contiguous()) refuse_value(name, "a C-contiguous array", "strides");
      kept_.push_back(array);
      return view;
    }
    const auto array = std::make_shared<Array>(shape, storage, stream_);
    kept_.push_back(array);
    filled_.push_back({array, given});
    return array->view();
  }

  // For results of the host: waits for them.
  void finish() {
    for (const auto& [array, object] : results_) *object = array->to_numpy(stream_);
    for (const auto& [array, given] : filled_) given[py::ellipsis()] = array->to_numpy(stream_);
  }

  // What has to live as long as a tape.
  std::vector<std::shared_ptr<Array>> kept() const { return kept_; }

 private:
  const bool host_;
  const Storage host_storage_;
  const cudaStream_t stream_;
  std::vector<std::shared_ptr<Array>> kept_;
  std::vector<std::pair<std::shared_ptr<Array>, py::object*>> results_;
  std::vector<std::pair<std::shared_ptr<Array>, py::object>> filled_;
};

AnyFeatures features_of(const ArrayView& view, bool unbatched, bool batch_first) {
  const bool swapped = !unbatched && batch_first;
  return {view.data, view.storage, view.strides[swapped ? 1 : 0], unbatched ? 0 : view.strides[swapped ? 0 : 1]};
}

class BoundTape {
 public:
  std::unique_ptr<Tape> tape;
  std::shared_ptr<Network> network;
  AnyFeatures x;
  std::vector<std::shared_ptr<Array>> kept;
  Index steps = 0, batch = 0;
  bool unbatched = false, batch_first = false, host = false;
  Storage storage = Storage::float32;  // of x
  py::object owner;

  Index bytes() const { return tape->bytes(); }
};

class BoundNetwork {
 public:
  BoundNetwork(const std::string& cell, const py::dict& parameters, Index input_size, Index hidden_size,
               Index num_layers, bool bidirectional, bool bias, Index proj_size, const py::object& dtype,
               const std::string& precision)
      : spec_{bindings::cell_named(cell), input_size, hidden_size, num_layers, bidirectional ? 2 : 1, proj_size},
        bias_(bias),
        host_storage_(py::dtype::from_args(dtype).itemsize() == 8 ? Storage::float64 : Storage::float32) {
    if (host_storage_ == Storage::float64) {
      network_ =
          make_network(spec_, bindings::find_parameters<double>(spec_, bias, parameters), Storage::float64, false);
      return;
    }
    const Storage storage = precision == "float16"    ? Storage::float16
                            : precision == "bfloat16" ? Storage::bfloat16
                                                      : Storage::float32;
    network_ =
        make_network(spec_, bindings::find_parameters<float>(spec_, bias, parameters), storage, precision == "tf32");
  }

  const Spec& spec() const { return spec_; }
  const std::shared_ptr<Network>& network() const { return network_; }
  Storage host_storage() const { return host_storage_; }

  py::tuple forward(const py::object& x, const py::object& state, const py::object& lengths, const py::object& out,
                    bool batch_first, std::uintptr_t stream) {
    Transfer transfer(x, host_storage_, stream);
    Call call;
    prepare(call, transfer, x, state, lengths, out, batch_first);
    {
      const GilRelease release;
      network_->run(call.forward, transfer.stream());
    }
    transfer.finish();
    return call.results(spec_);
  }

  py::tuple record(const py::object& x, const py::object& state, const py::object& lengths, bool batch_first,
                   double dropout, std::uint64_t dropout_seed, bool recompute, const py::object& owner,
                   std::uintptr_t stream) {
    Transfer transfer(x, host_storage_, stream);
    Call call;
    prepare(call, transfer, x, state, lengths, py::none(), batch_first);
    auto tape = std::make_unique<BoundTape>();
    {
      const GilRelease release;
      tape->tape = network_->record(call.forward, {{dropout, dropout_seed}, recompute}, transfer.stream());
    }
    tape->network = network_;
    tape->x = call.forward.x;
    tape->storage = call.forward.x.storage;
    tape->kept = transfer.kept();
    tape->steps = call.forward.steps;
    tape->batch = call.forward.batch;
    tape->unbatched = call.unbatched;
    tape->batch_first = batch_first;
    tape->host = transfer.host();
    tape->owner = owner;
    transfer.finish();
    const py::tuple pair = call.results(spec_);
    return py::make_tuple(pair[0], pair[1], std::move(tape));
  }

  py::tuple backward(const BoundTape& tape, const py::object& d_output, const py::object& d_state_n,
                     const py::dict& gradients, bool accumulate, bool input_gradient, const py::object& owner,
                     std::uintptr_t stream) {
    if (!tape.owner.is(owner)) refuse_value("tape", "one that this module's forward returned", "one of another module");
    Transfer transfer(tape.host ? py::object(py::array()) : py::object(py::none()), host_storage_, stream);
    BackwardCall call;
    call.x = tape.x;
    call.accumulate = accumulate;
    const auto shape = [&](Index width) -> Sizes {
      if (tape.unbatched) return {tape.steps, width};
      return tape.batch_first ? Sizes{tape.batch, tape.steps, width} : Sizes{tape.steps, tape.batch, width};
    };
    if (!d_output.is_none()) {
      const ArrayView d_y = transfer.input("d_output", d_output);
      const Sizes expected = shape(spec_.output_size());
      if (d_y.shape != expected) refuse_value("d_output", text(expected), text(d_y.shape));
      call.d_output = features_of(d_y, tape.unbatched, tape.batch_first);
    }
    std::tie(call.d_h_n, call.d_c_n) = states(transfer, "d_state_n", d_state_n, tape.batch, tape.unbatched);
    add_gradients(transfer, call, gradients, accumulate);

    py::object d_x = py::none(), d_h_0, d_c_0;
    if (input_gradient)
      call.d_x =
          features_of(transfer.output(shape(spec_.input_size), tape.storage, d_x), tape.unbatched, tape.batch_first);
    call.d_h_0 = new_state(transfer, tape.batch, tape.unbatched, spec_.state_size(), tape.storage, d_h_0);
    if (is_lstm(spec_.cell))
      call.d_c_0 = new_state(transfer, tape.batch, tape.unbatched, spec_.hidden_size, tape.storage, d_c_0);
    {
      const GilRelease release;
      tape.network->backward(*tape.tape, call, transfer.stream());
    }
    transfer.finish();
    return py::make_tuple(d_x, d_c_0 ? py::object(py::make_tuple(d_h_0, d_c_0)) : d_h_0);
  }

  // New arrays for the gradients, where x was on the device.
  py::dict new_gradients(std::uintptr_t stream) const {
    py::dict gradients;
    visit_parameters([&](const std::string& name, const Sizes& shape) {
      gradients[name.c_str()] = py::cast(std::make_shared<Array>(shape, host_storage_, stream_of(stream)));
      return static_cast<void*>(nullptr);
    });
    return gradients;
  }

  py::dict plan(Index steps, Index batch) const {
    const Plan plan = network_->plan(steps, batch);
    py::dict d;
    d["persistent"] = plan.persistent;
    d["grid"] = plan.grid;
    d["units_per_block"] = plan.units_per_block;
    d["most_pairs"] = plan.most_pairs;
    return d;
  }

  // (h, c), each without memory for None.
  std::pair<AnyState, AnyState> states(Transfer& transfer, const char* name, const py::object& state, Index batch,
                                       bool unbatched) const {
    if (state.is_none()) return {};
    if (!is_lstm(spec_.cell))
      return {state_argument(transfer, name, state, state_shape(batch, unbatched, spec_.state_size())), {}};
    const auto [h, c] = bindings::state_pair(name, state);
    const std::string h_name = std::string(name) + ": h", c_name = std::string(name) + ": c";
    return {state_argument(transfer, h_name.c_str(), h, state_shape(batch, unbatched, spec_.state_size())),
            state_argument(transfer, c_name.c_str(), c, state_shape(batch, unbatched, spec_.hidden_size))};
  }

  Sizes state_shape(Index batch, bool unbatched, Index width) const {
    const Index layers = spec_.num_layers * spec_.directions;
    return unbatched ? Sizes{layers, width} : Sizes{layers, batch, width};
  }

 private:
  struct Call {
    ForwardCall forward;
    bool unbatched = false;
    py::object y, h_n, c_n;
    std::optional<std::vector<Index>> lengths;

    py::tuple results(const Spec& spec) const {
      return py::make_tuple(y, is_lstm(spec.cell) ? py::object(py::make_tuple(h_n, c_n)) : h_n);
    }
  };

  // `call` stays where it is: the results are put into its objects at the end.
  void prepare(Call& call, Transfer& transfer, const py::object& x, const py::object& state, const py::object& lengths,
               const py::object& out, bool batch_first) const {
    const ArrayView in = transfer.input("x", x);
    call.unbatched = in.axes() == 2;
    if ((in.axes() != 3 && !call.unbatched) || in.shape.back() != spec_.input_size) {
      const std::string features = std::to_string(spec_.input_size);
      refuse_value("x", (batch_first ? "(B, T, " : "(T, B, ") + features + ") or (T, " + features + ")",
                   text(in.shape));
    }
    ForwardCall& f = call.forward;
    f.steps = in.shape[!call.unbatched && batch_first ? 1 : 0];
    f.batch = call.unbatched ? 1 : in.shape[batch_first ? 0 : 1];
    if (f.steps > (1 << 30) || f.batch > (1 << 30)) refuse_value("x", "at most 2**30 steps and rows", text(in.shape));
    std::tie(f.h_0, f.c_0) = states(transfer, "state", state, f.batch, call.unbatched);
    if (call.unbatched && !lengths.is_none()) refuse_value("lengths", "None for an unbatched x", type_name(lengths));
    call.lengths = bindings::lengths_argument(lengths, f.batch, f.steps);
    Sizes shape = in.shape;
    shape.back() = spec_.output_size();
    ArrayView y;
    if (out.is_none()) {
      y = transfer.output(shape, in.storage, call.y);
    } else {
      if (transfer.host()) {
        const auto dtype = host_storage_ == Storage::float64 ? py::dtype::of<double>() : py::dtype::of<float>();
        const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
        bindings::out_argument(
            out, dtype,
            call.unbatched ? bindings::Shape{sizes[0], sizes[1]} : bindings::Shape{sizes[0], sizes[1], sizes[2]},
            {py::array(x)});
      }
      y = transfer.output_into("out", out, shape, transfer.host() ? host_storage_ : in.storage);
      call.y = out;
    }
    f.x = features_of(in, call.unbatched, batch_first);
    f.y = features_of(y, call.unbatched, batch_first);
    f.lengths = call.lengths ? call.lengths->data() : nullptr;
    f.h_n = new_state(transfer, f.batch, call.unbatched, spec_.state_size(), in.storage, call.h_n);
    if (is_lstm(spec_.cell))
      f.c_n = new_state(transfer, f.batch, call.unbatched, spec_.hidden_size, in.storage, call.c_n);
  }

  AnyState new_state(Transfer& transfer, Index batch, bool unbatched, Index width, Storage storage,
                     py::object& object) const {
    const ArrayView view = transfer.output(state_shape(batch, unbatched, width), storage, object);
    return {view.data, view.storage};
  }

  AnyState state_argument(Transfer& transfer, const char* name, const py::object& object, const Sizes& shape) const {
    if (object.is_none()) return {};
    const ArrayView view = transfer.input(name, object);
    if (view.shape != shape) refuse_value(name, text(shape), text(view.shape));
    if (!view.contiguous()) refuse_value(name, "a C-contiguous array", "strides");
    return {view.data, view.storage};
  }

  template <class Visit>
  void visit_parameters(Visit&& visit) const {
    bindings::by_name<GradientPlaces>(spec_, bias_, [&](const std::string& name, const bindings::Shape& shape) {
      return visit(name, Sizes(shape.begin(), shape.end()));
    });
  }

  void add_gradients(Transfer& transfer, BackwardCall& call, const py::dict& gradients, bool accumulate) const {
    call.gradients = bindings::by_name<GradientPlaces>(
        spec_, bias_, [&](const std::string& name, const bindings::Shape& shape) -> void* {
          const std::string argument = "accumulate_into: " + name;
          if (!gradients.contains(name.c_str())) refuse_value(argument.c_str(), "an array", "nothing of this name");
          const py::object given = gradients[name.c_str()];
          const Sizes sizes(shape.begin(), shape.end());
          if (transfer.host()) check_host_gradient(argument, given, shape);
          const ArrayView to = transfer.output_into(argument.c_str(), given, sizes, host_storage_);
          if (transfer.host() && accumulate) {
            const auto array = py::array(given);
            copy(to.data, array.data(), array.nbytes(), cudaMemcpyHostToDevice, transfer.stream());
          }
          return to.data;
        });
  }

  void check_host_gradient(const std::string& argument, const py::object& given, const bindings::Shape& shape) const {
    const std::string expected = "a writable C-contiguous array of " + std::string(name_of(host_storage_)) +
                                 " and shape " + bindings::text(shape);
    if (!py::isinstance<py::array>(given)) refuse_type(argument.c_str(), expected, type_name(given));
    const auto array = py::reinterpret_borrow<py::array>(given);
    const bool typed = host_storage_ == Storage::float64 ? py::isinstance<bindings::Array<double>>(array)
                                                         : py::isinstance<bindings::Array<float>>(array);
    if (!typed) refuse_type(argument.c_str(), expected, "an array of " + std::string(py::str(array.dtype())));
    if (!bindings::has_shape(array, shape))
      refuse_value(argument.c_str(), expected, "shape " + bindings::shape_text(array));
    if (!array.writeable()) refuse_value(argument.c_str(), expected, "a read-only array");
  }

  const Spec spec_;
  const bool bias_;
  const Storage host_storage_;
  std::shared_ptr<Network> network_;
};

// Sequences that go forward together, their state on the device.
class BoundStream {
 public:
  BoundStream(const BoundNetwork& network, Index batch)
      : spec_(network.spec()),
        network_(network.network()),
        storage_(network.host_storage()),
        batch_(batch),
        h_({layers(), batch, spec_.state_size()}, storage_, cudaStreamPerThread),
        c_({is_lstm(spec_.cell) ? layers() : 0, batch, spec_.hidden_size}, storage_, cudaStreamPerThread) {
    reset(py::none());
  }

  py::object step(const py::object& x, const py::object& out, std::uintptr_t stream) {
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
    const StreamInUse in_use(busy_);
    ForwardCall call;
    call.steps = 1;
    call.batch = batch_;
    call.x = {in.data, in.storage, 0, single ? 0 : in.strides[0]};
    call.y = {to.data, to.storage, 0, single ? 0 : to.strides[0]};
    call.h_0 = call.h_n = {h_.view().data, storage_};
    if (is_lstm(spec_.cell)) call.c_0 = call.c_n = {c_.view().data, storage_};
    {
      const GilRelease release;
      const Following order(last_, transfer.stream());
      network_->run(call, transfer.stream());
    }
    transfer.finish();
    return y;
  }

  py::object state() const {
    const StreamInUse in_use(busy_);
    const py::array h = h_.to_numpy(last_);
    return is_lstm(spec_.cell) ? py::object(py::make_tuple(h, c_.to_numpy(last_))) : py::object(h);
  }

  void set_state(const py::object& state) {
    if (state.is_none()) return reset(state);
    py::object h = state, c;
    if (is_lstm(spec_.cell)) std::tie(h, c) = bindings::state_pair("state", state);
    const py::array checked_h = checked("state: h", h, h_), checked_c = c ? checked("state: c", c, c_) : py::array();
    const StreamInUse in_use(busy_);
    assign(checked_h, h_);
    if (c) assign(checked_c, c_);
  }

  void reset(const py::object& rows) {
    std::vector<Index> chosen;
    if (!rows.is_none())
      chosen =
          bindings::integers("rows", "None, or row numbers in 0 .. " + std::to_string(batch_ - 1), rows, 0, batch_ - 1);
    const StreamInUse in_use(busy_);
    for (const Array* array : {&h_, &c_}) {
      const ArrayView& view = array->view();
      const Index width = view.shape[2] * bytes_of(storage_);
      auto* bytes = static_cast<char*>(view.data);
      if (rows.is_none()) clear(bytes, view.size() * bytes_of(storage_), last_);
      for (Index layer = 0; layer < view.shape[0]; ++layer)
        for (const Index row : chosen) clear(bytes + (layer * batch_ + row) * width, width, last_);
    }
  }

  Index batch_size() const { return batch_; }

 private:
  Index layers() const { return spec_.num_layers; }

  py::array checked(const char* name, const py::object& value, const Array& of) const {
    const py::array array = bindings::float_array(name, value);
    const Sizes shape(array.shape(), array.shape() + array.ndim());
    if (shape != of.view().shape) refuse_value(name, text(of.view().shape), text(shape));
    return storage_ == Storage::float64 ? py::array(bindings::contiguous<double>(name, array))
                                        : py::array(bindings::contiguous<float>(name, array));
  }
  void assign(const py::array& from, Array& to) {
    copy(to.view().data, from.data(), from.nbytes(), cudaMemcpyHostToDevice, last_);
    check(cudaStreamSynchronize(last_), "copying a state");
  }

  const Spec spec_;
  const std::shared_ptr<Network> network_;
  const Storage storage_;
  const Index batch_;
  const cudaStream_t last_ = cudaStreamPerThread;
  Array h_, c_;
  mutable std::atomic<bool> busy_{false};
};

// One dictionary for each device; none where there is no driver, which is said.
py::dict devices() {
  py::dict d;
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  d["error"] = status == cudaSuccess ? py::object(py::none()) : py::object(py::str(cudaGetErrorString(status)));
  py::list names;
  for (int i = 0; status == cudaSuccess && i < count; ++i) {
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, i), "asking for a device");
    names.append(py::str(properties.name));
  }
  d["names"] = names;
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  d["runtime"] = runtime;
  d["driver"] = driver;
  return d;
}

}  // namespace
}  // namespace gatedrnn::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace gatedrnn::cuda;
  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::bad_alloc&) {
      PyErr_SetString(PyExc_MemoryError, "not enough memory on the device");
    }
  });

  py::class_<Array, std::shared_ptr<Array>>(m, "Array")
      .def(py::init([](const py::array& array) { return Array::from_numpy(array, cudaStreamPerThread); }),
           py::arg("array"))
      .def("numpy", [](const Array& self) { return self.to_numpy(cudaStreamPerThread); })
      .def_property_readonly("shape", [](const Array& self) { return py::tuple(py::cast(self.view().shape)); })
      .def_property_readonly("dtype", [](const Array& self) { return name_of(self.view().storage); })
      .def("__dlpack__",
           [](const std::shared_ptr<Array>& self, const py::args&, const py::kwargs&) { return to_dlpack(self); })
      .def("__dlpack_device__", [](const Array&) { return py::make_tuple(2, device_number()); })
      .def_property_readonly("__cuda_array_interface__", &Array::array_interface);

  py::class_<BoundTape>(m, "Tape").def_property_readonly("nbytes", &BoundTape::bytes);

  py::class_<BoundStream>(m, "Stream")
      .def("step", &BoundStream::step, py::arg("x"), py::arg("out") = py::none(), py::arg("stream") = 0)
      .def_property("state", &BoundStream::state, &BoundStream::set_state)
      .def("reset", &BoundStream::reset, py::arg("rows") = py::none())
      .def_property_readonly("batch_size", &BoundStream::batch_size);

  py::class_<BoundNetwork>(m, "Network")
      .def(py::init<const std::string&, const py::dict&, gatedrnn::Index, gatedrnn::Index, gatedrnn::Index, bool, bool,
                    gatedrnn::Index, const py::object&, const std::string&>(),
           py::arg("cell"), py::arg("parameters"), py::kw_only(), py::arg("input_size"), py::arg("hidden_size"),
           py::arg("num_layers"), py::arg("bidirectional"), py::arg("bias"), py::arg("proj_size"), py::arg("dtype"),
           py::arg("precision"))
      .def("__call__", &BoundNetwork::forward, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("out"),
           py::arg("batch_first"), py::arg("stream") = 0)
      .def("record", &BoundNetwork::record, py::arg("x"), py::arg("state"), py::arg("lengths"), py::arg("batch_first"),
           py::arg("dropout"), py::arg("dropout_seed"), py::arg("recompute"), py::arg("owner") = py::none(),
           py::arg("stream") = 0)
      .def("backward", &BoundNetwork::backward, py::arg("tape"), py::arg("d_output"), py::arg("d_state_n"),
           py::arg("gradients"), py::arg("accumulate"), py::arg("input_gradient"), py::arg("owner") = py::none(),
           py::arg("stream") = 0)
      .def("new_gradients", &BoundNetwork::new_gradients, py::arg("stream") = 0)
      .def("plan", &BoundNetwork::plan, py::arg("steps"), py::arg("batch"))
      .def(
          "stream",
          [](const BoundNetwork& self, gatedrnn::Index batch_size) {
            return std::make_unique<BoundStream>(self, batch_size);
          },
          py::arg("batch_size"));

  m.def("devices", &devices);
}
