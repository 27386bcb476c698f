// A network and its tapes, for Python: the classes of gatedrnn._core for arrays of the host or the device.
#pragma once

#include "../../bindings/gil_release.h"
#include "../../bindings/marks.h"
#include "../../bindings/named_parameters.h"
#include "../pieces.h"
#include "transfer.h"

namespace gatedrnn::cuda {

using bindings::GilRelease;
using bindings::Marks;
using bindings::type_name;

// The learnt parts of the state that rows begin with, [layer * direction][width]; null for zeros.
struct InitialState {
  std::shared_ptr<Array> h, c;

  InitialState() = default;
  InitialState(const InitialState&) = delete;
  InitialState& operator=(const InitialState&) = delete;
  // Streams that still read them are not known here.
  ~InitialState() {
    if (h) cudaDeviceSynchronize();
  }
};

class BoundTape {
 public:
  py::object stream_owner;  // comes first and so goes last: see Array::keep
  std::unique_ptr<Tape> tape;
  std::shared_ptr<Network> network;
  AnyFeatures x;
  std::vector<std::shared_ptr<Array>> kept;
  Index steps = 0, batch = 0;
  bool unbatched = false, batch_first = false, host = false;
  Storage storage = Storage::float32;    // of x
  bindings::LearntParts learnt;          // of the initial state
  std::shared_ptr<CallInPieces> pieces;  // that the rows were run in, if any
  py::object owner;

