#include "gatedrnn/pieces.h"

#include <algorithm>

namespace gatedrnn {

PieceList::PieceList(Index steps, Index batch, const Flags& mask, const Flags& resets, const Index* lengths) {
  rows_.reserve(batch + 1);
  for (Index row = 0; row < batch; ++row) {
    const Index length = lengths ? lengths[row] : steps;
    rows_.push_back({count(), length, resets.data && length > 0 && resets.at(0, row)});
    begin_piece(row);
    for (Index step = 0; step < length; ++step) {
      if (resets.data && step > 0 && resets.at(step, row)) {
        end_piece(false);
        begin_piece(row);
      }
      if (!mask.data || mask.at(step, row)) times_.push_back(step);
    }
    end_piece(true);
  }
  rows_.push_back({count(), 0, false});
  begin_piece(batch);
  view_ = {steps, batch, pieces_.data(), times_.data()};
}

void PieceList::begin_piece(Index row) { pieces_.push_back({row, static_cast<Index>(times_.size())}); }

void PieceList::end_piece(bool last) {
  const Index length = static_cast<Index>(times_.size()) - pieces_.back().first;
  const bool first = rows_.back().first_piece == count();
  if (length == 0 && !first && !last) return pieces_.pop_back();
  lengths_.push_back(length);
  longest_ = std::max(longest_, length);
}

}  // namespace gatedrnn
