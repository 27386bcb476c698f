#include "bound_network.h"

#include <atomic>
#include <mutex>
#include <numeric>
#include <optional>
#include <vector>

#include "arrays.h"
#include "gatedrnn/reference.h"

namespace gatedrnn::bindings {
namespace {

// Below this many multiply-adds, handing the interpreter over costs more than it frees.
constexpr double kWorkWorthReleasing = 2e5;

// A workspace per concurrent call, kept for the next one unless a single huge call needed it. Nobody waits: whoever does not
// get the lock at once does without the pool. So a process forked while another thread held it cannot hang.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> borrow() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    constexpr Index most = 64 << 20;
    if (workspace->size() > most) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// A call's checked arrays, and the views of them that the engine takes. The objects only keep the memory alive (a
// default-constructed py::array would allocate).
template <class T>
struct Call {
  Sequence<T> sequence;
  bool unbatched = false;
  py::object x, h_0, c_0, h_n, c_n;
  py::object y;    // what the engine writes
  py::object out;  // the caller's array, if any
  std::optional<std::vector<Index>> lengths;
};

template <class T>
T* values(const py::object& array) {
  return array ? reinterpret_cast<T*>(py::detail::array_proxy(array.ptr())->data) : nullptr;
}

// The initial state's shape: without the batch axis where x has none.
Shape state_shape(const Spec& spec, Index batch, bool unbatched, Index width) {
  const Index layers = spec.num_layers * spec.directions;
  return unbatched ? Shape{layers, width} : Shape{layers, batch, width};
}

// The array as contiguous T, or no object for None.
template <class T>
py::object state_argument(const char* name, py::handle object, const Shape& shape) {
  if (object.is_none()) return {};
  const py::array array = float_array(name, object);
  if (!has_shape(array, shape)) refuse_value(name, text(shape), shape_text(array));
  return contiguous<T>(array);
}

// state is h, or for the LSTM the pair (h, c); each may be None.
template <class T>
std::pair<py::object, py::object> state_arguments(const Spec& spec, py::handle state, Index batch, bool unbatched) {
  if (state.is_none()) return {};
  const Shape h_shape = state_shape(spec, batch, unbatched, spec.state_size());
  if (!is_lstm(spec.cell)) return {state_argument<T>("state", state, h_shape), py::object()};
  constexpr const char* expected = "a pair (h, c)";
  if (!py::isinstance<py::tuple>(state) && !py::isinstance<py::list>(state))
    refuse_type("state", expected, type_name(state));
  const auto pair = py::reinterpret_borrow<py::sequence>(state);
  if (pair.size() != 2) refuse_value("state", expected, std::to_string(pair.size()) + " items");
  const Shape c_shape = state_shape(spec, batch, unbatched, spec.hidden_size);
  return {state_argument<T>("state: h", py::object(pair[0]), h_shape),
          state_argument<T>("state: c", py::object(pair[1]), c_shape)};
}

template <class T>
constexpr Index in_values(py::ssize_t bytes) {
  return bytes / static_cast<py::ssize_t>(sizeof(T));
}

template <class T>
Call<T> check_call(const Spec& spec, py::handle x, py::handle state, py::handle lengths, py::handle out,
                   bool batch_first) {
  Call<T> call;
  py::array in = float_array("x", x);
  call.unbatched = in.ndim() == 2;
  if ((in.ndim() != 3 && !call.unbatched) || in.shape(in.ndim() - 1) != spec.input_size) {
    const std::string features = std::to_string(spec.input_size);
    refuse_value("x", (batch_first ? "(B, T, " : "(T, B, ") + features + ") or (T, " + features + ")", shape_text(in));
  }
  const int step_axis = !call.unbatched && batch_first ? 1 : 0, row_axis = batch_first ? 0 : 1;
  Sequence<T>& s = call.sequence;
  s.steps = in.shape(step_axis);
  s.batch = call.unbatched ? 1 : in.shape(row_axis);
  std::tie(call.h_0, call.c_0) = state_arguments<T>(spec, state, s.batch, call.unbatched);
  if (call.unbatched && !lengths.is_none()) refuse_value("lengths", "None for an unbatched x", type_name(lengths));
  call.lengths = lengths_argument(lengths, s.batch, s.steps);

  const Index width = spec.output_size();
  const Shape y_shape = call.unbatched ? Shape{s.steps, width} : Shape{in.shape(0), in.shape(1), width};
  if (out.is_none()) {
    call.y = new_array<T>(y_shape);
  } else {
    std::vector<py::array> inputs = {in};
    for (const py::object& initial : {call.h_0, call.c_0})
      if (initial) inputs.push_back(py::array(initial));
    const py::array checked = out_argument(out, py::dtype::of<T>(), y_shape, inputs);
    call.out = checked;
    call.y = usable_in_place<T>(checked) ? checked : new_array<T>(y_shape);
  }
  if (!usable_in_place<T>(in)) in = contiguous<T>(in);

  const auto view = [&](const py::array& array, Index& step, Index& row) {
    step = in_values<T>(array.strides(step_axis));
    row = call.unbatched ? 0 : in_values<T>(array.strides(row_axis));
  };
  view(in, s.x_step, s.x_row);
  view(py::reinterpret_borrow<py::array>(call.y), s.y_step, s.y_row);
  s.x = values<T>(in);
  s.y = values<T>(call.y);
  s.h_0 = values<T>(call.h_0);
  s.c_0 = values<T>(call.c_0);
  s.lengths = call.lengths ? call.lengths->data() : nullptr;
  call.x = std::move(in);
  call.h_n = new_array<T>(state_shape(spec, s.batch, call.unbatched, spec.state_size()));
  s.h_n = values<T>(call.h_n);
  if (is_lstm(spec.cell)) {
    call.c_n = new_array<T>(state_shape(spec, s.batch, call.unbatched, spec.hidden_size));
    s.c_n = values<T>(call.c_n);
  }
  return call;
}

// The caller's own array if one was given, filled from y where the engine could not write it in place.
py::object deliver(const py::object& y, const py::object& out) {
  if (!out) return y;
  if (!out.is(y)) out[py::ellipsis()] = y;
  return out;
}

template <class T>
py::tuple results(const Call<T>& call) {
  return py::make_tuple(deliver(call.y, call.out), call.c_n ? py::make_tuple(call.h_n, call.c_n) : call.h_n);
}

template <class T>
Parameters<T> find_parameters(const Spec& spec, bool bias, const py::dict& given) {
  Parameters<T> found;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    for (Index direction = 0; direction < spec.directions; ++direction) {
      const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
      const auto find = [&](const std::string& name, Index size) {
        const py::object value = given[(name + suffix).c_str()];
        const auto array = py::cast<Array<T>>(value);
        if (array.size() != size)
          refuse_value((name + suffix).c_str(), std::to_string(size) + " values", std::to_string(array.size()));
        return array.data();
      };
      const Index rows = gate_count(spec.cell) * spec.hidden_size;
      LayerParameters<T> parameters;
      parameters.weight_ih = find("weight_ih", rows * spec.layer_input_size(layer));
      parameters.weight_hh = find("weight_hh", rows * spec.state_size());
      if (bias) {
        parameters.bias_ih = find("bias_ih", rows);
        parameters.bias_hh = find("bias_hh", rows);
      }
      if (spec.proj_size > 0) parameters.weight_hr = find("weight_hr", spec.proj_size * spec.hidden_size);
      if (spec.cell == Cell::lstm_peephole) {
        const char* names[] = {"weight_ci", "weight_cf", "weight_co"};
        for (int gate = 0; gate < 3; ++gate) parameters.peephole[gate] = find(names[gate], spec.hidden_size);
      }
      found.push_back(parameters);
    }
  return found;
}

template <class T>
class TypedNetwork;

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
    if (!usable_in_place<T>(in)) in = contiguous<T>(in);

