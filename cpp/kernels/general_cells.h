// The mathematics of general cells (gatedrnn/cells/general.h), for which `step` and `back_step` leave the products: for some panels of
// one stage of one time step, and backward.
#pragma once

#include "back_step.h"
#include "step.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class S, class Stage, bool keeping>
void general_cells(const StepArgs<typename S::T>& a) noexcept {
  TilePlace all{};
  all.panel = a.first_panel;
  all.panels = static_cast<int>(a.last_panel - a.first_panel);
  all.rows = static_cast<int>(a.rows);
  finish<S, Stage, keeping>(a, all);
}

template <class S, class Stage>
void general_cells_back(const BackStepArgs<typename S::T>& a) noexcept {
  TilePlace all{};
  all.panel = a.first_panel;
  all.panels = static_cast<int>(a.last_panel - a.first_panel);
  all.rows = static_cast<int>(a.rows);
  for_each_place<S>(a, all, a.products + a.first_panel * a.products_panel_stride,
                    [](const BackPlace<S>& unit) __attribute__((always_inline)) { Stage::backward(unit); });
}

}  // namespace gatedrnn::GATEDRNN_ISA
