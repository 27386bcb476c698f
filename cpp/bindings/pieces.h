// Calls whose rows are run in pieces: states and gradients of states for each piece, and the steps that no piece has.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "call.h"
#include "gatedrnn/tape.h"
#include "gatedrnn/threads.h"
#include "initial_state.h"

namespace gatedrnn::bindings {

// A caller's array, by (step, row).
template <class T>
struct CallersRows {
  T* data = nullptr;
  Index step_stride = 0, row_stride = 0;

  T* at(Index step, Index row) const { return data + step * step_stride + row * row_stride; }
};

// Some pieces of a list, which are run together.
struct PieceRange {
  const PieceList& list;
  Index first, count;

  // The how manieth a piece is, or kNone.
  Index place(Index piece) const { return piece >= first && piece < first + count ? piece - first : PieceList::kNone; }
};

// All pieces of a list, the longest first, in ranges that are run one after the other: of no more rows than the call has without
// pieces, or of so few that what they need at a time stays near, though not of too few for products. Gradients of weights are
// added range by range, so this decides their bits. There is at least one range, so that a call without rows is one too.
inline std::vector<PieceRange> ranges_of(const PieceList& list, Index hidden_size) {
  constexpr Index fewest = 32, most_units = 4096;
  const Index most = std::max({fewest, most_units / hidden_size, list.pieces().batch});
  std::vector<PieceRange> ranges;
  for (Index first = 0; first == 0 || first < list.count(); first += most)
    ranges.push_back({list, first, std::min(most, list.count() - first)});
  return ranges;
}

// Which of a row's pieces has its state.
enum class At { beginning, ending };

// States of pieces, [track][piece][width], for an array of the caller's, [track][row][width].
template <class T>
class PieceStates {
 public:
  PieceStates(const Spec& spec, const PieceRange& range, Index width)
      : spec_(spec), range_(range), width_(width), states_(spec.num_layers * spec.directions * range.count * width) {}

  T* data() { return states_.data(); }

  // With the rows' states where those are, and others as `anew` has them, [track][width], or zeros. Null for zeros throughout.
  const T* filled(const T* rows, At at, const T* anew = nullptr) {
    if (!rows && !anew) return nullptr;
    for (Index track = 0; track < tracks(); ++track)
      for (Index piece = 0; piece < range_.count; ++piece) {
        T* const to = data() + (track * range_.count + piece) * width_;
        anew ? std::copy_n(anew + track * width_, width_, to) : std::fill_n(to, width_, T(0));
      }
    if (rows) for_each_row(at, [&](Index row, Index piece) { std::copy_n(rows + row, width_, data() + piece); });
    return data();
  }
  // To the rows that have theirs here.
  void deliver(T* rows, At at) {
    if (rows) for_each_row(at, [&](Index row, Index piece) { std::copy_n(data() + piece, width_, rows + row); });
  }
  // The sums over the other pieces, which began anew: [track][width].
  void add_up_others(At at, T* sums) {
    std::vector<bool> is_rows(tracks() * range_.count);
    for_each_row(at, [&](Index, Index piece) { is_rows[piece / width_] = true; });
    for (Index place = 0; place < tracks() * range_.count; ++place)
      for (Index k = 0; !is_rows[place] && k < width_; ++k)
        sums[place / range_.count * width_ + k] += data()[place * width_ + k];
  }

 private:
  Index tracks() const { return spec_.num_layers * spec_.directions; }

  // `visit(where a row's state begins, where its piece's does)`
  template <class Visit>
  void for_each_row(At at, Visit&& visit) const {
    const PieceList& list = range_.list;
    const Index rows = list.pieces().batch;
    for (Index track = 0; track < tracks(); ++track) {
      const bool reverse = spec_.backwards(track % spec_.directions);
      for (Index row = 0; row < rows; ++row) {
        const Index piece = at == At::beginning ? list.beginning(row, reverse) : list.ending(row, reverse);
        if (const Index place = range_.place(piece); place != PieceList::kNone)
          visit((track * rows + row) * width_, (track * range_.count + place) * width_);
      }
    }
  }

