// Rows that are not run as they are: steps are skipped, or the state starts anew in the middle. Then the rows of the batch are pieces
// of the caller's rows, each with the steps between two borders that are not skipped. For the engine that is a ragged batch; only
// places in the caller's arrays are found by a table.
#pragma once

#include <vector>

#include "gatedrnn/spec.h"

namespace gatedrnn {

// Where pieces stand in the caller's arrays.
struct Pieces {
  struct Piece {
    Index row;
    Index first;  // of its times
  };

  Index steps = 0, batch = 0;  // of the caller's arrays
  const Piece* pieces = nullptr;
  const Index* times = nullptr;  // of one piece after the other, each ascending

  Index row(Index piece) const { return pieces[piece].row; }
  Index time(Index piece, Index step) const { return times[pieces[piece].first + step]; }
};

// A boolean for every (step, row) of the caller's, or none at all.
struct Flags {
  const bool* data = nullptr;
  Index step_stride = 0, row_stride = 0;

  bool at(Index step, Index row) const { return data[step * step_stride + row * row_stride]; }
};

// The pieces of a batch, longest first; of the same length in the order of rows and steps. A border stands before each step with a
// reset. A row's first and last piece may be empty, since they have a state; others are there only if they have steps.
class PieceList {
 public:
  // `mask`: false where a step is skipped. Past a row's length (null: none is shorter) all steps are, and resets do nothing.
  PieceList(Index steps, Index batch, const Flags& mask, const Flags& resets, const Index* lengths);
  PieceList(PieceList&&) = default;  // but no copy: the view is of its own arrays

  const Pieces& pieces() const { return view_; }
  Index count() const { return static_cast<Index>(lengths_.size()); }
  const Index* lengths() const { return lengths_.data(); }  // by piece
  Index longest() const { return count() > 0 ? lengths_.front() : 0; }

  // The piece that begins with a row's initial state, or kNone, and the one that ends with its final state. In reverse time begins at
  // the end.
  static constexpr Index kNone = -1;
  Index beginning(Index row, bool reverse) const {
    if (reverse) return rows_[row].last_piece;
    return rows_[row].reset_at_start ? kNone : rows_[row].first_piece;
  }
  Index ending(Index row, bool reverse) const { return reverse ? rows_[row].first_piece : rows_[row].last_piece; }

  // Successive steps of a row that no piece has, and those around them that a piece has, or kNone. Past the row's length there is
  // none on either side.
  struct Gap {
    Index begin, end, before, after;
  };
  // `visit(gap)`
  template <class Visit>
  void for_each_gap(Index row, Visit&& visit) const {
    const Index length = rows_[row].length;
    const auto visit_some = [&](const Gap& gap) {
      if (gap.begin < gap.end) visit(gap);
    };
    Index before = kNone;
    for (Index i = rows_[row].first_time; i < rows_[row + 1].first_time; before = times_[i++])
      visit_some({before + 1, times_[i], before, times_[i]});
    visit_some({before + 1, length, before, kNone});
    visit_some({length, view_.steps, kNone, kNone});
  }

 private:
  struct Row {
    Index first_time, length;
    bool reset_at_start = false;
    Index first_piece = 0, last_piece = 0;
  };

  void begin_piece(Index row);
  void end_piece(bool may_be_empty);
  void sort();

  std::vector<Row> rows_;  // and where a row after the last would begin
  std::vector<Pieces::Piece> pieces_;
  std::vector<Index> lengths_, times_;
  Pieces view_;
};

}  // namespace gatedrnn
