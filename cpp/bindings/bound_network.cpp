#include "bound_network.h"

#include <memory>
#include <utility>
#include <vector>

#include "call.h"
#include "gatedrnn/dispatch.h"
#include "gil_release.h"
#include "gradient_places.h"
#include "initial_state.h"
#include "named_parameters.h"
#include "pieces.h"
#include "scratch.h"
#include "thread_limit.h"
#include "tools.h"
#include "typed_stream.h"
#include "typed_tape.h"

namespace gatedrnn::bindings {
namespace {

template <class T>
std::shared_ptr<const Network<T>> make_network(const Spec& spec, const Parameters<T>& parameters, Format format) {
  const GilReleaseForBytes release(spec.gate_weights() * static_cast<Index>(sizeof(T)));
  return std::make_shared<const Network<T>>(spec, parameters, active_table(), core(), format);
}

// Of all parameters but those of the initial state.
std::uint64_t fingerprint_of_weights(const py::dict& parameters) {
  std::vector<py::array> weights;
  for (const auto& [name, array] : parameters)
    if (const auto key = py::cast<std::string>(name); key != "h_0" && key != "c_0")
      weights.push_back(py::cast<py::array>(array));
  return fingerprint(weights);
}

template <class T>
class TypedNetwork final : public BoundNetwork {
 public:
  TypedNetwork(const Spec& spec, bool bias, const py::dict& parameters, Format format, bool learn_state)
      : bias_(bias),
        format_(format),
        arrays_(parameters.attr("copy")()),
        parameters_(find_parameters<T>(spec, bias, arrays_)),
        weights_(learn_state ? fingerprint_of_weights(parameters) : 0),
        network_(make_network(spec, parameters_, format)),
        initial_(std::make_shared<const InitialState<T>>(spec, learn_state, parameters)),
        step_work_(static_cast<double>(spec.gate_weights())) {}

  // The same weights with another initial state.
  TypedNetwork(const TypedNetwork& other, const py::dict& parameters)
      : bias_(other.bias_),
        format_(other.format_),
        arrays_(parameters.attr("copy")()),
        parameters_(find_parameters<T>(other.network_->spec(), other.bias_, arrays_)),
        weights_(other.weights_),
        network_(other.network_),
        initial_(std::make_shared<const InitialState<T>>(other.network_->spec(), true, parameters)),
        step_work_(other.step_work_) {}

  std::unique_ptr<BoundNetwork> renewed(const py::dict& parameters) const override {
    apply_thread_limit();
    if (initial_->learnt() && weights_ == fingerprint_of_weights(parameters))
      return std::make_unique<TypedNetwork>(*this, parameters);
    return std::make_unique<TypedNetwork>(network_->spec(), bias_, parameters, format_, initial_->learnt());
  }

  py::tuple infer(py::handle x, py::handle state, py::handle lengths, py::handle out, bool batch_first,
                  const Marks& marks) override {
    apply_thread_limit();
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, out, batch_first, marks);
    initial_->complete(call);
    const double work =
        step_work_ * static_cast<double>(call.sequence.steps) * static_cast<double>(call.sequence.batch);
    if (work < kWorkWorthReleasing) {
      run(call);
    } else {
      without_gil([&](const Poll& poll) {
        call.sequence.poll = poll;
        run(call);
      });
    }
    return results(call);
  }

