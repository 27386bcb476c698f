#include "arrays.h"

#include <algorithm>
#include <new>
#include <numeric>

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
  constexpr char other = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '>' : '<';
  return dtype.byteorder() != other;
}

// A message of NumPy, or of who was to give it an array, without the class of the error.
std::string message_of(const py::error_already_set& error) { return std::string(py::str(error.value())); }

// What NumPy makes of `object`, and gives up on with an error that names the argument.
py::array read_by_numpy(const char* name, const std::string& expected, py::handle object) {
  try {
    return py::array(py::module_::import("numpy").attr("asarray")(object));
  } catch (py::error_already_set& error) {
    if (error.matches(PyExc_MemoryError) || !error.matches(PyExc_Exception)) throw;
    const std::string got = type_name(object) + " that NumPy cannot read: " + message_of(error);
    if (error.matches(PyExc_ValueError)) refuse_value(name, expected, got);  // such as lists of different lengths
    refuse_type(name, expected, got);
  }
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

// A masked array, or a list of such: NumPy would forget the masks.
bool has_masked(py::handle object) {
  if (py::isinstance<py::array>(object)) return is_masked(py::reinterpret_borrow<py::array>(object));
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) return false;
  return std::any_of(object.begin(), object.end(), [](py::handle item) {
    return py::isinstance<py::array>(item) && is_masked(py::reinterpret_borrow<py::array>(item));
  });
}

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
  constexpr const char* expected = "an array of floating-point numbers";
  const bool given_array = py::isinstance<py::array>(object);
  if (has_masked(object)) refuse_type(name, "an array without a mask", type_name(object));
  auto array = given_array ? py::reinterpret_borrow<py::array>(object) : read_by_numpy(name, expected, object);
  if (!given_array && array.ndim() == 0) refuse_type(name, expected, type_name(object));
  const py::dtype dtype = array.dtype();
  if (dtype.kind() != 'f')
    refuse_type(name, expected, (given_array ? "dtype " : type_name(object) + " of ") + std::string(py::str(dtype)));
  if (!is_native(dtype)) array = array.attr("astype")(dtype.attr("newbyteorder")("="));
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

bool has_state_shape(const py::array& array, const Shape& shape, bool lone) {
  if (has_shape(array, shape)) return true;
  const py::ssize_t layers = *shape.begin(), width = *(shape.end() - 1);
  return lone && has_shape(array, shape.size() == 2 ? Shape{layers, 1, width} : Shape{layers, width});
}

std::vector<Index> integers(const char* name, const std::string& expected, py::handle object, Index first, Index last,
                            bool one) {
  const py::array array = read_by_numpy(name, expected, object);
  const py::dtype dtype = array.dtype();
  const bool given_array = py::isinstance<py::array>(object), empty_list = array.size() == 0 && !given_array;
  if (has_masked(object)) refuse_type(name, "integers without a mask", type_name(object));
  const bool integers_lost = dtype.kind() == 'O' || dtype.kind() == 'f';
  if (integers_lost && !empty_list && has_huge_integers(object))
    refuse_value(name, expected, "one of more than 64 bits");
  if (!empty_list && dtype.kind() != 'i' && dtype.kind() != 'u')
    refuse_type(name, expected,
                given_array ? "dtype " + std::string(py::str(dtype))
                            : type_name(object) + " of " + std::string(py::str(dtype)));
  if (array.ndim() > 1 || (array.ndim() == 0 && !one && given_array))
    refuse_value(name, expected, "shape " + shape_text(array));
  if (array.ndim() == 0 && !one) refuse_type(name, expected, type_name(object));
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
  std::vector<Index> checked = integers("lengths", expected, lengths, 0, steps, false);
  if (static_cast<Index>(checked.size()) != batch)
    refuse_value("lengths", expected, std::to_string(checked.size()) + " integers");
  return checked;
}

std::optional<Array<bool>> flags_argument(const char* name, py::handle flags, const Shape& shape) {
  if (flags.is_none()) return std::nullopt;
  const std::string expected = "booleans of shape " + text(shape);
  if (has_masked(flags)) refuse_type(name, "booleans without a mask", type_name(flags));
  const py::array array = read_by_numpy(name, expected, flags);
  const bool given_array = py::isinstance<py::array>(flags), empty_list = array.size() == 0 && !given_array;
  if (array.dtype().kind() != 'b' && !empty_list)
    refuse_type(name, expected,
                (given_array ? "dtype " : type_name(flags) + " of ") + std::string(py::str(array.dtype())));
  if (!has_shape(array, shape)) refuse_value(name, expected, "shape " + shape_text(array));
  return contiguous<bool>(name, array);
}

std::vector<Index> rows_with(bool flag, const char* name, py::handle flags, Index batch) {
  std::vector<Index> rows;
  if (const auto given = flags_argument(name, flags, {batch}))
    for (Index row = 0; row < batch; ++row)
      if (given->data()[row] == flag) rows.push_back(row);
  return rows;
}

std::vector<Index> lengths_of_step(py::handle mask, Index batch) {
  std::vector<Index> lengths;
  if (mask.is_none()) return lengths;
  lengths.assign(batch, 1);
  for (const Index row : rows_with(false, "mask", mask, batch)) lengths[row] = 0;
  return lengths;
}

std::vector<Index> rows_argument(py::handle rows, Index batch) {
  std::vector<Index> chosen;
  if (rows.is_none()) {
    chosen.resize(batch);
    std::iota(chosen.begin(), chosen.end(), Index(0));
    return chosen;
  }
  const std::string expected =
      "None, row numbers in 0 .. " + std::to_string(batch - 1) + " or " + std::to_string(batch) + " booleans";
  if (!PyLong_Check(rows.ptr()) && !has_masked(rows)) {
    const py::array array = read_by_numpy("rows", expected, rows);
    if (array.dtype().kind() == 'b' && array.ndim() > 0) {
      if (!has_shape(array, {batch})) refuse_value("rows", expected, "booleans of shape " + shape_text(array));
      const auto flags = contiguous<bool>("rows", array);
      for (Index row = 0; row < batch; ++row)
        if (flags.data()[row]) chosen.push_back(row);
      return chosen;
    }
  }
  return integers("rows", expected, rows, 0, batch - 1);
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
