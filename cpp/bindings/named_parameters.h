// Cells, formats and parameters by the names that they have in Python.
#pragma once

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "gatedrnn/format.h"
#include "gatedrnn/parameters.h"

namespace gatedrnn::bindings {

inline Cell cell_named(const std::string& name) {
  std::string known;
  for (int cell = 0; cell < kCellCount; ++cell) {
    if (name == kCellNames[cell]) return static_cast<Cell>(cell);
    known += (cell == 0 ? "" : cell + 1 < kCellCount ? ", " : " or ") + std::string(kCellNames[cell]);
  }
  refuse_value("cell", known, "'" + name + "'");
}

// One of less than float32.
inline Format low_format_named(const std::string& name) {
  for (const Format format : {Format::bfloat16, Format::bfloat16x3, Format::int8})
    if (name == kFormatNames[static_cast<int>(format)]) return format;
  refuse_value("precision", "None, 'bfloat16', 'bfloat16x3' or 'int8'", "'" + name + "'");
}

inline ActivationKind activation_named(const std::string& name) {
  for (int kind = 0; kind < kActivationKinds; ++kind)
    if (name == kActivationDescriptions[kind].name) return static_cast<ActivationKind>(kind);
  refuse_value("activations", "names that activations() has", "'" + name + "'");
}

// Of a general cell: each function with its alpha and beta, in the order of the cell's description.
using Functions = std::vector<std::tuple<std::string, double, double>>;

inline CellOptions<double> cell_options(const CellDescription& cell, const Functions& activations,
                                        std::optional<double> clip, std::optional<double> cell_clip,
                                        double layer_norm_eps = 0) {
  if (static_cast<int>(activations.size()) != cell.activation_count)
    refuse_value("activations", std::to_string(cell.activation_count), std::to_string(activations.size()));
  CellOptions<double> options;
  Activation<double>* to = options.activations;
  for (const auto& [name, alpha, beta] : activations) *to++ = {activation_named(name), alpha, beta};
  options.clip = clip.value_or(options.never);
  options.cell_clip = cell_clip.value_or(options.never);
  options.layer_norm_eps = layer_norm_eps;
  return options;
}

// The defaults of functions' parameters, by name.
inline py::dict described_activations() {
  py::dict all;
  for (const ActivationDescription& function : kActivationDescriptions) {
    const py::object defaults[] = {py::make_tuple(), py::make_tuple(function.alpha),
                                   py::make_tuple(function.alpha, function.beta)};
    all[function.name] = defaults[function.parameters];
  }
  return all;
}

// What Python has to know of the cells, by name: gates, whether the state is a pair, names of peepholes, of general ones the gates
// that have functions, with what these usually are, and of normalised ones the names of what these have beside them: with and
// without biases, and how many times H values.
inline py::dict described_cells() {
  py::dict all;
  for (int i = 0; i < kCellCount; ++i) {
    const CellDescription& cell = kCellDescriptions[i];
    py::list peepholes;
    for (int p = 0; p < cell.peephole_count; ++p) peepholes.append(cell.peepholes[p].name);
    py::list activations;
    for (int a = 0; a < cell.activation_count; ++a)
      activations.append(py::make_tuple(cell.activations[a].name,
                                        kActivationDescriptions[static_cast<int>(cell.activations[a].usual)].name));
    const auto norms = [&](bool bias) {
      py::list names;
      LayerParameters<float> layer;
      visit_norm_parameters(cell, bias, layer, [&](const char* name, int blocks, const float*) {
        names.append(py::make_tuple(name, blocks));
      });
      return py::tuple(names);
    };
    all[kCellNames[i]] = py::make_tuple(cell.gates, cell.has_c, py::tuple(peepholes), py::tuple(activations),
                                        py::make_tuple(norms(false), norms(true)));
  }
  return all;
}

// The names of torch.nn: `find(name, shape)` gives what has this name.
template <class Layer, class Find>
std::vector<Layer> by_name(const Spec& spec, bool bias, Find&& find_named) {
  std::vector<Layer> found;
  for (Index layer = 0; layer < spec.num_layers; ++layer)
    for (Index direction = 0; direction < spec.directions; ++direction) {
      const std::string suffix = "_l" + std::to_string(layer) + (direction ? "_reverse" : "");
      const auto find = [&](const char* name, const Shape& shape) { return find_named(name + suffix, shape); };
      const Index H = spec.hidden_size, rows = spec.description().gates * H;
      Layer arrays;
      arrays.weight_ih = find("weight_ih", {rows, spec.layer_input_size(layer)});
      arrays.weight_hh = find("weight_hh", {rows, spec.state_size()});
      if (bias) {
        arrays.bias_ih = find("bias_ih", {rows});
        arrays.bias_hh = find("bias_hh", {rows});
      }
      if (spec.proj_size > 0) arrays.weight_hr = find("weight_hr", {spec.proj_size, H});
      for (int p = 0; p < spec.description().peephole_count; ++p)
        arrays.peephole[p] = find(spec.description().peepholes[p].name, {H});
      visit_norm_parameters(spec.description(), bias, arrays,
                            [&](const char* name, int blocks, auto& place) { place = find(name, {blocks * H}); });
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

// Of a call's or tape's two parts of the initial state, which are the learnt ones.
struct LearntParts {
  bool h = false, c = false;
};

// Names and shapes: `visit(name, shape)` for each part.
template <class Visit>
void visit_initial_state(const Spec& spec, Visit&& visit) {
  const Index tracks = spec.num_layers * spec.directions;
  visit("h_0", Shape{tracks, spec.state_size()});
  if (spec.description().has_c) visit("c_0", Shape{tracks, spec.hidden_size});
}

}  // namespace gatedrnn::bindings
