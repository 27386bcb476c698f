// Weights rearranged once into the panels that the kernels stream.
#pragma once

#include <vector>

#include "gatedrnn/kernel_table.h"
#include "gatedrnn/memory.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn {

template <class T>
struct PackedStage {
  Stage stage;
  StageLayout layout;
  int lanes;
  Index units;   // that exist
  Index panels;  // that cover them
  Index input_depth, recurrent_depth;
  Buffer<T> input, recurrent, bias, peephole;

  Index units_per_panel() const { return Index(layout.unit_vectors) * lanes; }
  Index slots_size() const { return layout.slots * units_per_panel(); }  // of one row in one panel's gates
};

template <class T>
struct PackedLayer {
  std::vector<PackedStage<T>> stages;  // in the order of a time step
  Index input_size;
  Index recurrent_bytes() const {
    Index bytes = 0;
    for (const auto& stage : stages) bytes += stage.recurrent.size() * static_cast<Index>(sizeof(T));
    return bytes;
  }
};

template <class T>
PackedLayer<T> pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& parameters, int lanes);

}  // namespace gatedrnn
