// Calls whose rows are run in pieces: states and gradients of states for each piece, and the steps that no piece has.
#pragma once

#include <algorithm>
#include <utility>

#include "call.h"
#include "gatedrnn/tape.h"
#include "gatedrnn/threads.h"

namespace gatedrnn::bindings {

// A caller's array, by (step, row).
template <class T>
struct CallersRows {
  T* data = nullptr;
  Index step_stride = 0, row_stride = 0;

  T* at(Index step, Index row) const { return data + step * step_stride + row * row_stride; }
};

// `visit(track, direction, row)` for all rows' states.
template <class Visit>
void for_each_state(const Spec& spec, const PieceList& list, Visit&& visit) {
  for (Index track = 0; track < spec.num_layers * spec.directions; ++track)
    for (Index row = 0; row < list.pieces().batch; ++row) visit(track, track % spec.directions, row);
}

// States of pieces [track][piece][width], of which `piece_of(row, direction)` has that of a row [track][row][width].
template <class T, class PieceOf>
void states_to_pieces(const Spec& spec, const PieceList& list, Index width, const T* from, T* to, PieceOf&& piece_of) {
  // Where a state begins anew it begins with zeros.
  std::fill_n(to, spec.num_layers * spec.directions * list.count() * width, T(0));
  for_each_state(spec, list, [&](Index track, Index direction, Index row) {
    const Index piece = piece_of(row, direction);
    if (piece == PieceList::kNone) return;
    std::copy_n(from + (track * list.pieces().batch + row) * width, width, to + (track * list.count() + piece) * width);
  });
}

// And back. What other pieces have reaches nobody.
template <class T, class PieceOf>
void states_of_pieces(const Spec& spec, const PieceList& list, Index width, const T* from, T* to, PieceOf&& piece_of) {
  for_each_state(spec, list, [&](Index track, Index direction, Index row) {
    const Index piece = piece_of(row, direction);
    T* const state = to + (track * list.pieces().batch + row) * width;
    if (piece == PieceList::kNone)
      std::fill_n(state, width, T(0));
    else
      std::copy_n(from + (track * list.count() + piece) * width, width, state);
  });
}

// An array of states of the caller's, which the engine reads or writes by piece.
template <class T>
class PieceStates {
 public:
  PieceStates(const Spec& spec, const PieceList& list, Index width)
      : spec_(spec), list_(list), width_(width), states_(spec.num_layers * spec.directions * list.count() * width) {}

  T* data() { return states_.data(); }
  // With the rows' own; null stays null.
  template <class PieceOf>
  const T* filled(const T* from, PieceOf&& piece_of) {
    if (!from) return nullptr;
    states_to_pieces(spec_, list_, width_, from, states_.data(), piece_of);
    return states_.data();
  }
  template <class PieceOf>
  void deliver(T* to, PieceOf&& piece_of) const {
    if (to) states_of_pieces(spec_, list_, width_, states_.data(), to, piece_of);
  }

