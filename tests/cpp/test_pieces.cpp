// Rows in pieces: which there are, and that the engine computes with them as with the rows of a ragged batch, with any plan, forward
// and backward.
#include <algorithm>

#include "check.h"
#include "gatedrnn/tape.h"
#include "networks.h"

namespace gatedrnn::test {
namespace {

// ---- Which there are -------------------------------------------------------------------------------------------------------

// Of one row, by a character for each step: '.' one as it comes, 'r' one with a reset; in capitals or as '_' those that are skipped.
PieceList pieces_of(const std::string& row, Index length) {
  std::vector<char> mask, resets;
  for (const char step : row) {
    mask.push_back(step == '.' || step == 'r');
    resets.push_back(step == 'r' || step == 'R');
  }
  const auto flags = [](const std::vector<char>& values) {
    return Flags{reinterpret_cast<const bool*>(values.data()), 1, 1};
  };
  return PieceList(static_cast<Index>(row.size()), 1, flags(mask), flags(resets), &length);
}

std::string text(const PieceList& list) {
  std::ostringstream out;
  for (Index piece = 0; piece < list.count(); ++piece) {
    out << (piece > 0 ? " " : "");
    for (Index step = 0; step < list.lengths()[piece]; ++step) out << list.pieces().time(piece, step);
    if (list.lengths()[piece] == 0) out << "-";
  }
  out << " | " << list.beginning(0, false) << list.ending(0, false) << list.beginning(0, true) << list.ending(0, true)
      << " |";
  list.for_each_gap(0, [&](const PieceList::Gap& gap) {
    out << " " << gap.before << "(" << gap.begin << gap.end << ")" << gap.after;
  });
  return out.str();
}

// Pieces; where the state begins and ends, forward and reverse; gaps.
void check_lists() {
  const auto check = [](const char* expected, const char* row, Index length) {
    CHECK_EQUAL(std::string(expected), text(pieces_of(row, length)));
  };
  check("0123 | 0000 |", "....", 4);
  check("01 | 0000 | -1(24)-1", "....", 2);
  check("12 | 0000 | -1(01)1 2(34)-1", "_.._", 4);
  check("123 0 | 1001 |", ".r..", 4);
  check("0123 | -1000 |", "r...", 4);          // a border at the start is none in reverse
  check("123 - | 1001 | -1(01)1", "_r..", 4);  // the initial state goes nowhere, in reverse the final one is zero
  check("01 - | 0110 | 1(24)-1", "..R_", 4);   // and the other way round
  check("0 3 | 0110 | 0(13)3", ".RRr", 4);     // in the middle no piece is empty
  check("- | 0000 | -1(04)-1", "____", 4);     // what begins is what ends
  check("- | -1000 | -1(04)-1", "R___", 4);
  check("- - | 0110 | -1(04)-1", "_R__", 4);
  check("- | 0000 | -1(04)-1", "rrrr", 0);  // past the length resets are none
  check("0 | 0000 | -1(14)-1", ".rrr", 1);
  CHECK_EQUAL(0, PieceList(3, 0, {}, {}, nullptr).count());
  CHECK_EQUAL(0, PieceList(3, 0, {}, {}, nullptr).longest());
}

// ---- A ragged batch --------------------------------------------------------------------------------------------------------

// The booleans of a caller's batch, so many of a hundred true, and what they make of it.
struct Cut {
  Cut(Index steps, Index batch, std::uint32_t valid, std::uint32_t reset) {
    std::mt19937 random(3);
    const auto draw = [&](std::uint32_t percent) {
      std::vector<char> flags;
      for (Index i = 0; i < steps * batch; ++i) flags.push_back(random() % 100 < percent);
      return flags;
    };
    mask = draw(valid);
    resets = draw(reset);
    const auto flags = [&](const std::vector<char>& values) {
      return Flags{reinterpret_cast<const bool*>(values.data()), batch, 1};
    };
    list.emplace(steps, batch, flags(mask), flags(resets), nullptr);
  }

  std::vector<char> mask, resets;
  std::optional<PieceList> list;
};

// One array of features for the pieces as rows of a batch, and one for the caller's rows that they come from.
template <class T>
struct TwoForms {
  TwoForms(const PieceList& list, Index width) : list(list), width(width) {
    by_piece.assign(list.longest() * list.count() * width + 1, std::numeric_limits<T>::quiet_NaN());
    callers.assign(list.pieces().steps * list.pieces().batch * width + 1, std::numeric_limits<T>::quiet_NaN());
  }