    Sequence<T> sequence;
    sequence.steps = 1;
    sequence.batch = batch_;
    sequence.x = values<T>(in);
    sequence.x_row = single ? 0 : in_values<T>(in.strides(0));
    sequence.y = values<T>(y);
    sequence.y_row = single ? 0 : in_values<T>(py::reinterpret_borrow<py::array>(y).strides(0));
    sequence.h_0 = sequence.h_n = h_.data();
    if (is_lstm(spec().cell)) sequence.c_0 = sequence.c_n = c_.data();
    const Turn turn(*this);
    if (work_ < kWorkWorthReleasing) {
      network_->run(sequence, workspace_);
    } else {
      const py::gil_scoped_release release;
      network_->run(sequence, workspace_);
    }
    return deliver(y, given);
  }

  py::object state() const override {
    const Turn turn(*this);
    const py::object h = copy_of(h_, spec().state_size());
    if (!is_lstm(spec().cell)) return h;
    return py::make_tuple(h, copy_of(c_, spec().hidden_size));
  }

  void set_state(py::handle state) override {
    if (state.is_none()) return reset(state);
    const auto [h, c] = state_arguments<T>(spec(), state, batch_, false);
    const Turn turn(*this);
    assign(h, h_);
    if (is_lstm(spec().cell)) assign(c, c_);
  }

