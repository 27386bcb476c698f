// The cells of a tile whose product is done. Where products have a unit of their own, they wait for the next product and are computed
// beside it, some rows at each of its steps.
#pragma once

#include "product.h"

namespace gatedrnn::GATEDRNN_ISA {

template <bool waits, class Compute>
class Beside {
 public:
  // compute(place): the cells of its rows.
  explicit Beside(Compute compute) : compute_(compute) {}

  GATEDRNN_INLINE void add(const TilePlace& at) {
    if constexpr (waits) {
      finish();
      at_ = at;
      left_ = at.rows;
    } else {
      compute_(at);
    }
  }
  // Before so many steps.
  void spread_over(Index steps) { each_ = ceil_div(left_, steps > 0 ? steps : 1); }
  GATEDRNN_INLINE void step() {
    if (left_ > 0) take(each_ < left_ ? each_ : left_);
  }
  GATEDRNN_INLINE void finish() {
    if (left_ > 0) take(left_);
  }

 private:
  void take(Index rows) {
    TilePlace some = at_;
    some.row = at_.row + at_.rows - left_;
    some.rows = static_cast<int>(rows);
    left_ -= rows;
    compute_(some);
  }

  Compute compute_;
  TilePlace at_{};
  Index left_ = 0, each_ = 0;
};

template <class Product, class Compute>
Beside<Product::has_unit, Compute> cells_of(Compute compute) {
  return Beside<Product::has_unit, Compute>(compute);
}

}  // namespace gatedrnn::GATEDRNN_ISA