  // `visit(a value by piece, the same of the caller's)`
  template <class Visit>
  void for_each(Visit&& visit) {
    for (Index piece = 0; piece < list.count(); ++piece)
      for (Index step = 0; step < list.lengths()[piece]; ++step) {
        const Index at = list.pieces().time(piece, step) * list.pieces().batch + list.pieces().row(piece);
        for (Index k = 0; k < width; ++k)
          visit(by_piece[(step * list.count() + piece) * width + k], callers[at * width + k]);
      }
  }
  void fill(std::mt19937& random) {
    for_each([&](T& mine, T& theirs) {
      mine = theirs = static_cast<T>(static_cast<double>(random()) / 2147483648.0 - 1.0);
    });
  }
  // Whether both have the same, and the caller's nothing else.
  bool agree() {
    bool same = true;
    for_each([&](T& mine, T& theirs) {
      same = same && std::memcmp(&mine, &theirs, sizeof(T)) == 0;
      theirs = std::numeric_limits<T>::quiet_NaN();
    });
    return same && std::all_of(callers.begin(), callers.end(), [](T value) { return value != value; });
  }

  const PieceList& list;
  const Index width;
  std::vector<T> by_piece, callers;
};

template <class T>
struct Gradients {
  Gradients(const Spec& spec, const PieceList& list) {
    const Index rows = spec.description().gates * spec.hidden_size, tracks = spec.num_layers * spec.directions;
    values.reserve(2 + 12 * tracks);
    const auto add = [&](Index count) { return values.emplace_back(count, T(0)).data(); };
    call.d_h_0 = add(tracks * list.count() * spec.state_size());
    if (spec.description().has_c) call.d_c_0 = add(tracks * list.count() * spec.hidden_size);
    for (Index track = 0; track < tracks; ++track) {
      LayerGradients<T> to;
      to.weight_ih = add(rows * spec.layer_input_size(track / spec.directions));
      to.weight_hh = add(rows * spec.state_size());
      to.bias_ih = add(rows);
      to.bias_hh = add(rows);
      if (spec.proj_size > 0) to.weight_hr = add(spec.proj_size * spec.hidden_size);
      for (int i = 0; i < spec.description().peephole_count; ++i) to.peephole[i] = add(spec.hidden_size);
      visit_norm_parameters(spec.description(), true, to,
                            [&](const char*, int blocks, T*& place) { place = add(blocks * spec.hidden_size); });
      call.gradients.push_back(to);
    }
  }

  std::vector<std::vector<T>> values;
  BackwardCall<T> call;
};

// Both forms of a call, which are to give the same bits.
template <class T>
class TwoCalls {
 public:
  TwoCalls(const NamedCell& cell, const PieceList& list, const Shape& shape, const KernelTable& table)
      : problem_(cell, shape),
        list_(list),
        network_(problem_.spec, problem_.parameters, table),
        x_(list, shape.input_size),
        d_y_(list, problem_.spec.output_size()) {
    network_.pack_for_backward(problem_.parameters);
    std::mt19937 random(5);
    x_.fill(random);
    d_y_.fill(random);
  }

  void compare(const Plan& plan, const Plan& backward_plan, const std::string& where) {
    for (const TapeOptions& options : {TapeOptions{}, TapeOptions{{}, true}}) {
      TwoForms<T> y(list_, problem_.spec.output_size()), taped(y), d_x(list_, problem_.spec.input_size);
      Results<T> ragged, pieces, ragged_taped, pieces_taped;
      Workspace workspace, ragged_memory, pieces_memory;
      CHECK(network_.forward(ragged_call(ragged, y), workspace, nullptr, plan));
      CHECK(network_.forward(pieces_call(pieces, y), workspace, nullptr, plan));
      const Sequence<T> by_piece = ragged_call(ragged_taped, taped), callers = pieces_call(pieces_taped, taped);
      Tape<T> ragged_tape(network_, by_piece, options, ragged_memory);
      Tape<T> pieces_tape(network_, callers, options, pieces_memory);
      CHECK(network_.forward(by_piece, workspace, &ragged_tape, plan));
      CHECK(network_.forward(callers, workspace, &pieces_tape, plan));
      Gradients<T> expected(problem_.spec, list_), got(problem_.spec, list_);
      add_rows(expected.call, by_piece, d_y_.by_piece, d_x.by_piece, list_.count());
      add_rows(got.call, callers, d_y_.callers, d_x.callers, list_.pieces().batch);
      CHECK(network_.backward(ragged_tape, expected.call, workspace, backward_plan));
      CHECK(network_.backward(pieces_tape, got.call, workspace, backward_plan));
      for (const auto* results : {&pieces, &ragged_taped, &pieces_taped}) {
        CHECK_NOTHING_WRONG(ragged.difference({ragged.y, results->h_n, results->c_n}), where);
      }
      CHECK(y.agree());
      CHECK(taped.agree());
      CHECK(d_x.agree());
      CHECK(expected.values == got.values);
    }
  }

