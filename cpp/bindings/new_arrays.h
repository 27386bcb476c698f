// Arrays for what calls return.
#pragma once

#include "arrays.h"

namespace gatedrnn::bindings {

// A new C-contiguous array, its values not yet set, that begins with a cache line: kernels write whole vectors, each of which would
// else lie on two lines. (NumPy aligns to 16 bytes.) Its memory is that of an array that is gone, where there is one.
py::array new_aligned_array(const py::dtype& dtype, const Shape& shape);

// The same, but NumPy's own where it is too small for that to pay.
template <class T>
py::array new_array(const Shape& shape) {
  constexpr py::ssize_t large = (16 << 10) / sizeof(T);
  if (shape.elements() >= large) return new_aligned_array(py::dtype::of<T>(), shape);
  auto& numpy = py::detail::npy_api::get();
  PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype::of<T>().release().ptr(), shape.size(),
                                                shape.begin(), nullptr, nullptr, 0, nullptr);
  if (!array) throw py::error_already_set();
  return py::reinterpret_steal<py::array>(array);
}

}  // namespace gatedrnn::bindings
