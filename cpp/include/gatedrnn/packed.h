// Weights rearranged once into the panels that the kernels stream.
#pragma once

#include <vector>

#include "gatedrnn/buffer.h"
#include "gatedrnn/kernel_table.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn {

// A matrix in the panels of a format: each has some vectors of units, for each of `depth` terms.
struct PackedMatrix {
  PanelLayout layout{};
  Index vectors = 0, panels = 0, depth = 0;
  Buffer<unsigned char> bytes;

  PackedMatrix() = default;
  PackedMatrix(const PanelLayout& layout, Index vectors, Index panels, Index depth)
      : layout(layout), vectors(vectors), panels(panels), depth(depth), bytes(panels * panel_bytes()) {}

  Index panel_bytes() const { return layout.panel_bytes(depth, vectors); }
  // Where a vector of a panel begins, at a term.
  unsigned char* at(Index panel, Index vector, Index term) {
    return bytes.data() + panel * panel_bytes() + (term / layout.terms * vectors + vector) * layout.vector_bytes();
  }
  void* scales(Index panel, Index vector) {
    return bytes.data() + panel * panel_bytes() + layout.weights_bytes(depth, vectors) +
           vector * layout.lanes * layout.sum_bytes;
  }
  const void* data() const { return bytes.data(); }
};

template <class T>
struct PackedStage {
  int stage = 0;  // of the cell, or kLinear
  StageDescription layout{};
  int lanes = 0;
  Index units = 0;   // that exist
  Index panels = 0;  // that cover them
  PackedMatrix input, recurrent;
  Buffer<T> bias, peephole, norm;  // see step_args.h

  Index units_per_panel() const { return Index(layout.unit_vectors()) * lanes; }
  Index slots_size() const { return layout.slots * units_per_panel(); }  // of one row in one panel's gates
};

template <class T>
struct PackedLayer {
  std::vector<PackedStage<T>> stages;  // in the order of a time step: the cell's, then the projection
  Buffer<T> in_lanes;                  // the same weights for rows in lanes, where these may be
};

// The transposed weights of one product of the backward pass. Its terms are the slots that it reads, [slot][unit], each as wide as in
// a row of gradients.
struct PackedTransposed {
  PackedMatrix weights;
  Index units = 0;       // that exist
  Index slot_units = 0;  // of each slot
  Index first_slot = 0;  // of the gradients' slots
};

template <class T>
struct PackedBackLayer {
  PackedTransposed recurrent;   // from the gradients of pre-activations to h[t-1]
  PackedTransposed second;      // from those of the second stage to its operand
  PackedTransposed projection;  // from the projected h to the one before
  PackedTransposed input;
  Buffer<T> peephole, norm;  // see back_step_args.h
  Buffer<T> in_lanes, peepholes_in_lanes;
};

// Width of a slot in a row of gradients.
inline Index slot_stride(Index units, int lanes) { return round_up(units, lanes); }

template <class T>
void pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                const Kernels<T>& input_kernels, PackedLayer<T>& to);

template <class T>
void pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                     PackedBackLayer<T>& to);

}  // namespace gatedrnn
