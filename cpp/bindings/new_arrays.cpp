#include "new_arrays.h"

#include <memory>
#include <vector>

#include "gatedrnn/buffer.h"

namespace gatedrnn::bindings {

py::array new_aligned_array(const py::dtype& dtype, const Shape& shape) {
  constexpr Index huge_bytes = 4 << 20;  // as NumPy's own
  const py::ssize_t elements = shape.elements();
  if (elements > PY_SSIZE_T_MAX / dtype.itemsize()) throw std::bad_alloc();
  auto buffer = std::make_unique<Buffer<char>>(elements * dtype.itemsize(), huge_bytes);
  char* const data = buffer->data();
  const py::capsule owner(buffer.get(), [](void* unused) { delete static_cast<Buffer<char>*>(unused); });
  buffer.release();
  return py::array(dtype, std::vector<py::ssize_t>(shape.begin(), shape.end()), data, owner);
}

}  // namespace gatedrnn::bindings
