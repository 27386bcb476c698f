// What network to compute: the cell, its sizes, and nothing about how.
#pragma once

#include <cstdint>

#include "gatedrnn/cells.h"

namespace gatedrnn {

struct Spec {
  Cell cell = Cell::lstm;
  Index input_size = 0;
  Index hidden_size = 0;
  Index num_layers = 1;
  Index directions = 1;
  Index proj_size = 0;               // 0: no projection
  bool reverse = false;              // the only direction of each layer runs from the end
  CellOptions<double> options = {};  // of a general cell

  const CellDescription& description() const { return gatedrnn::description(cell); }

  // Whether a direction runs from each row's last valid step to its first.
  bool backwards(Index direction) const { return reverse || direction == 1; }

  // Width of h, and of what one direction contributes to the output.
  Index state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
  Index output_size() const { return directions * state_size(); }
  Index layer_input_size(Index layer) const { return layer == 0 ? input_size : output_size(); }

  // Weights of the gates, of all layers and directions: multiply-adds of one row's step.
  Index gate_weights() const {
    Index count = 0;
    for (Index layer = 0; layer < num_layers; ++layer)
      count += description().gates * hidden_size * (layer_input_size(layer) + state_size());
    return count * directions;
  }

  bool operator==(const Spec& other) const {
    return cell == other.cell && input_size == other.input_size && hidden_size == other.hidden_size &&
           num_layers == other.num_layers && directions == other.directions && proj_size == other.proj_size &&
           reverse == other.reverse && (!description().is_general() || options == other.options);
  }
};

}  // namespace gatedrnn