  const Spec& spec_;
  const PieceRange range_;
  const Index width_;
  Buffer<T> states_;
};

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
    for (Index d = 0; d < spec.directions; ++d)
      visit(row, gap, spec.backwards(d) ? gap.after : gap.before, d * spec.state_size());
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

// A call's sequence, of some of its pieces, without states. `view` is of all of them, and becomes that of these.
template <class T>
Sequence<T> sequence_of(const PieceRange& range, const Sequence<T>& call, Pieces& view) {
  view = range.list.pieces();
  view.pieces += range.first;
  Sequence<T> sequence = call;
  sequence.batch = range.count;
  sequence.lengths = range.list.lengths() + range.first;
  sequence.steps = range.count > 0 ? *sequence.lengths : 0;  // the longest comes first
  sequence.pieces = &view;
  return sequence;
}

template <class T, class Run>
void run_pieces(const Spec& spec, const PieceRange& range, const InitialState<T>& initial, const Sequence<T>& call,
                Run&& run) {
  Pieces view;
  Sequence<T> sequence = sequence_of(range, call, view);
  PieceStates<T> h(spec, range, spec.state_size()), c(spec, range, call.c_n ? spec.hidden_size : 0);
  sequence.h_0 = h.filled(call.h_0, At::beginning, initial.h());
  sequence.c_0 = c.filled(call.c_0, At::beginning, initial.c());
  sequence.h_n = h.data();
  sequence.c_n = c.data();
  run(sequence);
  h.deliver(call.h_n, At::ending);
  c.deliver(call.c_n, At::ending);
}

// Calls run(sequence, 0) for a call, or where it has pieces, run(sequence, i) for each range of them.
template <class T, class Run>
void run_call(const Spec& spec, const InitialState<T>& initial, const Call<T>& call, Run&& run) {
  if (!call.pieces) return run(call.sequence, 0);
  std::size_t i = 0;
  for (const PieceRange& range : ranges_of(*call.pieces, spec.hidden_size)) {
    run_pieces(spec, range, initial, call.sequence, [&](const Sequence<T>& sequence) { run(sequence, i); });
    ++i;
  }
  const CallersRows<T> y{call.sequence.y, call.sequence.y_step, call.sequence.y_row};
  call.repeats ? repeat_outputs(spec, *call.pieces, y) : clear_gaps(*call.pieces, y, spec.output_size());
}

template <class T, class Run>
void run_pieces_backward(const Spec& spec, const PieceRange& range, const BackwardCall<T>& given,
                         InitialGradients<T>& anew, Run&& run) {
  const Index P = spec.state_size(), H = spec.description().has_c ? spec.hidden_size : 0;
  PieceStates<T> d_h_n(spec, range, P), d_c_n(spec, range, H), d_h_0(spec, range, P), d_c_0(spec, range, H);
  BackwardCall<T> call = given;
  call.d_h_n = d_h_n.filled(given.d_h_n, At::ending);
  call.d_c_n = d_c_n.filled(given.d_c_n, At::ending);
  call.d_h_0 = d_h_0.data();
  call.d_c_0 = d_c_0.data();
  run(call);
  d_h_0.deliver(given.d_h_0, At::beginning);
  d_c_0.deliver(given.d_c_0, At::beginning);
  if (!anew.h.empty()) d_h_0.add_up_others(At::beginning, anew.h.data());
  if (!anew.c.empty()) d_c_0.add_up_others(At::beginning, anew.c.data());
}

// Calls run(call, i) backward for what run_call has run, if in pieces, of `pieces`. What reaches a learnt initial state where pieces
// began anew is added to `anew`.
template <class T, class Run>
void run_backward(const Spec& spec, const PieceList* pieces, const BackwardCall<T>& given, InitialGradients<T>& anew,
                  Run&& run) {
  if (!pieces) return run(given, 0);
  const Index states = spec.num_layers * spec.directions * pieces->pieces().batch;
  std::fill_n(given.d_h_0, states * spec.state_size(), T(0));  // of rows whose state began anew
  if (given.d_c_0) std::fill_n(given.d_c_0, states * spec.hidden_size, T(0));
  BackwardCall<T> call = given;
  std::size_t i = 0;
  for (const PieceRange& range : ranges_of(*pieces, spec.hidden_size)) {
    run_pieces_backward(spec, range, call, anew, [&](const BackwardCall<T>& of_range) { run(of_range, i); });
    call.accumulate = true;  // to what the ranges before have brought
    ++i;
  }
  if (given.d_x) clear_gaps(*pieces, CallersRows<T>{given.d_x, given.d_x_step, given.d_x_row}, spec.input_size);
}

}  // namespace gatedrnn::bindings
