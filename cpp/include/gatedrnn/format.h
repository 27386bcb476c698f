// How the numbers of a product are stored and summed. A format is a file in kernels/ with a product, for each family of instructions
// that computes it, and an entry in the tables that have it (kernels/kernels.cpp). Cells never see a format.
#pragma once

#include "gatedrnn/spec.h"

namespace gatedrnn {

// States, outputs and what cells compute with are float32, but for float64, where all is.
enum class Format { float32, float64, bfloat16, bfloat16x3, int8 };
constexpr int kFormatCount = 5;
constexpr const char* kFormatNames[kFormatCount] = {"float32", "float64", "bfloat16", "bfloat16x3", "int8"};

// The one without a conversion.
template <class T>
constexpr Format plain_format = sizeof(T) == sizeof(float) ? Format::float32 : Format::float64;

// How the kernels of an instruction set want weights: panels of [k / terms][gate][unit vector][lane][terms].
struct PanelLayout {
  Index weight_bytes, operand_bytes, sum_bytes;  // of a number
  Index terms;                                   // consecutive k side by side in a lane
  int lanes;                                     // of a vector of sums

  // Of as many k as multiply at a time, for one vector of units.
  constexpr Index vector_bytes() const { return terms * lanes * weight_bytes; }
  constexpr Index panel_bytes(Index depth, Index vectors) const {
    return (depth + terms - 1) / terms * vectors * vector_bytes();
  }
};

}  // namespace gatedrnn
