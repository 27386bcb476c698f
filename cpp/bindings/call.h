// One call's arguments: checked once, and turned into the plain views that the engine takes.
#pragma once

#include <mutex>
#include <optional>
#include <vector>

#include "arrays.h"
#include "gatedrnn/network.h"

namespace gatedrnn::bindings {

// Below this many multiply-adds, handing the interpreter over costs more than it frees.
constexpr double kWorkWorthReleasing = 2e5;

// A workspace per concurrent call, kept for the next one unless a single huge call needed it. Nobody waits: whoever does not
// get the lock at once does without the pool. So a process forked while another thread held it cannot hang.
class WorkspacePool {
 public:
  explicit WorkspacePool(Index most_bytes) : most_bytes_(most_bytes) {}

  std::unique_ptr<Workspace> borrow() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) {
    if (workspace->size() > most_bytes_) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) free_.push_back(std::move(workspace));
  }

 private:
  const Index most_bytes_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
};

// Passed on from network to network as a module's parameters change, so that training too settles without allocations.
struct Pools {
  WorkspacePool scratch{64 << 20};
  WorkspacePool tapes{Index(1) << 30};
};

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
inline Shape state_shape(const Spec& spec, Index batch, bool unbatched, Index width) {
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
std::pair<py::object, py::object> state_arguments(const char* name, const Spec& spec, py::handle state, Index batch,
                                                  bool unbatched) {
  if (state.is_none()) return {};
  const Shape h_shape = state_shape(spec, batch, unbatched, spec.state_size());
  if (!is_lstm(spec.cell)) return {state_argument<T>(name, state, h_shape), py::object()};
  const auto [h, c] = state_pair(name, state);
  const Shape c_shape = state_shape(spec, batch, unbatched, spec.hidden_size);
  return {state_argument<T>((std::string(name) + ": h").c_str(), h, h_shape),
          state_argument<T>((std::string(name) + ": c").c_str(), c, c_shape)};
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
  std::tie(call.h_0, call.c_0) = state_arguments<T>("state", spec, state, s.batch, call.unbatched);
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
inline py::object deliver(const py::object& y, const py::object& out) {
  if (!out) return y;
  if (!out.is(y)) out[py::ellipsis()] = y;
  return out;
}

template <class T>
py::tuple results(const Call<T>& call) {
  return py::make_tuple(deliver(call.y, call.out), call.c_n ? py::make_tuple(call.h_n, call.c_n) : call.h_n);
}

}  // namespace gatedrnn::bindings
