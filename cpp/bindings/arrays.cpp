#include "arrays.h"

#include <algorithm>
#include <new>

namespace gatedrnn::bindings {

py::ssize_t Shape::elements() const {
  py::ssize_t product = 1;
  for (const py::ssize_t size : *this)
    if (__builtin_mul_overflow(product, size, &product)) throw std::bad_alloc();
  return product;
}

std::string text(const py::ssize_t* begin, const py::ssize_t* end) {
  std::string joined = "(";
  for (const py::ssize_t* size = begin; size != end; ++size)
    joined += (size == begin ? "" : ", ") + std::to_string(*size);
  return joined + (end - begin == 1 ? ",)" : ")");
}

bool has_shape(const py::array& array, const Shape& shape) {
  return array.ndim() == shape.size() && std::equal(shape.begin(), shape.end(), array.shape());
}

std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

void refuse_type(const char* name, const std::string& expected, const std::string& got) {
  throw py::type_error(std::string(name) + ": expected " + expected + ", got " + got);
}

void refuse_value(const char* name, const std::string& expected, const std::string& got) {
  throw py::value_error(std::string(name) + ": expected " + expected + ", got " + got);
}

bool is_of_range(const py::error_already_set& error) {
  return error.matches(PyExc_ArithmeticError) || error.matches(PyExc_Warning);
}

UnderflowIgnored::UnderflowIgnored()
    : context_(py::module_::import("numpy").attr("errstate")(py::arg("under") = "ignore")) {
  context_.attr("__enter__")();
}

UnderflowIgnored::~UnderflowIgnored() {
  try {
    context_.attr("__exit__")(py::none(), py::none(), py::none());
  } catch (py::error_already_set& error) {
    error.discard_as_unraisable("gatedrnn: numpy.errstate");
  }
}

void refuse_conversion(const char* name, const py::dtype& dtype, const py::error_already_set& error) {
  if (!is_of_range(error)) throw error;
  refuse_value(name, "numbers in the range of " + std::string(py::str(dtype)), std::string(py::str(error.value())));
}

namespace {

bool is_native(const py::dtype& dtype) {
  const char order = dtype.byteorder();
  return order == '=' || order == '|';
}

// A list, tuple or range.
bool is_list(py::handle object) {
  return py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object) || PyRange_Check(object.ptr());
}

// Whether what NumPy made objects or floats of are integers, of which some are too large for it.
bool has_huge_integers(py::handle object) {
  if (PyLong_Check(object.ptr())) return true;
  if (!is_list(object)) return false;
  const auto is_int = [](py::handle item) { return PyIndex_Check(item.ptr()) != 0; };
  return std::all_of(object.begin(), object.end(), is_int);
}

// The first and one past the last byte that the array touches.
std::pair<const char*, const char*> extent(const py::array& array) {
  const char* low = static_cast<const char*>(array.data());
  const char* high = low + array.itemsize();
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) {
    const py::ssize_t reach = (array.shape(axis) - 1) * array.strides(axis);
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

// Whether two elements may be the same memory: an axis must step over all that the axes of smaller steps cover.
bool overlaps_itself(const py::array& array) {
  if (array.size() == 0) return false;
  std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;  // stride, shape
  for (py::ssize_t axis = 0; axis < array.ndim(); ++axis)
    if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
  std::sort(axes.begin(), axes.end());
  py::ssize_t covered = array.itemsize();
  for (const auto& [stride, shape] : axes) {
    if (stride < covered) return true;
    covered += stride * (shape - 1);
  }
  return false;
}

}  // namespace

bool is_masked(const py::array& array) {
  if (Py_TYPE(array.ptr()) == py::detail::npy_api::get().PyArray_Type_) return false;
  return py::isinstance(array, py::module_::import("numpy.ma").attr("MaskedArray"));
}

bool share_memory(const py::array& a, const py::array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const auto [a_low, a_high] = extent(a);
  const auto [b_low, b_high] = extent(b);
  if (a_high <= b_low || b_high <= a_low) return false;
  // Interleaved views may still be disjoint; a bounded search, and on giving up they count as shared.
  try {
    return py::module_::import("numpy").attr("shares_memory")(a, b, 10000).cast<bool>();
  } catch (py::error_already_set&) {
    return true;
  }
}

py::array float_array(const char* name, py::handle object) {
  constexpr const char* expected = "a NumPy array of floating-point numbers";
  if (!py::isinstance<py::array>(object)) refuse_type(name, expected, type_name(object));
  auto array = py::reinterpret_borrow<py::array>(object);
  if (is_masked(array)) refuse_type(name, "a NumPy array without a mask", type_name(object));
  const py::dtype dtype = array.dtype();
  if (dtype.kind() != 'f' || dtype.itemsize() > 8) refuse_type(name, expected, "dtype " + std::string(py::str(dtype)));
  if (!is_native(dtype)) refuse_type(name, "native byte order", "dtype " + std::string(py::str(dtype)));
  return array;
}

std::pair<py::object, py::object> state_pair(const char* name, py::handle state) {
  constexpr const char* expected = "a pair (h, c)";
  if (!py::isinstance<py::tuple>(state) && !py::isinstance<py::list>(state))
    refuse_type(name, expected, type_name(state));
  const auto pair = py::reinterpret_borrow<py::sequence>(state);
  if (pair.size() != 2) refuse_value(name, expected, std::to_string(pair.size()) + " items");
  return {pair[0], pair[1]};
}

std::vector<Index> integers(const char* name, const std::string& expected, py::handle object, Index first, Index last) {
  py::array array;
  try {
    array = py::array(py::module_::import("numpy").attr("asarray")(object));
  } catch (py::error_already_set&) {
    refuse_value(name, expected, "a ragged or unreadable " + type_name(object));
  }
  const py::dtype dtype = array.dtype();
  const bool given_array = py::isinstance<py::array>(object), empty_list = array.size() == 0 && !given_array;
  if (given_array && is_masked(py::reinterpret_borrow<py::array>(object)))
    refuse_type(name, "integers without a mask", type_name(object));
  const bool integers_lost = dtype.kind() == 'O' || dtype.kind() == 'f';
  if (integers_lost && !empty_list && has_huge_integers(object))
    refuse_value(name, expected, "one of more than 64 bits");
  if (!empty_list && ((dtype.kind() != 'i' && dtype.kind() != 'u') || !is_native(dtype)))
    refuse_type(name, expected,
                given_array ? "dtype " + std::string(py::str(dtype))
                            : type_name(object) + " of " + std::string(py::str(dtype)));
  if (array.ndim() > 1) refuse_value(name, expected, "shape " + shape_text(array));
  const auto values = contiguous<std::int64_t>(name, array);
  std::vector<Index> checked(values.data(), values.data() + values.size());
  for (std::size_t i = 0; i < checked.size(); ++i)
    if (checked[i] < first || checked[i] > last)
      refuse_value(name, expected,
                   std::string(py::str(array.attr("flat")[py::int_(i)])) +
                       (array.ndim() ? " at position " + std::to_string(i) : ""));
  return checked;
}

std::optional<std::vector<Index>> lengths_argument(py::handle lengths, Index batch, Index steps) {
  if (lengths.is_none()) return std::nullopt;
  const std::string expected = std::to_string(batch) + " integers in 0 .. " + std::to_string(steps);
  if (!py::isinstance<py::array>(lengths) && !is_list(lengths)) refuse_type("lengths", expected, type_name(lengths));
  if (py::isinstance<py::array>(lengths) && py::reinterpret_borrow<py::array>(lengths).ndim() != 1)
    refuse_value("lengths", expected, "shape " + shape_text(py::reinterpret_borrow<py::array>(lengths)));
  std::vector<Index> checked = integers("lengths", expected, lengths, 0, steps);
  if (static_cast<Index>(checked.size()) != batch)
    refuse_value("lengths", expected, std::to_string(checked.size()) + " integers");
  return checked;
}

py::array out_argument(py::handle out, const py::dtype& dtype, const Shape& shape,
                       const std::vector<py::array>& inputs) {
  const auto expected = [&] {  // in words, only when needed
    return "a writable NumPy array of " + std::string(py::str(dtype)) + " and shape " + text(shape);
  };
  if (!py::isinstance<py::array>(out)) refuse_type("out", expected(), type_name(out));
  auto array = py::reinterpret_borrow<py::array>(out);
  if (is_masked(array)) refuse_type("out", expected(), type_name(out));
  if (!array.dtype().is(dtype) && !array.dtype().equal(dtype))
    refuse_type("out", expected(), "dtype " + std::string(py::str(array.dtype())));
  if (!has_shape(array, shape)) refuse_value("out", expected(), "shape " + shape_text(array));
  if (!array.writeable()) refuse_value("out", expected(), "a read-only array");
  if (overlaps_itself(array)) refuse_value("out", expected(), "an array whose elements share memory");
  for (const py::array& input : inputs)
    if (share_memory(array, input)) refuse_value("out", "memory of its own", "an array that overlaps an input");
  return array;
}

}  // namespace gatedrnn::bindings