  py::object step(py::handle x, py::handle state) override {
    apply_thread_limit();
    const Spec& spec = network_->spec();
    py::array in = float_array("x", x);
    const bool single = in.ndim() == 1;
    if ((!single && in.ndim() != 2) || in.shape(in.ndim() - 1) != spec.input_size) {
      const std::string features = std::to_string(spec.input_size);
      refuse_value("x", "(B, " + features + ") or (" + features + ",)", shape_text(in));
    }
    Sequence<T> sequence;
    sequence.steps = 1;
    sequence.batch = single ? 1 : in.shape(0);
    const Shape shape = single ? Shape{spec.hidden_size} : Shape{sequence.batch, spec.hidden_size};
    const auto part = [&](const char* name, py::handle given) -> py::object {
      if (given.is_none()) return {};
      const py::array array = float_array(name, given);
      if (!has_shape(array, shape)) refuse_value(name, text(shape), shape_text(array));
      return contiguous<T>(name, array);
    };
    const bool has_c = spec.description().has_c;
    py::object h, c;
    if (!has_c) {
      h = part("state", state);
    } else if (!state.is_none()) {
      const auto [given_h, given_c] = state_pair("state", state);
      h = part("state: h", given_h);
      c = part("state: c", given_c);
    }
    if (!usable_in_place<T>(in)) in = contiguous<T>("x", in);
    sequence.x = values<T>(in);
    sequence.x_row = single ? 0 : stride_in_values<T>(in, 0);
    sequence.h_0 = values<T>(h);
    sequence.c_0 = values<T>(c);
    const py::object h_n = new_array<T>(shape), c_n = has_c ? py::object(new_array<T>(shape)) : py::object();
    sequence.h_n = values<T>(h_n);
    sequence.c_n = values<T>(c_n);
    if (step_work_ * static_cast<double>(sequence.batch) < kWorkWorthReleasing)
      network_->forward(sequence, *Scratch());
    else
      without_gil([&](const Poll&) { network_->forward(sequence, *Scratch()); });
    return state_result(h_n, c_n);
  }

  void pack_for_backward() override {
    if (format_ == Format::int8)
      refuse_value("precision", "None, 'bfloat16' or 'bfloat16x3' for training", "'int8', which is for inference");
    apply_thread_limit();
    const GilReleaseForBytes release(network_->spec().gate_weights() * static_cast<Index>(sizeof(T)));
    network_->pack_for_backward(parameters_);
  }
  bool packed_for_backward() const override { return network_->packed_for_backward(); }
  Index bytes() const override { return network_->bytes(); }

