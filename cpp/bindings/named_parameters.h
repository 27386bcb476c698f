// Cells and parameters by the names that they have in Python.
#pragma once

#include <string>
#include <vector>

#include "arrays.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn::bindings {

inline Cell cell_named(const std::string& name) {
  if (name == "lstm") return Cell::lstm;
  if (name == "lstm_peephole") return Cell::lstm_peephole;
  if (name == "gru") return Cell::gru;
  if (name == "gru_reset_before") return Cell::gru_reset_before;
  if (name == "rnn_tanh") return Cell::rnn_tanh;
  if (name == "rnn_relu") return Cell::rnn_relu;
  refuse_value("cell", "lstm, lstm_peephole, gru, gru_reset_before, rnn_tanh or rnn_relu", "'" + name + "'");
}

// The names of torch.nn: `find(name, shape)` gives what has this name.
template <class Layer, class Find>
std::vector<Layer> by_name(const Spec& spec, bool bias, Find&& find_named) {
  std::vector<Layer> found;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    for (Index direction = 0; direction < spec.directions; ++direction) {
      const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
      const auto find = [&](const char* name, const Shape& shape) { return find_named(name + suffix, shape); };
      const Index H = spec.hidden_size, rows = gate_count(spec.cell) * H;
      Layer arrays;
      arrays.weight_ih = find("weight_ih", {rows, spec.layer_input_size(layer)});
      arrays.weight_hh = find("weight_hh", {rows, spec.state_size()});
      if (bias) {
        arrays.bias_ih = find("bias_ih", {rows});
        arrays.bias_hh = find("bias_hh", {rows});
      }
      if (spec.proj_size > 0) arrays.weight_hr = find("weight_hr", {spec.proj_size, H});
      if (spec.cell == Cell::lstm_peephole) {
        const char* names[] = {"weight_ci", "weight_cf", "weight_co"};
        for (int gate = 0; gate < 3; ++gate) arrays.peephole[gate] = find(names[gate], {H});
      }
      found.push_back(arrays);
    }
  return found;
}

template <class T>
Parameters<T> find_parameters(const Spec& spec, bool bias, const py::dict& given) {
  return by_name<LayerParameters<T>>(spec, bias, [&](const std::string& name, const Shape& shape) -> const T* {
    const auto array = py::cast<Array<T>>(py::object(given[name.c_str()]));
    if (!has_shape(array, shape)) refuse_value(name.c_str(), text(shape), shape_text(array));
    return array.data();
  });
}

}  // namespace gatedrnn::bindings
