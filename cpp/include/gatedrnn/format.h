// How the numbers of a product are stored and summed. A format is a file in kernels/ with a product, for each family of instructions
// that computes it, and an entry in the tables that have it (kernels/kernels.cpp). Cells never see a format.
#pragma once

#include "gatedrnn/sizes.h"
#include "gatedrnn/sums.h"

// Kernels must not share functions with those of other instruction sets, see kernels/isa_namespace.h.
#define GATEDRNN_ALWAYS_INLINE __attribute__((always_inline))

namespace gatedrnn {

// States, outputs and what cells compute with are float32, but for float64, where all is.
enum class Format { float32, float64, bfloat16, bfloat16x3, int8 };
constexpr int kFormatCount = 5;
constexpr const char* kFormatNames[kFormatCount] = {"float32", "float64", "bfloat16", "bfloat16x3", "int8"};

// The one without a conversion.
template <class T>
constexpr Format plain_format = sizeof(T) == sizeof(float) ? Format::float32 : Format::float64;

// Operands that are rounded stand in rows of whole parts of so many, most of the time, the rest of which is zero.
constexpr Index kRoundedPart = 32;

// How the kernels of an instruction set want weights: panels of [k / terms][gate][unit vector][lane][terms], behind which may
// stand a scale for each [gate][unit vector][lane].
struct PanelLayout {
  Index weight_bytes, operand_bytes, sum_bytes;  // of a number
  Index terms;                                   // consecutive k side by side in a lane
  int lanes;                                     // of a vector of sums
  Index block_terms = kBlockTerms;               // see sums.h
  bool rounds = false;                           // whether operands are made of states and inputs, or are these
  bool scaled = false;                           // whether units have scales, and rows
  Index part = kRoundedPart;                     // terms that rounded operands come in, the last ones with zeros
  bool pads = false;                             // whether weights do too
  double pace = 1;                               // multiplications in the time of one of float32's, about

  GATEDRNN_ALWAYS_INLINE constexpr PanelLayout at_pace(double times) const {
    PanelLayout layout = *this;
    layout.pace = times;
    return layout;
  }

  // Of as many k as multiply at a time, for one vector of units.
  GATEDRNN_ALWAYS_INLINE constexpr Index vector_bytes() const { return terms * lanes * weight_bytes; }
  GATEDRNN_ALWAYS_INLINE constexpr Index weights_bytes(Index depth, Index vectors) const {
    return ((pads ? round_up(depth, part) : depth) + terms - 1) / terms * vectors * vector_bytes();
  }
  GATEDRNN_ALWAYS_INLINE constexpr Index panel_bytes(Index depth, Index vectors) const {
    return weights_bytes(depth, vectors) + (scaled ? vectors * lanes * sum_bytes : 0);
  }

  // A row of a weights' gradient as it is summed up (TransposedGemmArgs): panels of so many vectors, where operands are rounded.
  GATEDRNN_ALWAYS_INLINE constexpr Index sums_width(Index depth, Index vectors) const {
    return rounds ? round_up(depth, vectors * lanes) : depth;
  }
  // Its left and right sides, over so many pairs, in so many blocks of them.
  GATEDRNN_ALWAYS_INLINE constexpr Index left_bytes(Index pairs, Index blocks, Index columns) const {
    return rounds ? rounded_bytes(columns, pairs + blocks * (part - 1)) : pairs * columns * operand_bytes;
  }
  GATEDRNN_ALWAYS_INLINE constexpr Index right_bytes(Index pairs, Index blocks, Index depth, Index vectors) const {
    return rounds ? (pairs + blocks * (part - 1)) * round_up(depth, vectors * lanes) * weight_bytes
                  : pairs * round_up(depth, lanes) * weight_bytes;
  }

  // From slot to slot among the terms of a product that goes through several.
  GATEDRNN_ALWAYS_INLINE constexpr Index slot_stride(Index units) const {
    return round_up(units, rounds ? part : lanes);
  }
  // Of a row of rounded operands: an odd number of cache lines, see odd_lines.
  GATEDRNN_ALWAYS_INLINE constexpr Index rounded_stride(Index depth) const {
    constexpr Index lines = 2 * kAlignment;
    return round_up(round_up(depth, part) * operand_bytes, lines) + lines / 2;
  }
  // With the rows' scales behind them.
  GATEDRNN_ALWAYS_INLINE constexpr Index rounded_bytes(Index rows, Index depth) const {
    return rounds ? round_up(rows * (rounded_stride(depth) + sum_bytes), kAlignment) : 0;
  }
};

}  // namespace gatedrnn
