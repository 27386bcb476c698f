#include "bound_network.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "bound_tape.h"
#include "call.h"
#include "gatedrnn/reference.h"
#include "gil_release.h"
#include "named_parameters.h"
#include "pools.h"
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

// A tape with what keeps it alive: the network whose weights it was made with, its memory, and the caller's x, of which it
// holds no copy.
template <class T>
class TypedTape final : public BoundTape {
 public:
  TypedTape(std::shared_ptr<const Network<T>> network, const Call<T>& call, const TapeOptions& options,
            std::shared_ptr<Pools<T>> pools, bool bias)
      : network(std::move(network)),
        bias(bias),
        x(call.x),
        sequence(call.sequence),
        layout(call.layout),
        pools_(std::move(pools)),
        memory_(pools_->tapes.borrow()),
        tape(this->network->spec(), call.sequence, options, *memory_) {}

  Index bytes() const override { return tape.bytes(); }

  const std::shared_ptr<const Network<T>> network;
  const bool bias;
  const py::object x;
  const Sequence<T> sequence;  // x and its strides; the results are the caller's
  const Layout layout;

 private:
  std::shared_ptr<Pools<T>> pools_;
  WorkspacePool::Borrowed memory_;

 public:
  Tape<T> tape;
};

// Of one row's step.
double multiply_adds(const Spec& spec) {
  double count = 0;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    count += static_cast<double>(gate_count(spec.cell) * spec.hidden_size) *
             static_cast<double>(spec.layer_input_size(layer) + spec.state_size());
  return count * static_cast<double>(spec.directions);
}

template <class T>
class TypedStream final : public BoundStream {
 public:
  TypedStream(std::shared_ptr<const Network<T>> network, Index batch)
      : network_(std::move(network)),
        batch_(batch),
        h_(cells() * network_->spec().state_size()),
        c_(is_lstm(spec().cell) ? cells() * spec().hidden_size : 0) {
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
    sequence.h_0 = sequence.h_n = h_.data();
    if (is_lstm(spec().cell)) sequence.c_0 = sequence.c_n = c_.data();
    const StreamInUse in_use(busy_);
    if (work_ < kWorkWorthReleasing) {
      network_->run(sequence, workspace_);
    } else {
      const GilRelease release;
      network_->run(sequence, workspace_);
    }
    return deliver(y, given);
  }

  py::object state() const override {
    const StreamInUse in_use(busy_);
    const py::object h = copy_of(h_, spec().state_size());
    if (!is_lstm(spec().cell)) return h;
    return py::make_tuple(h, copy_of(c_, spec().hidden_size));
  }

  void set_state(py::handle state) override {
    if (state.is_none()) return reset(state);
    const auto [h, c] = state_arguments<T>("state", spec(), state, batch_, false);
    const StreamInUse in_use(busy_);
    assign(h, h_);
    if (is_lstm(spec().cell)) assign(c, c_);
  }

  void reset(py::handle rows) override {
    const std::vector<Index> chosen = rows_argument(rows);
    const StreamInUse in_use(busy_);
    for (Index layer = 0; layer < spec().num_layers; ++layer)
      for (const Index row : chosen) {
        std::fill_n(h_.data() + (layer * batch_ + row) * spec().state_size(), spec().state_size(), T(0));
        if (is_lstm(spec().cell))
          std::fill_n(c_.data() + (layer * batch_ + row) * spec().hidden_size, spec().hidden_size, T(0));
      }
  }

  Index batch_size() const override { return batch_; }

 private:
  const Spec& spec() const { return network_->spec(); }
  Index cells() const { return spec().num_layers * batch_; }

  py::array copy_of(const Buffer<T>& from, Index width) const {
    py::array copy = new_array<T>({spec().num_layers, batch_, width});
    std::copy_n(from.data(), from.size(), values<T>(copy));
    return copy;
  }

  static void assign(const py::object& from, Buffer<T>& to) {
    if (from)
      std::copy_n(values<T>(from), to.size(), to.data());
    else
      std::fill_n(to.data(), to.size(), T(0));
  }

  std::vector<Index> rows_argument(py::handle rows) const {
    if (!rows.is_none())
      return integers("rows", "None, or row numbers in 0 .. " + std::to_string(batch_ - 1), rows, 0, batch_ - 1);
    std::vector<Index> all(batch_);
    std::iota(all.begin(), all.end(), Index(0));
    return all;
  }

  std::shared_ptr<const Network<T>> network_;
  Index batch_;
  Buffer<T> h_, c_;
  Workspace workspace_;
  double work_ = static_cast<double>(batch_) * multiply_adds(spec());
  mutable std::atomic<bool> busy_{false};
};

template <class T>
class TypedNetwork final : public BoundNetwork {
 public:
  TypedNetwork(const Spec& spec, bool bias, const py::dict& parameters,
               std::shared_ptr<Pools<T>> pools = std::make_shared<Pools<T>>())
      : bias_(bias),
        arrays_(parameters.attr("copy")()),
        parameters_(find_parameters<T>(spec, bias, arrays_)),
        network_(make_network(spec, parameters_, pools)),
        step_work_(multiply_adds(spec)),
        pools_(std::move(pools)) {}

  std::unique_ptr<BoundNetwork> renewed(const py::dict& parameters) const override {
    apply_thread_limit();
    return std::make_unique<TypedNetwork>(network_->spec(), bias_, parameters, pools_);
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
    network_->pack_for_backward(parameters_);
  }
  bool packed_for_backward() const override { return network_->packed_for_backward(); }

  py::tuple record(py::handle x, py::handle state, py::handle lengths, bool batch_first,
                   const TapeOptions& options) override {
    apply_thread_limit();
    if (!packed_for_backward()) throw std::logic_error("record: comes after pack_for_backward");
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, py::none(), batch_first);
    auto tape = std::make_unique<TypedTape<T>>(network_, call, options, pools_, bias_);
    without_gil([&](const Poll& poll) {
      call.sequence.poll = poll;
      network_->forward(call.sequence, *pools_->scratch.borrow(), tape->tape);
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
    const auto [d_h_n, d_c_n] = state_arguments<T>("d_state_n", spec, d_state_n, tape.batch, layout.unbatched);
    call.d_h_n = values<T>(d_h_n);
    call.d_c_n = values<T>(d_c_n);
    std::vector<std::pair<std::string, py::array>> places;
    call.gradients = find_gradients<T>(spec, bias_, gradients, places);
    call.accumulate = accumulate;
    if (accumulate) refuse_overlaps(places, {recorded->x, d_y, d_h_n, d_c_n});
    call.x = recorded->sequence.x;
    call.x_step = recorded->sequence.x_step;
    call.x_row = recorded->sequence.x_row;

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
      recorded->network->backward(tape, call, *pools_->scratch.borrow());
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
  void run(const Sequence<T>& sequence) { network_->run(sequence, *pools_->scratch.borrow()); }

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
  std::shared_ptr<Pools<T>> pools_;
};

}  // namespace

std::unique_ptr<BoundNetwork> bind_network(const Spec& spec, bool bias, const py::dict& parameters,
                                           const py::dtype& dtype) {
  if (dtype.num() == py::dtype::num_of<float>()) return std::make_unique<TypedNetwork<float>>(spec, bias, parameters);
  if (dtype.num() == py::dtype::num_of<double>()) return std::make_unique<TypedNetwork<double>>(spec, bias, parameters);
  refuse_type("dtype", "float32 or float64", std::string(py::str(dtype)));
}

}  // namespace gatedrnn::bindings
