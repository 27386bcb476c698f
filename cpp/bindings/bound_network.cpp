#include "bound_network.h"

#include <algorithm>
#include <memory>
#include <new>
#include <vector>

#include "bound_tape.h"
#include "call.h"
#include "gatedrnn/reference.h"
#include "gatedrnn/threads.h"
#include "gil_release.h"
#include "named_parameters.h"
#include "scratch.h"
#include "stream_in_use.h"
#include "thread_limit.h"

namespace gatedrnn::bindings {
namespace {

// Places for the gradients, which have to be usable as they are. They are listed in `found`.
template <class T>
std::vector<LayerGradients<T>> find_gradients(const Spec& spec, bool bias, const py::dict& given,
                                              std::vector<std::pair<std::string, py::array>>& found) {
  return by_name<LayerGradients<T>>(spec, bias, [&](const std::string& name, const Shape& shape) -> T* {
    const auto argument = [&] { return "accumulate_into: " + name; };
    if (!given.contains(name.c_str())) refuse_value(argument().c_str(), "an array", "nothing of this name");
    const py::object value = given[name.c_str()];
    const auto expected = [&] {
      return "a writable C-contiguous array of " + std::string(py::str(py::dtype::of<T>())) + " and shape " +
             text(shape);
    };
    if (!py::isinstance<Array<T>>(value)) {
      const bool array = py::isinstance<py::array>(value);
      refuse_type(argument().c_str(), expected(),
                  array ? "an array of " + std::string(py::str(py::array(value).dtype())) +
                              ((py::array(value).flags() & py::array::c_style) ? "" : " that is not contiguous")
                        : type_name(value));
    }
    auto array = py::reinterpret_borrow<Array<T>>(value);
    if (is_masked(array)) refuse_type(argument().c_str(), expected(), type_name(value));
    if (!has_shape(array, shape)) refuse_value(argument().c_str(), expected(), "shape " + shape_text(array));
    if (!array.writeable()) refuse_value(argument().c_str(), expected(), "a read-only array");
    if (!is_aligned<T>(array)) refuse_value(argument().c_str(), expected(), "an array that is not aligned");
    if (array.size() > 0) found.emplace_back(name, array);
    return array.mutable_data();
  });
}

// Nor may they share memory with each other or with what is read. Neighbours in memory tell: all are contiguous.
void refuse_overlaps(std::vector<std::pair<std::string, py::array>>& places, const std::vector<py::object>& read) {
  for (const auto& [name, array] : places)
    for (const py::object& input : read)
      if (input && share_memory(array, py::reinterpret_borrow<py::array>(input)))
        refuse_value(("accumulate_into: " + name).c_str(), "memory of its own",
                     "an array that overlaps x or an incoming gradient");
  std::sort(places.begin(), places.end(),
            [](const auto& a, const auto& b) { return a.second.data() < b.second.data(); });
  for (std::size_t i = 1; i < places.size(); ++i)
    if (share_memory(places[i - 1].second, places[i].second))
      refuse_value(("accumulate_into: " + places[i].first).c_str(), "memory of its own",
                   "an array that overlaps " + places[i - 1].first);
}

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
        layout(call.layout),
        x(call.sequence.x),
        x_step(call.sequence.x_step),
        x_row(call.sequence.x_row),
        tape(*this->network, call.sequence, options, memory_) {}

  // Comes before anybody can write into the caller's x.
  void copy_x() {
    if (kept_x || tape.batch == 0) return;
    const Index width = network->spec().input_size, step = tape.batch * width;
    own_x_ = Buffer<T>(tape.steps * step, kHugeBlock, Fit::loose);
    share_out(tape.steps, tape.steps * step * static_cast<Index>(sizeof(T)), [&](Index t) {
      if (x_row == width) {
        std::copy_n(x + t * x_step, step, own_x_.data() + t * step);
        return;
      }
      for (Index row = 0; row < tape.batch; ++row)
        std::copy_n(x + t * x_step + row * x_row, width, own_x_.data() + t * step + row * width);
    });
    x = own_x_.data();
    x_step = step;
    x_row = width;
  }

  Index bytes() const override { return tape.bytes(); }

  const std::shared_ptr<const Network<T>> network;
  const bool bias;
  const py::object kept_x;  // where there is no copy
  const Layout layout;
  const T* x;
  Index x_step, x_row;

 private:
  Buffer<T> own_x_;
  Workspace memory_;

