// The stages of all cells as types, for the kernels to be instantiated with, and the tables of what comes of it.
#pragma once

#include <utility>

#include "gatedrnn/kernel_table.h"
#include "isa_namespace.h"

namespace gatedrnn::GATEDRNN_ISA {

template <Cell cell, int index>
struct CellStage {
  using Plain = CellStage<plain_cell<cell>(), index>;  // whose products it follows
  using Math = Mathematics<cell>;
  static constexpr bool is_general = Mathematics<cell>::description.is_general();
  static constexpr bool is_normalized = Mathematics<cell>::description.is_normalized();
  static constexpr StageDescription description = Mathematics<cell>::description.stages[index];
  static constexpr bool is_first = index == 0, is_last = index + 1 == Mathematics<cell>::description.stage_count;
  static constexpr bool keeps = !is_normalized && Mathematics<cell>::description.kept > 0;
  static constexpr int peepholes = Mathematics<cell>::description.peephole_count;

  // A normalised cell's are a kernel of its own (layer_norm.h).
  template <class P>
  static GATEDRNN_INLINE void first([[maybe_unused]] const P& p) {
    if constexpr (!is_normalized) Mathematics<cell>::template first<index>(p);
  }
  template <class P>
  static GATEDRNN_INLINE void second([[maybe_unused]] const P& p) {
    if constexpr (!is_normalized) Mathematics<cell>::template second<index>(p);
  }
  template <class P>
  static GATEDRNN_INLINE void backward([[maybe_unused]] const P& p) {
    if constexpr (!is_normalized) Mathematics<cell>::template backward<index>(p);
  }
};

struct LinearStage {
  using Plain = LinearStage;
  static constexpr bool is_general = false, is_normalized = false;
  static constexpr StageDescription description = kLinearStage;
  static constexpr bool is_first = true, is_last = true, keeps = false;
  static constexpr int peepholes = 0;

  template <class P>
  static GATEDRNN_INLINE void first(const P& p) {
    p.deliver(p.gate(0));
  }
  template <class P>
  static GATEDRNN_INLINE void second(const P&) {}
  template <class P>
  static GATEDRNN_INLINE void backward(const P& p) {
    p.give(p.d_h());
  }
};

// `Kernel::of<Stage>()` is the kernel of a stage.
template <class Kernel, class Args, Cell cell, int... stages>
constexpr typename StageKernels<Args>::OfCell kernels_of_cell(std::integer_sequence<int, stages...>) {
  typename StageKernels<Args>::OfCell kernels{};
  ((kernels.stages[stages] = Kernel::template of<CellStage<cell, stages>>()), ...);
  kernels.stages[kLinear] = Kernel::template of<LinearStage>();
  return kernels;
}

template <class Kernel, class Args, int... cells>
constexpr StageKernels<Args> kernels_by_stage(std::integer_sequence<int, cells...>) {
  return {{kernels_of_cell<Kernel, Args, static_cast<Cell>(cells)>(
      std::make_integer_sequence<int, description(static_cast<Cell>(cells)).stage_count>())...}};
}

template <class Kernel, class Args>
constexpr StageKernels<Args> by_stage() {
  return kernels_by_stage<Kernel, Args>(std::make_integer_sequence<int, kCellCount>());
}

}  // namespace gatedrnn::GATEDRNN_ISA