  void reset(py::handle rows) override {
    const std::vector<Index> chosen = rows_argument(rows);
    const Turn turn(*this);
    for (Index layer = 0; layer < spec().num_layers; ++layer)
      for (const Index row : chosen) {
        std::fill_n(h_.data() + (layer * batch_ + row) * spec().state_size(), spec().state_size(), T(0));
        if (is_lstm(spec().cell))
          std::fill_n(c_.data() + (layer * batch_ + row) * spec().hidden_size, spec().hidden_size, T(0));
      }
  }

  Index batch_size() const override { return batch_; }

 private:
  // One thread at a time: a second one is told, not made to wait.
  class Turn {
   public:
    explicit Turn(const TypedStream& stream) : busy_(stream.busy_) {
      if (busy_.exchange(true, std::memory_order_acquire))
        throw std::runtime_error("stream: in use by another thread; give each thread a stream of its own");
    }
    ~Turn() { busy_.store(false, std::memory_order_release); }

   private:
    std::atomic<bool>& busy_;
  };

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

  friend class TypedNetwork<T>;
  // Multiply-adds of one row's step.
  static double multiply_adds(const Spec& spec) {
    double count = 0;
    for (Index layer = 0; layer < spec.num_layers; ++layer)
      count += static_cast<double>(gate_count(spec.cell) * spec.hidden_size) *
               static_cast<double>(spec.layer_input_size(layer) + spec.state_size());
    return count * static_cast<double>(spec.directions);
  }
};

template <class T>
class TypedNetwork final : public BoundNetwork {
 public:
  TypedNetwork(const Spec& spec, bool bias, const py::dict& parameters)
      : arrays_(parameters.attr("copy")()),
        parameters_(find_parameters<T>(spec, bias, arrays_)),
        network_(std::make_shared<const Network<T>>(spec, parameters_, active_table())),
        step_work_(TypedStream<T>::multiply_adds(spec)) {}

  py::tuple forward(py::handle x, py::handle state, py::handle lengths, py::handle out, bool batch_first) override {
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, out, batch_first);
    const double work =
        step_work_ * static_cast<double>(call.sequence.steps) * static_cast<double>(call.sequence.batch);
    if (work < kWorkWorthReleasing) {
      run(call.sequence);
    } else {
      const py::gil_scoped_release release;
      run(call.sequence);
    }
    return results(call);
  }

  py::tuple reference(py::handle x, py::handle state, py::handle lengths, bool batch_first) override {
    Call<T> call = check_call<T>(network_->spec(), x, state, lengths, py::none(), batch_first);
    run_reference(network_->spec(), parameters_, call.sequence);
    return results(call);
  }

  Plan plan(Index steps, Index batch, int threads) const override {
    return network_->plan(steps, batch, steps * batch, threads);
  }

  std::unique_ptr<BoundStream> stream(Index batch_size) override {
    return std::make_unique<TypedStream<T>>(network_, batch_size);
  }

 private:
  void run(const Sequence<T>& sequence) {
    std::unique_ptr<Workspace> workspace = pool_.borrow();
    network_->run(sequence, *workspace);
    pool_.give_back(std::move(workspace));
  }

  py::dict arrays_;  // keeps the memory of parameters_ alive, for the reference
  Parameters<T> parameters_;
  std::shared_ptr<const Network<T>> network_;
  double step_work_;
  WorkspacePool pool_;
};

}  // namespace

std::unique_ptr<BoundNetwork> bind_network(const Spec& spec, bool bias, const py::dict& parameters,
                                           const py::dtype& dtype) {
  if (dtype.num() == py::dtype::num_of<float>()) return std::make_unique<TypedNetwork<float>>(spec, bias, parameters);
  if (dtype.num() == py::dtype::num_of<double>()) return std::make_unique<TypedNetwork<double>>(spec, bias, parameters);
  refuse_type("dtype", "float32 or float64", std::string(py::str(dtype)));
}

}  // namespace gatedrnn::bindings
