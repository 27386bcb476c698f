// All cells. To add one, write its header in cells/ (description and mathematics) and add its include and its row here.
//
// The mathematics is templates over a place `P`, which takes and gives one value each, of the arithmetic P::S: a vector of units
// in the kernels (kernels/step.h, kernels/back_step.h), one unit in the reference and on devices (cells/unit.h).
//
//     first<stage>(p), then second<stage>(p)     Slots are counted from the stage's first. Where the description says two_passes,
//         the first pass goes through several vectors of units before the second does, since the processor would wait in one long
//         chain of dependent operations where two short ones overlap with their neighbours'.
//       gate(slot)      a finished pre-activation, or what the first pass left there by leave(slot, v)
//       h()             h[t-1]
//       c(), set_c(v)   c[t-1], and from set_c on c[t]
//       peephole(i)     the weights of the description's peepholes
//       deliver(h)      h[t]
//       keep(i, v)      a value for backward
//       set_operand(v), carry_over(v), carried_over()     in two stages: the second one's operand, and a value passed to it
//       options(), apply(i, v)                            of general cells: and their i-th function
//     backward<stage>(p)     Stages are counted from the end of a step, slots are the cell's. A first stage finds all of the gradient
//         of h[t]; a second one finds in product() that of the second operand.
//       kept(i), c_before(), h_before(), h_after()        what forward left
//       d_h(), d_c(), product()                           gradients of h[t] and c[t], and of the second operand
//       set_d_a(slot, v)                                  of a pre-activation
//       set_d_c(v), set_carry(v), carry()                 of c[t-1]; of h[t-1], as far as no product brings it (passes_h)
//       set_operand_of_weights(v)                         what the projection, or the second operand's weights, multiplied
//       options(), apply(i, v), slope(i, v, y)            of general cells: the slope at v, where the function is y
//
// Layer-normalised cells have three passes instead, see cells/layer_norm.h.
#pragma once

#include <type_traits>
#include <utility>

#include "gatedrnn/cells/coupled_lstm.h"
#include "gatedrnn/cells/general.h"
#include "gatedrnn/cells/gru.h"
#include "gatedrnn/cells/layer_norm.h"
#include "gatedrnn/cells/lstm.h"
#include "gatedrnn/cells/rnn.h"

// clang-format off
#define GATEDRNN_CELLS(row)                             \
  row(lstm, cells::Lstm<false>)                         \
  row(lstm_peephole, cells::Lstm<true>)                 \
  row(lstm_coupled, cells::CoupledLstm<false>)          \
  row(lstm_coupled_peephole, cells::CoupledLstm<true>)  \
  row(gru, cells::Gru)                                  \
  row(gru_reset_before, cells::GruResetBefore)          \
  row(rnn_tanh, cells::Rnn<false>)                      \
  row(rnn_relu, cells::Rnn<true>)                       \
  row(lstm_general, cells::GeneralLstm<false, false>)   \
  row(lstm_peephole_general, cells::GeneralLstm<false, true>) \
  row(lstm_coupled_general, cells::GeneralLstm<true, false>) \
  row(lstm_coupled_peephole_general, cells::GeneralLstm<true, true>) \
  row(gru_general, cells::GeneralGru)                   \
  row(gru_reset_before_general, cells::GeneralGruResetBefore) \
  row(rnn_general, cells::GeneralRnn)                   \
  row(lstm_norm_products, cells::ProductNormLstm)       \
  row(gru_norm_products, cells::ProductNormGru)         \
  row(lstm_norm_gates, cells::GateNormLstm<false, false>) \
  row(lstm_peephole_norm_gates, cells::GateNormLstm<false, true>) \
  row(lstm_coupled_norm_gates, cells::GateNormLstm<true, false>) \
  row(lstm_coupled_peephole_norm_gates, cells::GateNormLstm<true, true>)
// clang-format on

namespace gatedrnn {

#define GATEDRNN_ROW(name, ...) name,
enum class Cell { GATEDRNN_CELLS(GATEDRNN_ROW) };
#undef GATEDRNN_ROW

// What Python calls them.
#define GATEDRNN_ROW(name, ...) #name,
inline constexpr const char* kCellNames[] = {GATEDRNN_CELLS(GATEDRNN_ROW)};
#undef GATEDRNN_ROW

#define GATEDRNN_ROW(name, ...) __VA_ARGS__::description,
inline constexpr CellDescription kCellDescriptions[] = {GATEDRNN_CELLS(GATEDRNN_ROW)};
#undef GATEDRNN_ROW

constexpr int kCellCount = sizeof(kCellNames) / sizeof(kCellNames[0]);

constexpr const CellDescription& description(Cell cell) { return kCellDescriptions[static_cast<int>(cell)]; }

template <Cell cell>
struct MathematicsOf;
#define GATEDRNN_ROW(name, ...)      \
  template <>                        \
  struct MathematicsOf<Cell::name> { \
    using type = __VA_ARGS__;        \
  };
GATEDRNN_CELLS(GATEDRNN_ROW)
#undef GATEDRNN_ROW
template <Cell cell>
using Mathematics = typename MathematicsOf<cell>::type;

// The cell whose products a cell's mathematics follows: its own, or those of a general one's plain cell.
template <class M, class = void>
struct PlainMathematics {
  using type = M;
};
template <class M>
struct PlainMathematics<M, std::void_t<typename M::Plain>> {
  using type = typename M::Plain;
};
template <Cell cell>
constexpr Cell plain_cell() {
  using Plain = typename PlainMathematics<Mathematics<cell>>::type;
#define GATEDRNN_ROW(name, ...) \
  if (std::is_same_v<Plain, __VA_ARGS__>) return Cell::name;
  GATEDRNN_CELLS(GATEDRNN_ROW)
#undef GATEDRNN_ROW
  return cell;
}

// Calls `visit` with the cell as a constant.
template <class Visit>
void with_cell(Cell cell, Visit&& visit) {
  switch (cell) {
#define GATEDRNN_ROW(name, ...) \
  case Cell::name: return visit(std::integral_constant<Cell, Cell::name>());
    GATEDRNN_CELLS(GATEDRNN_ROW)
#undef GATEDRNN_ROW
  }
}

// Whether a description fits together.
constexpr bool is_consistent(const CellDescription& d) {
  int gates = 0;
  for (int stage = 0; stage < d.stage_count; ++stage) {
    const StageDescription& s = d.stages[stage];
    for (int i = 1; i < s.gates; ++i)  // rows of W_hh that follow one another
      if (d.gate_of_slot[s.first_slot + s.first_operand_slot() + i] != d.first_gate(stage) + i) return false;
    gates += s.gates;
  }
  return gates == d.gates && d.slots <= kMostSlots && d.kept <= kMostKept && (d.peephole_count == 0 || d.has_c) &&
         (d.stage_count == 1 || !d.has_c);  // threads that share a step's units may share its stages' differently
}
constexpr bool are_consistent() {
  for (const CellDescription& d : kCellDescriptions)
    if (!is_consistent(d)) return false;
  return true;
}
static_assert(are_consistent());

}  // namespace gatedrnn
