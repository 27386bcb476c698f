// Weights rearranged once into the panels that the kernels stream.
#pragma once

#include <vector>

#include "gatedrnn/buffer.h"
#include "gatedrnn/kernel_table.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn {

template <class T>
struct PackedStage {
  int stage = 0;  // of the cell, or kLinear
  StageDescription layout{};
  int lanes = 0;
  Index units = 0;   // that exist
  Index panels = 0;  // that cover them
  Index input_depth = 0, recurrent_depth = 0;
  Buffer<T> input, recurrent, bias, peephole;

  Index units_per_panel() const { return Index(layout.unit_vectors()) * lanes; }
  Index slots_size() const { return layout.slots * units_per_panel(); }  // of one row in one panel's gates
};

template <class T>
struct PackedLayer {
  std::vector<PackedStage<T>> stages;  // in the order of a time step: the cell's, then the projection
  Buffer<T> in_lanes;                  // the same weights for rows in lanes, where these may be
};

// The transposed weights of one product of the backward pass: [panel][depth][kBackVectors][lanes], the depth being the slots that
// the product reads, [slot][unit], each as wide as in a row of gradients.
template <class T>
struct PackedTransposed {
  Index units = 0, panels = 0, depth = 0;
  Index slot_units = 0;  // of each slot that the product reads
  Index first_slot = 0;  // of the gradients' slots
  Buffer<T> weights;
};

template <class T>
struct PackedBackLayer {
  PackedTransposed<T> recurrent;   // from the gradients of pre-activations to h[t-1]
  PackedTransposed<T> second;      // from those of the second stage to its operand
  PackedTransposed<T> projection;  // from the projected h to the one before
  PackedTransposed<T> input;
  Buffer<T> peephole;  // [peephole][slot_stride]
  Buffer<T> in_lanes, peepholes_in_lanes;
};

// Width of a slot in a row of gradients.
inline Index slot_stride(Index units, int lanes) { return round_up(units, lanes); }

template <class T>
void pack_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, const Kernels<T>& kernels,
                PackedLayer<T>& to);

template <class T>
void pack_back_layer(const Spec& spec, Index layer, const LayerParameters<T>& from, int lanes, PackedBackLayer<T>& to);

}  // namespace gatedrnn
