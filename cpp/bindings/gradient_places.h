// Where the gradients of parameters go: the caller's arrays, by the names of torch.nn.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "gatedrnn/tape.h"
#include "named_parameters.h"

namespace gatedrnn::bindings {

// The place of one, which has to be usable as it is. It is listed in `found`.
template <class T>
T* gradient_place(const std::string& name, const Shape& shape, const py::dict& given,
                  std::vector<std::pair<std::string, py::array>>& found) {
  const auto argument = [&] { return "accumulate_into: " + name; };
  if (!given.contains(name.c_str())) refuse_value(argument().c_str(), "an array", "nothing of this name");
  const py::object value = given[name.c_str()];
  const auto expected = [&] {
    return "a writable C-contiguous array of " + std::string(py::str(py::dtype::of<T>())) + " and shape " + text(shape);
  };
  if (!py::isinstance<Array<T>>(value)) {
    const bool array = py::isinstance<py::array>(value);
    refuse_type(argument().c_str(), expected(),
                array ? "an array of " + std::string(py::str(py::array(value).dtype())) +
                            ((py::array(value).flags() & py::array::c_style) ? "" : " that is not contiguous")
                      : type_name(value));
  }
  auto array = py::reinterpret_borrow<Array<T>>(value);
  if (is_masked(array)) refuse_type(argument().c_str(), expected(), type_name(value));
  if (!has_shape(array, shape)) refuse_value(argument().c_str(), expected(), "shape " + shape_text(array));
  if (!array.writeable()) refuse_value(argument().c_str(), expected(), "a read-only array");
  if (!is_aligned<T>(array)) refuse_value(argument().c_str(), expected(), "an array that is not aligned");
  if (array.size() > 0) found.emplace_back(name, array);
  return array.mutable_data();
}

template <class T>
std::vector<LayerGradients<T>> find_gradients(const Spec& spec, bool bias, const py::dict& given,
                                              std::vector<std::pair<std::string, py::array>>& found) {
  return by_name<LayerGradients<T>>(spec, bias, [&](const std::string& name, const Shape& shape) {
    return gradient_place<T>(name, shape, given, found);
  });
}

// Nor may they share memory with each other or with what is read. Neighbours in memory tell: all are contiguous.
inline void refuse_overlaps(std::vector<std::pair<std::string, py::array>>& places,
                            const std::vector<py::object>& read) {
  for (const auto& [name, array] : places)
    for (const py::object& input : read)
      if (input && share_memory(array, py::reinterpret_borrow<py::array>(input)))
        refuse_value(("accumulate_into: " + name).c_str(), "memory of its own",
                     "an array that overlaps x or an incoming gradient");
  std::sort(places.begin(), places.end(),
            [](const auto& a, const auto& b) { return a.second.data() < b.second.data(); });
  for (std::size_t i = 1; i < places.size(); ++i)
    if (share_memory(places[i - 1].second, places[i].second))
      refuse_value(("accumulate_into: " + places[i].first).c_str(), "memory of its own",
                   "an array that overlaps " + places[i - 1].first);
}

}  // namespace gatedrnn::bindings