  Index bytes() const { return tape->bytes(); }
};

class BoundNetwork {
 public:
  BoundNetwork(const std::string& cell, const py::dict& parameters, Index input_size, Index hidden_size,
               Index num_layers, bool bidirectional, bool bias, Index proj_size, const py::object& dtype,
               const std::string& precision, bool reverse, bool learn_state, const bindings::Functions& activations,
               std::optional<double> clip, std::optional<double> cell_clip, double layer_norm_eps)
      : spec_{bindings::cell_named(cell), input_size, hidden_size, num_layers,
              bidirectional ? 2 : 1,      proj_size,  reverse},
        bias_(bias),
        host_storage_(py::dtype::from_args(dtype).itemsize() == 8 ? Storage::float64 : Storage::float32) {
    spec_.options = bindings::cell_options(spec_.description(), activations, clip, cell_clip, layer_norm_eps);
    if (learn_state)
      bindings::visit_initial_state(spec_, [&](const char* name, const bindings::Shape& shape) {
        (name[0] == 'h' ? initial_->h : initial_->c) = learnt_part(name, parameters, shape);
      });
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
  std::shared_ptr<const InitialState> initial() const { return initial_; }

  py::tuple infer(const py::object& x, const py::object& state, const py::object& lengths, const py::object& out,
                  bool batch_first, std::uintptr_t stream, const py::object& mask, const py::object& resets,
                  bool repeats) {
    Transfer transfer(x, host_storage_, stream);
    Call call;
    prepare(call, transfer, transfer.input("x", x), x, state, lengths, out, batch_first, {mask, resets, repeats});
    {
      const GilRelease release;
      call.run(spec_, repeats, transfer.stream(),
               [&](const ForwardCall& forward) { network_->run(forward, transfer.stream()); });
    }
    transfer.finish();
    return call.results(spec_);
  }

  py::tuple forward(const py::object& x, const py::object& state, const py::object& lengths, bool batch_first,
                    double dropout, std::uint64_t dropout_seed, bool recompute, const py::object& owner,
                    std::uintptr_t stream, const py::object& mask, const py::object& resets, bool repeats) {
    Transfer transfer(x, host_storage_, stream);
    Call call;
    const Marks marks{mask, resets, repeats};
    const ArrayView in = marks.any() ? transfer.input("x", x) : transfer.copied("x", x);  // pieces are a copy
    prepare(call, transfer, in, x, state, lengths, py::none(), batch_first, marks);
    auto tape = std::make_unique<BoundTape>();
    {
      const GilRelease release;
      tape->pieces = call.run(spec_, repeats, transfer.stream(), [&](const ForwardCall& forward) {
        tape->tape = network_->forward(forward, {{dropout, dropout_seed}, recompute}, transfer.stream());
      });
    }
    tape->network = network_;
    tape->x = call.forward.x;
    tape->storage = call.forward.x.storage;
    if (!tape->pieces) tape->kept = transfer.kept();
    tape->steps = call.forward.steps;
    tape->batch = call.forward.batch;
    tape->unbatched = call.unbatched;
    tape->batch_first = batch_first;
    tape->host = transfer.host();
    tape->learnt = call.learnt;
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
    add_initial_gradients(transfer, call, gradients, accumulate, tape.learnt);

    py::object d_x = py::none(), d_h_0, d_c_0;
    if (input_gradient)
      call.d_x =
          features_of(transfer.output(shape(spec_.input_size), tape.storage, d_x), tape.unbatched, tape.batch_first);
    call.d_h_0 = new_state(transfer, tape.batch, tape.unbatched, spec_.state_size(), tape.storage, d_h_0);
    if (spec_.description().has_c)
      call.d_c_0 = new_state(transfer, tape.batch, tape.unbatched, spec_.hidden_size, tape.storage, d_c_0);
    {
      const GilRelease release;
      const auto go_back = [&](const BackwardCall& backward) {
        tape.network->backward(*tape.tape, backward, transfer.stream());
      };
      tape.pieces ? tape.pieces->backward(call, transfer.stream(), go_back) : go_back(call);
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
    if (initial_->h) gradients["h_0"] = new_like(*initial_->h, stream);
    if (initial_->c) gradients["c_0"] = new_like(*initial_->c, stream);
    return gradients;
  }

  py::dict plan(Index steps, Index batch) const {
    const Plan plan = network_->plan(steps, batch);
    py::dict d;
    const auto described = [](const RecurrencePlan& recurrence) {
      py::dict of;
      of["persistent"] = recurrence.fits;
      of["undivided"] = recurrence.undivided;
      of["row_groups"] = recurrence.row_groups;
      of["rows"] = recurrence.rows;
      of["unit_groups"] = recurrence.unit_groups;
      of["units"] = recurrence.units;
      of["shared_bytes"] = recurrence.shared_bytes;
      of["step_ns"] = recurrence.step_ns;
      return of;
    };
    d["forward"] = described(plan.forward);
    d["backward"] = described(plan.backward);
    d["most_pairs"] = plan.most_pairs;
    return d;
  }

  // (h, c), each without memory for None.
  std::pair<AnyState, AnyState> states(Transfer& transfer, const char* name, const py::object& state, Index batch,
                                       bool unbatched) const {
    if (state.is_none()) return {};
    if (!spec_.description().has_c)
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
    bindings::LearntParts learnt;
    std::optional<PieceList> pieces;

    // run(call), in pieces where the rows have some, which a tape needs.
    template <class Run>
    std::shared_ptr<CallInPieces> run(const Spec& spec, bool repeats, cudaStream_t stream, Run&& run) {
      if (!pieces) {
        run(forward);
        return nullptr;
      }
      const auto in_pieces = std::make_shared<CallInPieces>(spec, std::move(*pieces), repeats, stream);
      in_pieces->forward(forward, run);
      return in_pieces;
    }

    py::tuple results(const Spec& spec) const {
      return py::make_tuple(y, spec.description().has_c ? py::object(py::make_tuple(h_n, c_n)) : h_n);
    }
  };

  // `call` stays where it is: the results are put into its objects at the end.
  void prepare(Call& call, Transfer& transfer, const ArrayView& in, const py::object& x, const py::object& state,
               const py::object& lengths, const py::object& out, bool batch_first, const Marks& marks) const {
    call.unbatched = in.axes() == 2;
    if ((in.axes() != 3 && !call.unbatched) || in.shape.back() != spec_.input_size) {
      const std::string features = std::to_string(spec_.input_size);
      refuse_value("x", (batch_first ? "(B, T, " : "(T, B, ") + features + ") or (T, " + features + ")",
                   text(in.shape));
    }
    ForwardCall& f = call.forward;
    f.steps = in.shape[!call.unbatched && batch_first ? 1 : 0];
    f.batch = call.unbatched ? 1 : in.shape[batch_first ? 0 : 1];
    constexpr Index most = 1 << 30;  // pairs are counted by ints on the device
    if (f.steps > most || f.batch > most || f.steps * f.batch > most)
      refuse_value("x", "at most 2**30 steps times rows", text(in.shape));
    std::tie(f.h_0, f.c_0) = states(transfer, "state", state, f.batch, call.unbatched);
    call.learnt = {begin_learnt(f.h_0, initial_->h), begin_learnt(f.c_0, initial_->c)};
    if (call.unbatched && !lengths.is_none()) refuse_value("lengths", "None for an unbatched x", type_name(lengths));
    call.lengths = bindings::lengths_argument(lengths, f.batch, f.steps);
    if (initial_->h && !call.learnt.h && !marks.resets.is_none())  // some would begin with one, and some with another
      refuse_value("resets", "None on 'cuda' where a state is given beside a learnt one", type_name(marks.resets));
    if (marks.any()) {
      const Index* const given = call.lengths ? call.lengths->data() : nullptr;
      call.pieces.emplace(bindings::pieces_of(marks, call.unbatched, batch_first, f.steps, f.batch, given));
      if (call.pieces->longest() * call.pieces->count() > most)
        refuse_value("resets", "at most 2**30 steps of the longest piece times pieces",
                     std::to_string(call.pieces->longest()) + " times " + std::to_string(call.pieces->count()));
    }
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
      f.y_may_overlap = true;
    }
    f.x = features_of(in, call.unbatched, batch_first);
    f.y = features_of(y, call.unbatched, batch_first);
    f.lengths = call.lengths ? call.lengths->data() : nullptr;
    f.h_n = new_state(transfer, f.batch, call.unbatched, spec_.state_size(), in.storage, call.h_n);
    if (spec_.description().has_c)
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
    Sizes lone = shape;  // either with or without the axis of the batch, where x is unbatched
    if (shape.size() == 2) lone.insert(lone.begin() + 1, 1);
    if (view.shape != shape && view.shape != lone) refuse_value(name, text(shape), text(view.shape));
    if (!view.contiguous()) refuse_value(name, "a C-contiguous array", "strides");
    return {view.data, view.storage};
  }

  std::shared_ptr<Array> learnt_part(const char* name, const py::dict& parameters, const bindings::Shape& shape) const {
    const auto array = py::cast<py::array>(py::object(parameters[name]));
    if (!bindings::has_shape(array, shape)) refuse_value(name, bindings::text(shape), bindings::shape_text(array));
    return Array::from_numpy(array, cudaStreamPerThread);
  }

  // Puts a learnt part where a call has none; whether it did.
  static bool begin_learnt(AnyState& state, const std::shared_ptr<Array>& learnt) {
    if (!learnt || state.data) return false;
    state = {learnt->view().data, learnt->view().storage, true};
    return true;
  }

  static py::object new_like(const Array& learnt, std::uintptr_t stream) {
    const ArrayView& view = learnt.view();
    return py::cast(std::make_shared<Array>(view.shape, view.storage, stream_of(stream)));
  }

  template <class Visit>
  void visit_parameters(Visit&& visit) const {
    bindings::by_name<GradientPlaces>(spec_, bias_, [&](const std::string& name, const bindings::Shape& shape) {
      return visit(name, Sizes(shape.begin(), shape.end()));
    });
  }

  void add_gradients(Transfer& transfer, BackwardCall& call, const py::dict& gradients, bool accumulate) const {
    call.gradients =
        bindings::by_name<GradientPlaces>(spec_, bias_, [&](const std::string& name, const bindings::Shape& shape) {
          return gradient_place(transfer, name, shape, gradients, accumulate);
        });
  }

  void* gradient_place(Transfer& transfer, const std::string& name, const bindings::Shape& shape,
                       const py::dict& gradients, bool accumulate) const {
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
  }

  // Of learnt states, with which rows did not begin that were given others.
  void add_initial_gradients(Transfer& transfer, BackwardCall& call, const py::dict& gradients, bool accumulate,
                             const bindings::LearntParts& began) const {
    if (!initial_->h) return;
    bindings::visit_initial_state(spec_, [&](const char* name, const bindings::Shape& shape) {
      const bool of_h = name[0] == 'h';
      const Index row = shape.begin()[1] * bytes_of(host_storage_);
      char* place = static_cast<char*>(gradient_place(transfer, name, shape, gradients, accumulate));
      if (!(of_h ? began.h : began.c)) {
        if (!accumulate) clear(place, shape.begin()[0] * row, transfer.stream());
        return;
      }
      for (GradientPlaces& track : call.gradients) {
        (of_h ? track.h_0 : track.c_0) = place;
        place += row;
      }
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

  Spec spec_;
  const bool bias_;
  const Storage host_storage_;
  const std::shared_ptr<InitialState> initial_ = std::make_shared<InitialState>();
  std::shared_ptr<Network> network_;
};

}  // namespace gatedrnn::cuda
