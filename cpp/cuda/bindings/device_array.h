// Arrays in the device's memory, as Python sees them: our own, and those of others by DLPack or __cuda_array_interface__.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <vector>

#include "../runtime.h"
#include "../types.h"

namespace gatedrnn::cuda {

namespace py = pybind11;

// Shape and strides count values.
struct ArrayView {
  void* data = nullptr;
  Storage storage = Storage::float32;
  std::vector<Index> shape, strides;

  int axes() const { return static_cast<int>(shape.size()); }
  Index size() const;
  bool contiguous() const;
};

std::vector<Index> contiguous_strides(const std::vector<Index>& shape);
std::string text(const std::vector<Index>& shape);
const char* name_of(Storage storage);

// An array whose memory is ours, or somebody's who is kept alive.
class Array {
 public:
  // New memory in the order of the stream.
  Array(std::vector<Index> shape, Storage storage, cudaStream_t stream);
  Array(const ArrayView& view, py::object owner) : view_(view), owner_(std::move(owner)) {}

  // A NumPy array's copy on the device, and the other way round.
  static std::shared_ptr<Array> from_numpy(const py::array& array, cudaStream_t stream);
  py::array to_numpy(cudaStream_t stream) const;

  // What `object` shares with others. What made its numbers comes before what `stream` is given from now on.
  static std::shared_ptr<Array> shared(const char* name, const py::object& object, cudaStream_t stream);

  // What owns the stream lives as long as the memory, which is given back in its order.
  void keep(py::object stream_owner) { owner_ = std::move(stream_owner); }

  const ArrayView& view() const { return view_; }
  int device() const { return device_; }
  cudaStream_t stream() const { return stream_; }
  py::dict array_interface() const;

 private:
  ArrayView view_;
  cudaStream_t stream_ = nullptr;  // that its numbers are made on
  py::object owner_;
  DeviceMemory memory_;
  int device_ = current_device();
};

// The capsule named "dltensor" that keeps the array alive. `stream` is the consumer's, in DLPack's numbers: what it is given from now
// on comes after what made the array; -1 asks for no order.
py::capsule to_dlpack(const std::shared_ptr<Array>& array, const py::object& stream);

}  // namespace gatedrnn::cuda
