#include "gatedrnn/pieces.h"

#include <utility>

#include "gatedrnn/row_order.h"

namespace gatedrnn {

PieceList::PieceList(Index steps, Index batch, const Flags& mask, const Flags& resets, const Index* lengths) {
  rows_.reserve(batch + 1);
  for (Index row = 0; row < batch; ++row) {
    const Index length = lengths ? lengths[row] : steps;
    rows_.push_back({static_cast<Index>(times_.size()), length, resets.data && length > 0 && resets.at(0, row)});
    rows_.back().first_piece = count();
    begin_piece(row);
    for (Index step = 0; step < length; ++step) {
      if (resets.data && step > 0 && resets.at(step, row)) {
        end_piece(count() == rows_.back().first_piece);
        begin_piece(row);
      }
      if (!mask.data || mask.at(step, row)) times_.push_back(step);
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

void PieceList::sort() {
  std::vector<Index> order(count()), places(count());
  RowOrder::sort(lengths_.data(), count(), order.data());
  const std::vector<Pieces::Piece> pieces = std::exchange(pieces_, {});
  const std::vector<Index> lengths = std::exchange(lengths_, {});
  for (const Index piece : order) {
    places[piece] = count();
    pieces_.push_back(pieces[piece]);
    lengths_.push_back(lengths[piece]);
  }
  for (Index row = 0; row + 1 < static_cast<Index>(rows_.size()); ++row)
    for (Index* piece : {&rows_[row].first_piece, &rows_[row].last_piece}) *piece = places[*piece];
}

}  // namespace gatedrnn
