#include "device_array.h"

#include <numeric>

#include "../../bindings/arrays.h"
#include "dlpack.h"

namespace gatedrnn::cuda {

using bindings::refuse_type;
using bindings::refuse_value;
using bindings::type_name;

Index ArrayView::size() const {
  return std::accumulate(shape.begin(), shape.end(), Index(1), std::multiplies<Index>());
}

bool ArrayView::contiguous() const {
  if (size() == 0) return true;
  const std::vector<Index> wanted = contiguous_strides(shape);
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    if (shape[axis] > 1 && strides[axis] != wanted[axis]) return false;
  return true;
}

std::vector<Index> contiguous_strides(const std::vector<Index>& shape) {
  std::vector<Index> strides(shape.size(), 1);
  for (std::size_t axis = shape.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * shape[axis];
  return strides;
}

std::string text(const std::vector<Index>& shape) {
  const std::vector<py::ssize_t> sizes(shape.begin(), shape.end());
  return bindings::text(sizes.data(), sizes.data() + sizes.size());
}

const char* name_of(Storage storage) {
  switch (storage) {
    case Storage::float64: return "float64";
    case Storage::float16: return "float16";
    case Storage::bfloat16: return "bfloat16";
    default: return "float32";
  }
}

Array::Array(std::vector<Index> shape, Storage storage, cudaStream_t stream) : stream_(stream) {
  view_.storage = storage;
  view_.strides = contiguous_strides(shape);
  view_.shape = std::move(shape);
  memory_ = DeviceMemory(checked_bytes<char>(view_.size() * bytes_of(storage)), stream);
  view_.data = memory_.data();
}

std::shared_ptr<Array> Array::from_numpy(const py::array& given, cudaStream_t stream) {
  const py::array array = bindings::float_array("array", given);
  const py::ssize_t size = array.dtype().itemsize();
  const Storage storage = size == 8 ? Storage::float64 : size == 2 ? Storage::float16 : Storage::float32;
  const py::array host = py::array::ensure(array, py::array::c_style);
  if (!host) throw py::error_already_set();
  auto result = std::make_shared<Array>(std::vector<Index>(host.shape(), host.shape() + host.ndim()), storage, stream);
  copy(result->view_.data, host.data(), host.nbytes(), cudaMemcpyHostToDevice, stream);
  check(cudaStreamSynchronize(stream), "copying to the device");
  return result;
}

py::array Array::to_numpy(cudaStream_t stream) const {
  if (!view_.contiguous()) refuse_value("array", "a contiguous one", "strides");
  if (view_.storage == Storage::bfloat16) refuse_type("array", "a type that NumPy has", "bfloat16");
  const std::vector<py::ssize_t> shape(view_.shape.begin(), view_.shape.end());
  py::array host(py::dtype(name_of(view_.storage)), shape);
  follow(stream_, stream);
  copy(host.mutable_data(), view_.data, host.nbytes(), cudaMemcpyDeviceToHost, stream);
  check(cudaStreamSynchronize(stream), "copying from the device");
  return host;
}

namespace {

Storage storage_of_dlpack(const char* name, const DLDataType& type) {
  if (type.lanes == 1 && type.code == kDLFloat && type.bits == 32) return Storage::float32;
  if (type.lanes == 1 && type.code == kDLFloat && type.bits == 64) return Storage::float64;
  if (type.lanes == 1 && type.code == kDLFloat && type.bits == 16) return Storage::float16;
  if (type.lanes == 1 && type.code == kDLBfloat && type.bits == 16) return Storage::bfloat16;
  refuse_type(name, "floating-point numbers of 16, 32 or 64 bits",
              "DLPack's type " + std::to_string(type.code) + " of " + std::to_string(type.bits) + " bits");
}

void check_device(const char* name, int number) {
  if (const int current = current_device(); number != current)
    refuse_value(name, "an array on the current device, " + std::to_string(current),
                 "one on device " + std::to_string(number));
}

// Streams in the numbers of DLPack and __cuda_array_interface__: 1 is the legacy default stream, 2 that of the thread.
std::uintptr_t number_of(cudaStream_t stream) { return stream ? reinterpret_cast<std::uintptr_t>(stream) : 1; }
cudaStream_t stream_numbered(std::uintptr_t number) {
  return number == 0 || number == number_of(nullptr) ? nullptr : reinterpret_cast<cudaStream_t>(number);
}

// Whether calls are given to the current stream of the object's library, so that there is nothing to wait for.
bool has_its_stream(const py::object& object) {
  const auto module = py::cast<std::string>(py::str(py::type::of(object).attr("__module__")));
  return module.rfind("torch", 0) == 0 || module.rfind("cupy", 0) == 0;
}

std::shared_ptr<Array> from_dlpack(const char* name, const py::object& object, cudaStream_t stream) {
  using namespace py::literals;
  const py::object consumer = has_its_stream(object) ? py::int_(-1) : py::int_(number_of(stream));
  const auto capsule = object.attr("__dlpack__")("stream"_a = consumer);
  auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
  if (!managed) throw py::error_already_set();
  const DLTensor& tensor = managed->dl_tensor;
  if (tensor.device.device_type != kDLCUDA && tensor.device.device_type != kDLCUDAManaged)
    refuse_type(name, "an array on the device", type_name(object) + " in the host's memory");
  check_device(name, tensor.device.device_id);
  ArrayView view;
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.storage = storage_of_dlpack(name, tensor.dtype);
  view.shape.assign(tensor.shape, tensor.shape + tensor.ndim);
  if (tensor.strides)
    view.strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  else
    view.strides = contiguous_strides(view.shape);
  return std::make_shared<Array>(view, capsule);  // which gives the tensor back when it goes
}

std::shared_ptr<Array> from_interface(const char* name, const py::object& object, cudaStream_t stream) {
  const py::dict interface = object.attr("__cuda_array_interface__");
  const auto type = py::cast<std::string>(interface["typestr"]);
  ArrayView view;
  if (type == "<f4")
    view.storage = Storage::float32;
  else if (type == "<f8")
    view.storage = Storage::float64;
  else if (type == "<f2")
    view.storage = Storage::float16;
  else
    refuse_type(name, "floating-point numbers of 16, 32 or 64 bits", "type " + type);
  view.data = reinterpret_cast<void*>(py::cast<std::uintptr_t>(py::tuple(interface["data"])[0]));
  for (const py::handle size : py::tuple(interface["shape"])) view.shape.push_back(py::cast<Index>(size));
  view.strides = contiguous_strides(view.shape);
  if (interface.contains("strides") && !interface["strides"].is_none()) {
    const py::tuple strides = interface["strides"];
    for (std::size_t axis = 0; axis < view.shape.size(); ++axis)
      view.strides[axis] = py::cast<Index>(strides[axis]) / bytes_of(view.storage);
  }
  if (interface.contains("stream") && !interface["stream"].is_none())
    follow(stream_numbered(py::cast<std::uintptr_t>(interface["stream"])), stream);
  return std::make_shared<Array>(view, object);
}

}  // namespace

std::shared_ptr<Array> Array::shared(const char* name, const py::object& object, cudaStream_t stream) {
  if (py::isinstance<Array>(object)) {
    const auto array = py::cast<std::shared_ptr<Array>>(object);
    follow(array->stream(), stream);
    return array;
  }
  if (py::isinstance<py::array>(object)) refuse_type(name, "an array on the device, like x", "a NumPy array");
  if (py::hasattr(object, "__dlpack__")) return from_dlpack(name, object, stream);
  if (py::hasattr(object, "__cuda_array_interface__")) return from_interface(name, object, stream);
  refuse_type(name, "an array on the device (DLPack or __cuda_array_interface__)", type_name(object));
}

py::dict Array::array_interface() const {
  if (view_.storage == Storage::bfloat16) throw py::attribute_error("__cuda_array_interface__ has no bfloat16");
  py::dict interface;
  py::tuple shape(view_.shape.size()), strides(view_.shape.size());
  for (std::size_t axis = 0; axis < view_.shape.size(); ++axis) {
    shape[axis] = view_.shape[axis];
    strides[axis] = view_.strides[axis] * bytes_of(view_.storage);
  }
  interface["shape"] = shape;
  interface["strides"] = strides;
  interface["typestr"] = "<f" + std::to_string(bytes_of(view_.storage));
  interface["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(view_.data), false);
  interface["version"] = 3;
  interface["stream"] = number_of(stream_);
  return interface;
}

py::capsule to_dlpack(const std::shared_ptr<Array>& array, const py::object& stream) {
  const auto number = stream.is_none() ? std::intptr_t(1) : py::cast<std::intptr_t>(stream);
  if (number >= 0) follow(array->stream(), stream_numbered(static_cast<std::uintptr_t>(number)));
  struct Managed {
    std::shared_ptr<Array> array;
    DLManagedTensor tensor;
  };
  const ArrayView& view = array->view();
  auto* managed = new Managed{array, {}};
  DLTensor& tensor = managed->tensor.dl_tensor;
  tensor.data = view.data;
  tensor.device = {kDLCUDA, array->device()};
  tensor.ndim = view.axes();
  tensor.dtype = {static_cast<std::uint8_t>(view.storage == Storage::bfloat16 ? kDLBfloat : kDLFloat),
                  static_cast<std::uint8_t>(8 * bytes_of(view.storage)), 1};
  tensor.shape = const_cast<std::int64_t*>(reinterpret_cast<const std::int64_t*>(view.shape.data()));
  tensor.strides = const_cast<std::int64_t*>(reinterpret_cast<const std::int64_t*>(view.strides.data()));
  managed->tensor.manager_ctx = managed;
  managed->tensor.deleter = [](DLManagedTensor* self) {
    const py::gil_scoped_acquire gil;  // the array may own a Python object
    delete static_cast<Managed*>(self->manager_ctx);
  };
  return py::capsule(&managed->tensor, "dltensor", [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return;  // somebody took it, and its deleter with it
    auto* tensor = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule, "dltensor"));
    tensor->deleter(tensor);
  });
}

}  // namespace gatedrnn::cuda
