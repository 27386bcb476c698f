// Checks of the arrays that come from Python. Every error names the argument, what was expected and what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gatedrnn/spec.h"

namespace gatedrnn::bindings {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// Up to three axes; more never get this far. On the stack, since a step takes microseconds.
class Shape {
 public:
  Shape(std::initializer_list<py::ssize_t> sizes) : count_(static_cast<int>(sizes.size())) {
    std::copy(sizes.begin(), sizes.end(), sizes_);
  }
  int size() const { return count_; }
  const py::ssize_t* begin() const { return sizes_; }
  const py::ssize_t* end() const { return sizes_ + count_; }
  py::ssize_t elements() const;  // throws std::bad_alloc where they could not be counted

 private:
  int count_;
  py::ssize_t sizes_[3];
};

std::string text(const py::ssize_t* begin, const py::ssize_t* end);
inline std::string text(const Shape& shape) { return text(shape.begin(), shape.end()); }
inline std::string shape_text(const py::array& array) { return text(array.shape(), array.shape() + array.ndim()); }
bool has_shape(const py::array& array, const Shape& shape);
std::string type_name(py::handle object);

// A value that was not what `name` expects.
[[noreturn]] void refuse_type(const char* name, const std::string& expected, const std::string& got);
[[noreturn]] void refuse_value(const char* name, const std::string& expected, const std::string& got);

// `object` as an array of floating-point numbers in the machine's byte order: an array as it is, other things as NumPy reads
// them. Throws where there are no such numbers.
py::array float_array(const char* name, py::handle object);

// What NumPy raises where numbers leave the range of a conversion and it was told to be strict.
bool is_of_range(const py::error_already_set& error);

// For that, and for numbers that are too large.
[[noreturn]] void refuse_conversion(const char* name, const py::dtype& dtype, const py::error_already_set& error);

// While it lives NumPy says nothing of numbers that are too small for a conversion, which become 0 or nearly so.
class UnderflowIgnored {
 public:
  UnderflowIgnored();
  ~UnderflowIgnored();
  UnderflowIgnored(const UnderflowIgnored&) = delete;
  UnderflowIgnored& operator=(const UnderflowIgnored&) = delete;

 private:
  py::object context_;
};

template <class T>
py::array_t<T, py::array::c_style> converted(const py::array& array) {
  constexpr int flags = py::array::c_style | py::array::forcecast | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const py::array_t<T, flags> made(static_cast<const py::object&>(array));
  return py::reinterpret_borrow<py::array_t<T, py::array::c_style>>(made);
}

// The argument as aligned C-contiguous T; converts only where needed.
template <class T>
py::array_t<T, py::array::c_style> contiguous(const char* name, const py::array& array) {
  try {
    return converted<T>(array);
  } catch (const py::error_already_set& error) {
    if (!is_of_range(error)) throw;
  }
  try {  // once more, since to be told of an underflow is rare, and not to be told costs time
    const UnderflowIgnored ignored;
    return converted<T>(array);
  } catch (const py::error_already_set& error) {
    refuse_conversion(name, py::dtype::of<T>(), error);
  }
}

template <class T>
bool is_aligned(const py::array& array) {
  return reinterpret_cast<std::uintptr_t>(array.data()) % sizeof(T) == 0;
}

// Whether kernels can read or write the array in place: aligned T, features next to each other.
template <class T>
bool usable_in_place(const py::array& array) {
  constexpr auto size = static_cast<py::ssize_t>(sizeof(T));
  if (array.dtype().num() != py::dtype::num_of<T>()) return false;
  if (!is_aligned<T>(array)) return false;
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    if (array.strides(axis) % size != 0) return false;
  const py::ssize_t last = array.ndim() - 1;
  return array.shape(last) <= 1 || array.strides(last) == size;
}

// An LSTM's state, each part an array or None.
std::pair<py::object, py::object> state_pair(const char* name, py::handle state);

// Whether a state's array has its shape: (L, B, width), or without B where x is unbatched. Where there is but one row without
// doubt (`lone`), it may be given either way.
bool has_state_shape(const py::array& array, const Shape& shape, bool lone);

// Several integers, or one where `one` allows it, all in first .. last.
std::vector<Index> integers(const char* name, const std::string& expected, py::handle object, Index first, Index last,
                            bool one = true);

// An integer per batch row in 0 .. steps, or nothing for None.
std::optional<std::vector<Index>> lengths_argument(py::handle lengths, Index batch, Index steps);

// Booleans of that shape, or nothing for None.
std::optional<Array<bool>> flags_argument(const char* name, py::handle flags, const Shape& shape);

// The rows of a batch of which an argument of booleans says this.
std::vector<Index> rows_with(bool flag, const char* name, py::handle flags, Index batch);

// Of a single step, 0 for those that skip it; nothing for None.
std::vector<Index> lengths_of_step(py::handle mask, Index batch);

// Rows of a batch by their numbers or by a boolean for each; all for None.
std::vector<Index> rows_argument(py::handle rows, Index batch);

// What a mask hides would be computed with.
bool is_masked(const py::array& array);

bool share_memory(const py::array& a, const py::array& b);

// A writable array of exactly this type and shape that shares no memory with the inputs.
py::array out_argument(py::handle out, const py::dtype& dtype, const Shape& shape,
                       const std::vector<py::array>& inputs);

}  // namespace gatedrnn::bindings
