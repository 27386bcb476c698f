// What network to compute: the cell, its sizes, and nothing about how.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gatedrnn {

using Index = std::ptrdiff_t;

enum class Cell { lstm, lstm_peephole, gru, gru_reset_before, rnn_tanh, rnn_relu };

constexpr bool is_lstm(Cell cell) { return cell == Cell::lstm || cell == Cell::lstm_peephole; }
constexpr bool is_gru(Cell cell) { return cell == Cell::gru || cell == Cell::gru_reset_before; }

// Gate order is torch.nn's: LSTM i, f, g, o; GRU r, z, n.
constexpr Index gate_count(Cell cell) { return is_lstm(cell) ? 4 : is_gru(cell) ? 3 : 1; }

struct Spec {
  Cell cell = Cell::lstm;
  Index input_size = 0;
  Index hidden_size = 0;
  Index num_layers = 1;
  Index directions = 1;
  Index proj_size = 0;  // 0: no projection

  // Width of h, and of what one direction contributes to the output.
  Index state_size() const { return proj_size > 0 ? proj_size : hidden_size; }
  Index output_size() const { return directions * state_size(); }
  Index layer_input_size(Index layer) const { return layer == 0 ? input_size : output_size(); }

  // Weights of the gates, of all layers and directions: multiply-adds of one row's step.
  Index gate_weights() const {
    Index count = 0;
    for (Index layer = 0; layer < num_layers; ++layer)
      count += gate_count(cell) * hidden_size * (layer_input_size(layer) + state_size());
    return count * directions;
  }

  bool operator==(const Spec& other) const {
    return cell == other.cell && input_size == other.input_size && hidden_size == other.hidden_size &&
           num_layers == other.num_layers && directions == other.directions && proj_size == other.proj_size;
  }
};

}  // namespace gatedrnn
