#include "gatedrnn/pieces.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>

namespace gatedrnn {
namespace {

// The flags of one row after the other, side by side. Where those of a step stand so, some rows are copied at a time, as many as a
// cache line has.
class FlagRows {
 public:
  FlagRows(const Flags& flags, Index steps, Index batch) : flags_(flags), steps_(steps), batch_(batch) {
    if (copies()) copied_ = std::make_unique<bool[]>(kRows * steps);
  }

  // Null where there are no flags. Rows are asked for in turn.
  const bool* row(Index row) {
    if (!flags_.data) return nullptr;
    if (!copies()) return flags_.data + row * flags_.row_stride;
    if (row % kRows == 0) copy(row, std::min(kRows, batch_ - row));
    return copied_.get() + row % kRows * steps_;
  }

 private:
  static constexpr Index kRows = 64;

  bool copies() const { return flags_.data && flags_.step_stride > 1; }
  void copy(Index first, Index rows) {
    for (Index step = 0; step < steps_; ++step)
      for (Index row = 0; row < rows; ++row) copied_[row * steps_ + step] = flags_.at(step, first + row);
  }

  const Flags flags_;
  const Index steps_, batch_;
  std::unique_ptr<bool[]> copied_;
};

}  // namespace

PieceList::PieceList(Index steps, Index batch, const Flags& mask, const Flags& resets, const Index* lengths) {
  rows_.reserve(batch + 1);
  times_.reserve(lengths ? std::accumulate(lengths, lengths + batch, Index(0)) : steps * batch);
  FlagRows mask_rows(mask, steps, batch), resets_rows(resets, steps, batch);
  for (Index row = 0; row < batch; ++row) {
    const Index length = lengths ? lengths[row] : steps;
    const bool *const counts = mask_rows.row(row), *const begins = resets_rows.row(row);
    rows_.push_back({static_cast<Index>(times_.size()), length, begins && length > 0 && begins[0]});
    rows_.back().first_piece = count();
    begin_piece(row);
    for (Index step = 0; step < length; ++step) {
      if (begins && step > 0 && begins[step]) {
        end_piece(count() == rows_.back().first_piece);
        begin_piece(row);
      }
      if (!counts || counts[step]) times_.push_back(step);
    }
    end_piece(true);
    rows_.back().last_piece = count() - 1;
  }
  rows_.push_back({static_cast<Index>(times_.size()), 0});
  sort();
  view_ = {steps, batch, pieces_.data(), times_.data()};
}

void PieceList::begin_piece(Index row) { pieces_.push_back({row, static_cast<Index>(times_.size())}); }

void PieceList::end_piece(bool may_be_empty) {
  const Index length = static_cast<Index>(times_.size()) - pieces_.back().first;
  if (length > 0 || may_be_empty)
    lengths_.push_back(length);
  else
    pieces_.pop_back();
}

// By counting how many there are of each length, since there may be thousands.
void PieceList::sort() {
  const Index longest = count() > 0 ? *std::max_element(lengths_.begin(), lengths_.end()) : 0;
  std::vector<Index> next(longest + 2, 0), places(count());  // by length: where the next of those stands
  for (const Index length : lengths_) ++next[length];
  for (Index length = longest, begin = 0; length >= 0; --length) begin += std::exchange(next[length], begin);
  std::vector<Pieces::Piece> pieces(count());
  std::vector<Index> lengths(count());
  for (Index piece = 0; piece < count(); ++piece) {
    const Index place = places[piece] = next[lengths_[piece]]++;
    pieces[place] = pieces_[piece];
    lengths[place] = lengths_[piece];
  }
  pieces_ = std::move(pieces);
  lengths_ = std::move(lengths);
  for (Index row = 0; row + 1 < static_cast<Index>(rows_.size()); ++row)
    for (Index* piece : {&rows_[row].first_piece, &rows_[row].last_piece}) *piece = places[*piece];
}

}  // namespace gatedrnn
