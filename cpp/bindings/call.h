// One call's arguments: checked once, and turned into the plain views that the engine takes.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "gatedrnn/network.h"
#include "marks.h"
#include "new_arrays.h"

namespace gatedrnn::bindings {

// Below this many multiply-adds, handing the interpreter over costs more than it frees.
constexpr double kWorkWorthReleasing = 2e5;

template <class T>
Index stride_in_values(const py::array& array, int axis) {
  return array.strides(axis) / static_cast<py::ssize_t>(sizeof(T));
}

// Which axes of a call's arrays are what.
struct Layout {
  bool unbatched = false, batch_first = false;

  int step_axis() const { return !unbatched && batch_first ? 1 : 0; }
  int row_axis() const { return batch_first ? 0 : 1; }
  Shape shape(Index steps, Index batch, Index width) const {
    if (unbatched) return {steps, width};
    return batch_first ? Shape{batch, steps, width} : Shape{steps, batch, width};
  }
  // How far steps, and rows, are from one another, in values.
  template <class T>
  void strides(const py::array& array, Index& step, Index& row) const {
    step = stride_in_values<T>(array, step_axis());
    row = unbatched ? 0 : stride_in_values<T>(array, row_axis());
  }
};

// A call's checked arrays, and the views of them that the engine takes. The objects only keep the memory alive (a
// default-constructed py::array would allocate).
template <class T>
struct Call {
  Sequence<T> sequence;
  Layout layout;
  py::object x, h_0, c_0, h_n, c_n;
  bool x_is_ours = false;  // a conversion's result, of which the caller knows nothing
  py::object y;            // what the engine writes
  py::object out;          // the caller's array, if any
  std::optional<std::vector<Index>> lengths;
  std::shared_ptr<const PieceList> pieces;  // that the rows are run in, if any
  bool repeats = false;                     // whether skipped steps have the output of the step before

  Index batch() const { return pieces ? pieces->pieces().batch : sequence.batch; }  // of the caller's rows
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
py::object state_argument(const char* name, py::handle object, const Shape& shape, bool lone) {
  if (object.is_none()) return {};
  const py::array array = float_array(name, object);
  if (!has_state_shape(array, shape, lone)) {
    if (py::isinstance<py::tuple>(object)) refuse_type(name, "an array of shape " + text(shape), "a tuple");
    refuse_value(name, text(shape), shape_text(array));
  }
  return contiguous<T>(name, array);
}

// state is h, or where the cell has c the pair (h, c); each may be None. `lone`: see has_state_shape.
template <class T>
std::pair<py::object, py::object> state_arguments(const char* name, const Spec& spec, py::handle state, Index batch,
                                                  bool unbatched, bool lone) {
  if (state.is_none()) return {};
  const Shape h_shape = state_shape(spec, batch, unbatched, spec.state_size());
  if (!spec.description().has_c) return {state_argument<T>(name, state, h_shape, lone), py::object()};
  const auto [h, c] = state_pair(name, state);
  const Shape c_shape = state_shape(spec, batch, unbatched, spec.hidden_size);
  return {state_argument<T>((std::string(name) + ": h").c_str(), h, h_shape, lone),
          state_argument<T>((std::string(name) + ": c").c_str(), c, c_shape, lone)};
}

// New arrays of a state: h, and c where the cell has it.
template <class T>
std::pair<py::object, py::object> new_state(const Spec& spec, Index batch, bool unbatched) {
  const py::object h = new_array<T>(state_shape(spec, batch, unbatched, spec.state_size()));
  if (!spec.description().has_c) return {h, py::object()};
  return {h, new_array<T>(state_shape(spec, batch, unbatched, spec.hidden_size))};
}

// As Python sees it.
inline py::object state_result(const py::object& h, const py::object& c) {
  if (!c) return h;
  return py::make_tuple(h, c);
}

inline void check_input(const Spec& spec, const py::array& x, const Layout& layout) {
  if ((x.ndim() == 3 || layout.unbatched) && x.shape(x.ndim() - 1) == spec.input_size) return;
  const std::string features = std::to_string(spec.input_size);
  refuse_value("x", (layout.batch_first ? "(B, T, " : "(T, B, ") + features + ") or (T, " + features + ")",
               shape_text(x));
}

// Where the output goes: into the caller's array if there is one, by way of a new one where it cannot be written in place.
template <class T>
void place_output(Call<T>& call, py::handle out, const Shape& shape, const py::array& x) {
  if (out.is_none()) {
    call.y = new_array<T>(shape);
    return;
  }
  std::vector<py::array> inputs = {x};
  for (const py::object& initial : {call.h_0, call.c_0})
    if (initial) inputs.push_back(py::array(initial));
  const py::array checked = out_argument(out, py::dtype::of<T>(), shape, inputs);
  call.out = checked;
  call.y = usable_in_place<T>(checked) ? checked : new_array<T>(shape);
}

// From here on the sequence's rows are pieces, but for the states.
template <class T>
void cut_rows(Call<T>& call, const Marks& marks) {
  Sequence<T>& s = call.sequence;
  const auto [unbatched, batch_first] = call.layout;
  call.pieces =
      std::make_shared<const PieceList>(pieces_of(marks, unbatched, batch_first, s.steps, s.batch, s.lengths));
  call.repeats = marks.repeats;
  s.steps = call.pieces->longest();
  s.batch = call.pieces->count();
  s.lengths = call.pieces->lengths();
  s.pieces = &call.pieces->pieces();
}

template <class T>
Call<T> check_call(const Spec& spec, py::handle x, py::handle state, py::handle lengths, py::handle out,
                   bool batch_first, const Marks& marks) {
  Call<T> call;
  py::array in = float_array("x", x);
  const Layout layout = call.layout = {in.ndim() == 2, batch_first};
  check_input(spec, in, layout);
  Sequence<T>& s = call.sequence;
  s.steps = in.shape(layout.step_axis());
  s.batch = layout.unbatched ? 1 : in.shape(layout.row_axis());
  std::tie(call.h_0, call.c_0) = state_arguments<T>("state", spec, state, s.batch, layout.unbatched, layout.unbatched);
  if (layout.unbatched && !lengths.is_none()) refuse_value("lengths", "None for an unbatched x", type_name(lengths));
  call.lengths = lengths_argument(lengths, s.batch, s.steps);
  place_output(call, out, layout.shape(s.steps, s.batch, spec.output_size()), in);
  if (!usable_in_place<T>(in)) {
    in = contiguous<T>("x", in);
    call.x_is_ours = in.owndata() && !in.is(x);
  }

  layout.strides<T>(in, s.x_step, s.x_row);
  layout.strides<T>(py::reinterpret_borrow<py::array>(call.y), s.y_step, s.y_row);
  s.x = values<T>(in);
  s.y = values<T>(call.y);
  s.h_0 = values<T>(call.h_0);
  s.c_0 = values<T>(call.c_0);
  s.lengths = call.lengths ? call.lengths->data() : nullptr;
  call.x = std::move(in);
  std::tie(call.h_n, call.c_n) = new_state<T>(spec, s.batch, layout.unbatched);
  s.h_n = values<T>(call.h_n);
  s.c_n = values<T>(call.c_n);
  if (marks.any()) cut_rows(call, marks);
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
  return py::make_tuple(deliver(call.y, call.out), state_result(call.h_n, call.c_n));
}

}  // namespace gatedrnn::bindings