 private:
  Sequence<T> ragged_call(Results<T>& results, TwoForms<T>& y) const {
    return with_rows(problem_.sequence(results), x_.by_piece, y.by_piece, list_.count());
  }
  Sequence<T> pieces_call(Results<T>& results, TwoForms<T>& y) const {
    Sequence<T> sequence = with_rows(problem_.sequence(results), x_.callers, y.callers, list_.pieces().batch);
    sequence.pieces = &list_.pieces();
    return sequence;
  }
  Sequence<T> with_rows(Sequence<T> sequence, const std::vector<T>& x, std::vector<T>& y, Index rows) const {
    sequence.x = x.data();
    sequence.x_row = problem_.spec.input_size;
    sequence.x_step = rows * sequence.x_row;
    sequence.y = y.data();
    sequence.y_row = problem_.spec.output_size();
    sequence.y_step = rows * sequence.y_row;
    return sequence;
  }
  void add_rows(BackwardCall<T>& call, const Sequence<T>& sequence, const std::vector<T>& d_y, std::vector<T>& d_x,
                Index rows) const {
    call.x = sequence.x;
    call.x_step = call.d_x_step = sequence.x_step;
    call.x_row = call.d_x_row = sequence.x_row;
    call.d_y = d_y.data();
    call.d_y_row = problem_.spec.output_size();
    call.d_y_step = rows * call.d_y_row;
    call.d_x = d_x.data();
  }

  const Problem<T> problem_;
  const PieceList& list_;
  const Network<T> network_;
  TwoForms<T> x_, d_y_;
};

template <class T>
void compare_with_ragged(const NamedCell& cell, const KernelTable& table, Index hidden, Index layers, Index directions,
                         Index steps, Index batch, std::uint32_t valid, std::uint32_t reset) {
  const Cut cut(steps, batch, valid, reset);
  const PieceList& list = *cut.list;
  const std::vector<Index> lengths(list.lengths(), list.lengths() + list.count());
  TwoCalls<T> calls(cell, list, {5, hidden, list.longest(), list.count(), layers, directions, lengths}, table);
  // A call waits for its threads a tenth of the time that it expects to take.
  constexpr double patient = 2e12;
  const Index rows = list.count();
  const int overlapping = directions == 1 ? static_cast<int>(layers) : 1;
  const auto plan = [&](int layers, int directions, int rows_, int units, Index more, int gradient_threads = 0) {
    return Plan{layers, directions, rows_, units, rows + more, patient, gradient_threads};
  };
  const std::string where = std::string(table.name) + ", " + cell.name;
  calls.compare(plan(1, 1, 1, 1, 0), plan(1, 1, 1, 1, 100), where + ", alone");
  calls.compare(plan(1, 1, 3, 1, 0), plan(1, 1, 2, 1, 0), where + ", by rows");
  calls.compare(plan(1, 1, 1, 2, 1), plan(1, 1, 1, 2, 0), where + ", by units");
  calls.compare(plan(overlapping, static_cast<int>(directions), 1, 1, 1), plan(1, 1, 1, 1, 0, 1), where + ", apart");
}

void check_calls() {
  for (const KernelTable* table : available_tables())
    for (const NamedCell& cell : all_cells())
      for (const Index directions : {1, 2}) {
        compare_with_ragged<float>(cell, *table, 33, 2, directions, 17, 7, 70, 20);
        compare_with_ragged<double>(cell, *table, 17, 1, directions, 33, 9, 70, 20);
        compare_with_ragged<float>(cell, *table, 3, 2, directions, 9, 33, 70, 20);  // rows in lanes
        compare_with_ragged<float>(cell, *table, 2, 1, directions, 9, 167, 70, 0);
        compare_with_ragged<float>(cell, *table, 2, 2, directions, 9, 67, 100, 20);
      }
}

}  // namespace
}  // namespace gatedrnn::test

int main() {
  gatedrnn::set_num_threads(3);
  gatedrnn::test::check_lists();
  gatedrnn::test::check_calls();
  return gatedrnn::test::finish("test_pieces");
}