 public:
  Tape<T> tape;
};

// Of the weights that are packed.
template <class T>
Index parameter_bytes(const Spec& spec) {
  Index count = 0;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    count += spec.description().gates * spec.hidden_size * (spec.layer_input_size(layer) + spec.state_size());
  return count * spec.directions * static_cast<Index>(sizeof(T));
}

template <class T>
std::shared_ptr<const Network<T>> make_network(const Spec& spec, const Parameters<T>& parameters) {
  const GilReleaseForBytes release(parameter_bytes<T>(spec));
  return std::make_shared<const Network<T>>(spec, parameters, active_table());
}

// Of one row's step.
double multiply_adds(const Spec& spec) {
  double count = 0;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    count += static_cast<double>(spec.description().gates * spec.hidden_size) *
             static_cast<double>(spec.layer_input_size(layer) + spec.state_size());
  return count * static_cast<double>(spec.directions);
}

template <class T>
class TypedStream final : public BoundStream {
 public:
  TypedStream(std::shared_ptr<const Network<T>> network, Index batch)
      : network_(std::move(network)), batch_(batch), states_{State(spec(), batch), State(spec(), batch)} {
    reset(py::none());
  }

  // x (B, I) -> y (B, P or H); a stream of one row takes and gives single vectors too.
  py::object step(py::handle x, py::handle out) override {
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

    Sequence<T> sequence;
    sequence.steps = 1;
    sequence.batch = batch_;
    sequence.x = values<T>(in);
    sequence.x_row = single ? 0 : stride_in_values<T>(in, 0);
    sequence.y = values<T>(y);
    sequence.y_row = single ? 0 : stride_in_values<T>(py::reinterpret_borrow<py::array>(y), 0);
    const Use in_use(*this);
    State &now = states_[current_], &next = states_[1 - current_];
    sequence.h_0 = now.h.data();
    sequence.h_n = next.h.data();
    if (spec().description().has_c) {
      sequence.c_0 = now.c.data();
      sequence.c_n = next.c.data();
    }
    if (work_ < kWorkWorthReleasing) {
      network_->run(sequence, workspace_);
    } else {
      const GilRelease release;
      network_->run(sequence, workspace_);
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
    assign(h, now.h);
    if (spec().description().has_c) assign(c, now.c);
  }

  void reset(py::handle rows) override {
    const std::vector<Index> chosen = rows_argument(rows, batch_);
    const Use in_use(*this);
    State& now = states_[current_];
    for (Index layer = 0; layer < spec().num_layers; ++layer)
      for (const Index row : chosen) {
        std::fill_n(now.h.data() + (layer * batch_ + row) * spec().state_size(), spec().state_size(), T(0));
        if (spec().description().has_c)
          std::fill_n(now.c.data() + (layer * batch_ + row) * spec().hidden_size, spec().hidden_size, T(0));
      }
  }

  Index batch_size() const override { return batch_; }

  std::unique_ptr<BoundStream> copy() const override {
    auto other = std::make_unique<TypedStream>(network_, batch_);
    other->network = network;
    const Use in_use(*this);
    const State& now = states_[current_];
    State& to = other->states_[other->current_];
    std::copy_n(now.h.data(), now.h.size(), to.h.data());
    std::copy_n(now.c.data(), now.c.size(), to.c.data());
    return other;
  }

 private:
  struct State {
    State(const Spec& spec, Index batch)
        : h(spec.num_layers * batch * spec.state_size()),
          c(spec.description().has_c ? spec.num_layers * batch * spec.hidden_size : 0) {}
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

  static void assign(const py::object& from, Buffer<T>& to) {
    if (from)
      std::copy_n(values<T>(from), to.size(), to.data());
    else
      std::fill_n(to.data(), to.size(), T(0));
  }

  std::shared_ptr<const Network<T>> network_;
  Index batch_;
  State states_[2];  // a step computes one from the other: there is a whole one whenever the process is forked
  int current_ = 0;
  mutable Workspace workspace_;
  double work_ = static_cast<double>(batch_) * multiply_adds(spec());
  mutable TryLock lock_;
};

template <class T>
class TypedNetwork final : public BoundNetwork {
 public:
  TypedNetwork(const Spec& spec, bool bias, const py::dict& parameters)
      : bias_(bias),
        arrays_(parameters.attr("copy")()),
        parameters_(find_parameters<T>(spec, bias, arrays_)),
        network_(make_network(spec, parameters_)),
        step_work_(multiply_adds(spec)) {}

  std::unique_ptr<BoundNetwork> renewed(const py::dict& parameters) const override {
    apply_thread_limit();
    return std::make_unique<TypedNetwork>(network_->spec(), bias_, parameters);
  }

  py::tuple infer(py::handle x, py::handle state, py::handle lengths, py::handle out, bool batch_first) override {
    apply_thread_limit();
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, out, batch_first);
    const double work =
        step_work_ * static_cast<double>(call.sequence.steps) * static_cast<double>(call.sequence.batch);
    if (work < kWorkWorthReleasing) {
      run(call.sequence);
    } else {
      without_gil([&](const Poll& poll) {
        call.sequence.poll = poll;
        run(call.sequence);
      });
    }
    return results(call);
  }

  void pack_for_backward() override {
    apply_thread_limit();
    const GilReleaseForBytes release(parameter_bytes<T>(network_->spec()));
    network_->pack_for_backward(parameters_);
  }
  bool packed_for_backward() const override { return network_->packed_for_backward(); }

  py::tuple record(py::handle x, py::handle state, py::handle lengths, bool batch_first, const TapeOptions& options,
                   bool x_stays) override {
    apply_thread_limit();
    if (!packed_for_backward()) throw std::logic_error("record: comes after pack_for_backward");
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, py::none(), batch_first);
    auto tape = std::make_unique<TypedTape<T>>(network_, call, options, x_stays, bias_);
    without_gil([&](const Poll& poll) {
      tape->copy_x();
      call.sequence.poll = poll;
      network_->forward(call.sequence, *Scratch(), tape->tape);
    });
    const py::tuple pair = results(call);
    return py::make_tuple(pair[0], pair[1], std::unique_ptr<BoundTape>(std::move(tape)));
  }