 private:
  const Spec& spec_;
  const PieceList& list_;
  const Index width_;
  Buffer<T> states_;
};

inline auto beginnings_of(const PieceList& list) {
  return [&list](Index row, Index direction) { return list.beginning(row, direction); };
}
inline auto endings_of(const PieceList& list) {
  return [&list](Index row, Index direction) { return list.ending(row, direction); };
}

// `visit(row, gap)` for all steps that no piece has, on as many threads as pay for so many bytes.
template <class Visit>
void for_each_gap(const PieceList& list, Index bytes, Visit&& visit) {
  share_out(list.pieces().batch, bytes,
            [&](Index row) { list.for_each_gap(row, [&](const PieceList::Gap& gap) { visit(row, gap); }); });
}

// Zeros where no piece writes.
template <class T>
void clear_gaps(const PieceList& list, const CallersRows<T>& to, Index width) {
  const Index bytes = list.pieces().steps * list.pieces().batch * width * static_cast<Index>(sizeof(T));
  for_each_gap(list, bytes, [&](Index row, const PieceList::Gap& gap) {
    for (Index step = gap.begin; step < gap.end; ++step) std::fill_n(to.at(step, row), width, T(0));
  });
}

// `visit(row, gap, source, column)` for the columns of each direction: it goes on from `source`, the step before the gap in its own
// order, or kNone.
template <class Visit>
void for_each_repeat(const Spec& spec, const PieceList& list, Index bytes, Visit&& visit) {
  for_each_gap(list, bytes, [&](Index row, const PieceList::Gap& gap) {
    for (Index d = 0; d < spec.directions; ++d) visit(row, gap, d > 0 ? gap.after : gap.before, d * spec.state_size());
  });
}

// The output of the step before again, where a step was skipped.
template <class T>
void repeat_outputs(const Spec& spec, const PieceList& list, const CallersRows<T>& to) {
  const Index width = spec.state_size();
  const Index bytes = list.pieces().steps * list.pieces().batch * width * static_cast<Index>(sizeof(T));
  for_each_repeat(spec, list, bytes, [&](Index row, const PieceList::Gap& gap, Index source, Index column) {
    for (Index step = gap.begin; step < gap.end; ++step) {
      T* const y = to.at(step, row) + column;
      if (source == PieceList::kNone)
        std::fill_n(y, width, T(0));
      else
        std::copy_n(to.at(source, row) + column, width, y);
    }
  });
}

// Backward through that: what reached the copies goes to the step that they were made of, in the order of steps.
template <class T>
void add_repeated(const Spec& spec, const PieceList& list, const CallersRows<T>& to) {
  const Index width = spec.state_size();
  const Index bytes = list.pieces().steps * list.pieces().batch * width * static_cast<Index>(sizeof(T));
  for_each_repeat(spec, list, bytes, [&](Index row, const PieceList::Gap& gap, Index source, Index column) {
    if (source == PieceList::kNone) return;
    T* const sum = to.at(source, row) + column;
    for (Index step = gap.begin; step < gap.end; ++step) {
      const T* const d_y = to.at(step, row) + column;
      for (Index k = 0; k < width; ++k) sum[k] += d_y[k];
    }
  });
}

// Calls run(sequence) of a call; in pieces where it has some, with states of theirs.
template <class T, class Run>
void run_call(const Spec& spec, const Call<T>& call, Run&& run) {
  if (!call.pieces) return run(call.sequence);
  const PieceList& list = *call.pieces;
  const Sequence<T>& given = call.sequence;
  Sequence<T> sequence = given;
  PieceStates<T> h(spec, list, spec.state_size()), c(spec, list, given.c_n ? spec.hidden_size : 0);
  sequence.h_0 = h.filled(given.h_0, beginnings_of(list));
  sequence.c_0 = c.filled(given.c_0, beginnings_of(list));
  sequence.h_n = h.data();
  sequence.c_n = c.data();
  run(sequence);
  h.deliver(given.h_n, endings_of(list));
  c.deliver(given.c_n, endings_of(list));
  const CallersRows<T> y{given.y, given.y_step, given.y_row};
  call.repeats ? repeat_outputs(spec, list, y) : clear_gaps(list, y, spec.output_size());
}

// The same backward, of a tape's pieces, if any.
template <class T, class Run>
void run_backward(const Spec& spec, const PieceList* pieces, const BackwardCall<T>& given, Run&& run) {
  if (!pieces) return run(given);
  const PieceList& list = *pieces;
  const Index c_width = spec.description().has_c ? spec.hidden_size : 0;
  PieceStates<T> d_h_n(spec, list, spec.state_size()), d_c_n(spec, list, c_width);
  PieceStates<T> d_h_0(spec, list, spec.state_size()), d_c_0(spec, list, c_width);
  BackwardCall<T> call = given;
  call.d_h_n = d_h_n.filled(given.d_h_n, endings_of(list));
  call.d_c_n = d_c_n.filled(given.d_c_n, endings_of(list));
  call.d_h_0 = d_h_0.data();
  call.d_c_0 = d_c_0.data();
  run(call);
  d_h_0.deliver(given.d_h_0, beginnings_of(list));
  d_c_0.deliver(given.d_c_0, beginnings_of(list));
  if (given.d_x) clear_gaps(list, CallersRows<T>{given.d_x, given.d_x_step, given.d_x_row}, spec.input_size);
}

}  // namespace gatedrnn::bindings
