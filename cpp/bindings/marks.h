// Which steps of a call are skipped, and before which the state is zero.
#pragma once

#include "arrays.h"
#include "gatedrnn/pieces.h"

namespace gatedrnn::bindings {

// None, or booleans laid out like x.
struct Marks {
  py::handle mask, resets;
  bool repeats = false;  // whether skipped steps have the output of the step before

  bool any() const { return !mask.is_none() || !resets.is_none(); }
};

// What they make of a batch whose rows may have lengths.
inline PieceList pieces_of(const Marks& marks, bool unbatched, bool batch_first, Index steps, Index batch,
                           const Index* lengths) {
  const Shape shape = unbatched ? Shape{steps} : batch_first ? Shape{batch, steps} : Shape{steps, batch};
  const auto mask = flags_argument("mask", marks.mask, shape), resets = flags_argument("resets", marks.resets, shape);
  const auto flags = [&](const std::optional<Array<bool>>& array) {
    if (!array) return Flags{};
    return batch_first ? Flags{array->data(), 1, steps} : Flags{array->data(), batch, 1};
  };
  return PieceList(steps, batch, flags(mask), flags(resets), lengths);
}

}  // namespace gatedrnn::bindings