  py::tuple backward(const BoundTape& any_tape, py::handle d_output, py::handle d_state_n, const py::dict& gradients,
                     bool accumulate, bool input_gradient) override {
    apply_thread_limit();
    const auto* recorded = dynamic_cast<const TypedTape<T>*>(&any_tape);
    if (!recorded || recorded->bias != bias_ || !(recorded->network->spec() == network_->spec()))
      refuse_value("tape", "one that this module's forward returned", "one of another module");
    const Tape<T>& tape = recorded->tape;
    const Layout& layout = recorded->layout;
    const Spec& spec = network_->spec();
    BackwardCall<T> call;
    const py::object d_y = output_gradient(d_output, layout.shape(tape.steps, tape.batch, spec.output_size()));
    call.d_y = values<T>(d_y);
    if (d_y) layout.strides<T>(py::reinterpret_borrow<py::array>(d_y), call.d_y_step, call.d_y_row);
    const auto [d_h_n, d_c_n] =
        state_arguments<T>("d_state_n", spec, d_state_n, tape.batch, layout.unbatched, layout.unbatched);
    call.d_h_n = values<T>(d_h_n);
    call.d_c_n = values<T>(d_c_n);
    std::vector<std::pair<std::string, py::array>> places;
    call.gradients = find_gradients<T>(spec, bias_, gradients, places);
    call.accumulate = accumulate;
    if (accumulate) refuse_overlaps(places, {recorded->kept_x, d_y, d_h_n, d_c_n});
    call.x = recorded->x;
    call.x_step = recorded->x_step;
    call.x_row = recorded->x_row;

    py::object d_x = py::none();
    if (input_gradient) {
      const py::array array = new_array<T>(layout.shape(tape.steps, tape.batch, spec.input_size));
      call.d_x = values<T>(array);
      layout.strides<T>(array, call.d_x_step, call.d_x_row);
      d_x = array;
    }
    const auto [d_h_0, d_c_0] = new_state<T>(spec, tape.batch, layout.unbatched);
    call.d_h_0 = values<T>(d_h_0);
    call.d_c_0 = values<T>(d_c_0);
    without_gil([&](const Poll& poll) {
      call.poll = poll;
      recorded->network->backward(tape, call, *Scratch());
    });
    return py::make_tuple(d_x, state_result(d_h_0, d_c_0));
  }

  py::tuple reference(py::handle x, py::handle state, py::handle lengths, bool batch_first) override {
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, py::none(), batch_first);
    run_reference(network_->spec(), parameters_, call.sequence);
    return results(call);
  }

  Plan plan(Index steps, Index batch, int threads, bool backward) const override {
    return backward ? network_->backward_plan(steps, batch, steps * batch, false, threads)
                    : network_->plan(steps, batch, steps * batch, threads);
  }

  std::unique_ptr<BoundStream> stream(Index batch_size) override {
    return std::make_unique<TypedStream<T>>(network_, batch_size);
  }

 private:
  void run(const Sequence<T>& sequence) { network_->run(sequence, *Scratch()); }

  // The array as the engine can read it, or no object for None.
  static py::object output_gradient(py::handle d_output, const Shape& shape) {
    if (d_output.is_none()) return {};
    const py::array array = float_array("d_output", d_output);
    if (!has_shape(array, shape)) refuse_value("d_output", text(shape), shape_text(array));
    return usable_in_place<T>(array) ? array : contiguous<T>("d_output", array);
  }

  const bool bias_;
  py::dict arrays_;  // keeps the memory of parameters_ alive, for the reference
  Parameters<T> parameters_;
  std::shared_ptr<const Network<T>> network_;
  double step_work_;
};

}  // namespace

std::unique_ptr<BoundNetwork> bind_network(const Spec& spec, bool bias, const py::dict& parameters,
                                           const py::dtype& dtype) {
  if (dtype.num() == py::dtype::num_of<float>()) return std::make_unique<TypedNetwork<float>>(spec, bias, parameters);
  if (dtype.num() == py::dtype::num_of<double>()) return std::make_unique<TypedNetwork<double>>(spec, bias, parameters);
  refuse_type("dtype", "float32 or float64", std::string(py::str(dtype)));
}

}  // namespace gatedrnn::bindings