  py::tuple forward(py::handle x, py::handle state, py::handle lengths, bool batch_first, const TapeOptions& options,
                    bool x_stays, const Marks& marks) override {
    apply_thread_limit();
    if (!packed_for_backward()) throw std::logic_error("forward: comes after pack_for_backward");
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, py::none(), batch_first, marks);
    const LearntParts learnt = initial_->complete(call);
    auto tape = std::make_unique<TypedTape<T>>(network_, call, options, x_stays, bias_);
    tape->learnt = learnt;
    without_gil([&](const Poll& poll) {
      tape->copy_x();
      call.sequence.poll = poll;
      run(call, tape.get());
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
    const Layout& layout = recorded->layout;
    const Spec& spec = network_->spec();
    BackwardCall<T> call;
    const Index steps = recorded->steps, batch = recorded->batch;
    const bool repeats = recorded->repeats;
    const py::object d_y = output_gradient(d_output, layout.shape(steps, batch, spec.output_size()), repeats);
    call.d_y = values<T>(d_y);
    if (d_y) layout.strides<T>(py::reinterpret_borrow<py::array>(d_y), call.d_y_step, call.d_y_row);
    const auto [d_h_n, d_c_n] =
        state_arguments<T>("d_state_n", spec, d_state_n, batch, layout.unbatched, layout.unbatched);
    call.d_h_n = values<T>(d_h_n);
    call.d_c_n = values<T>(d_c_n);
    std::vector<std::pair<std::string, py::array>> places;
    call.gradients = find_gradients<T>(spec, bias_, gradients, places);
    const auto initial_places = find_initial_gradients(gradients, places);
    call.accumulate = accumulate;
    if (accumulate) refuse_overlaps(places, {recorded->kept_x, d_y, d_h_n, d_c_n});
    call.x = recorded->x;
    call.x_step = recorded->x_step;
    call.x_row = recorded->x_row;

    py::object d_x = py::none();
    if (input_gradient) {
      const py::array array = new_array<T>(layout.shape(steps, batch, spec.input_size));
      call.d_x = values<T>(array);
      layout.strides<T>(array, call.d_x_step, call.d_x_row);
      d_x = array;
    }
    const auto [d_h_0, d_c_0] = new_state<T>(spec, batch, layout.unbatched);
    call.d_h_0 = values<T>(d_h_0);
    call.d_c_0 = values<T>(d_c_0);
    without_gil([&](const Poll& poll) {
      call.poll = poll;
      if (repeats && d_y)
        add_repeated(spec, *recorded->pieces, CallersRows<T>{values<T>(d_y), call.d_y_step, call.d_y_row});
      InitialGradients<T> anew(*initial_);
      run_backward(spec, recorded->pieces.get(), call, anew, [&](const BackwardCall<T>& part, std::size_t i) {
        recorded->network->backward(recorded->part(i), part, *Scratch());
      });
      for (const InitialGradient& to : initial_places)
        add_up_rows(to.of_h ? call.d_h_0 : call.d_c_0, to.of_h ? recorded->learnt.h : recorded->learnt.c, batch,
                    to.shape, to.of_h ? anew.h : anew.c, accumulate, to.place);
    });
    return py::make_tuple(d_x, state_result(d_h_0, d_c_0));
  }

  Plan plan(Index steps, Index batch, int threads, bool backward) const override {
    return backward ? network_->backward_plan(steps, batch, steps * batch, false, threads)
                    : network_->plan(steps, batch, steps * batch, threads);
  }

  std::unique_ptr<BoundStream> stream(Index batch_size) override {
    return std::make_unique<TypedStream<T>>(network_, initial_, batch_size);
  }

 private:
  void run(const Call<T>& call, TypedTape<T>* tape = nullptr) {
    run_call(network_->spec(), *initial_, call, [&](const Sequence<T>& sequence, std::size_t i) {
      network_->forward(sequence, *Scratch(), tape ? &tape->part(i) : nullptr);
    });
  }

  // The array as the engine can read it, or no object for None.
  static py::object output_gradient(py::handle d_output, const Shape& shape, bool to_be_changed) {
    if (d_output.is_none()) return {};
    const py::array array = float_array("d_output", d_output);
    if (!has_shape(array, shape)) refuse_value("d_output", text(shape), shape_text(array));
    const py::array usable = usable_in_place<T>(array) ? array : contiguous<T>("d_output", array);
    return to_be_changed ? py::array(usable.attr("copy")()) : usable;
  }

  // Where the gradients of a learnt initial state go.
  struct InitialGradient {
    bool of_h;
    Shape shape;
    T* place;
  };
  std::vector<InitialGradient> find_initial_gradients(const py::dict& given,
                                                      std::vector<std::pair<std::string, py::array>>& found) const {
    std::vector<InitialGradient> places;
    if (!initial_->learnt()) return places;
    visit_initial_state(network_->spec(), [&](const char* name, const Shape& shape) {
      places.push_back({places.empty(), shape, gradient_place<T>(name, shape, given, found)});
    });
    return places;
  }

  const bool bias_;
  const Format format_;  // that was asked for
  py::dict arrays_;      // keeps the memory of parameters_ alive, for pack_for_backward
  Parameters<T> parameters_;
  std::uint64_t weights_;  // their fingerprint, where the initial state may change without them
  std::shared_ptr<const Network<T>> network_;
  std::shared_ptr<const InitialState<T>> initial_;
  double step_work_;
};

}  // namespace

std::unique_ptr<BoundNetwork> bind_network(const Spec& spec, bool bias, const py::dict& parameters,
                                           const py::dtype& dtype, const std::optional<std::string>& precision,
                                           bool learn_state) {
  if (dtype.num() == py::dtype::num_of<float>()) {
    const Format format = precision ? low_format_named(*precision) : Format::float32;
    return std::make_unique<TypedNetwork<float>>(spec, bias, parameters, format, learn_state);
  }
  if (dtype.num() != py::dtype::num_of<double>())
    refuse_type("dtype", "float32 or float64", std::string(py::str(dtype)));
  if (precision) refuse_value("precision", "None for float64", "'" + *precision + "'");
  return std::make_unique<TypedNetwork<double>>(spec, bias, parameters, Format::float64, learn_state);
}

}  // namespace gatedrnn::bindings
