// The arrays of one call, wherever they are.
#pragma once

#include <pybind11/numpy.h>

#include "../../bindings/arrays.h"
#include "../../bindings/gil_release.h"
#include "../network.h"
#include "device_array.h"

namespace gatedrnn::cuda {

using bindings::refuse_type;
using bindings::refuse_value;
using Sizes = std::vector<Index>;

inline cudaStream_t stream_of(std::uintptr_t number) { return reinterpret_cast<cudaStream_t>(number); }

// The arrays of one call: all of them in the host's memory, or all on the device. Those of the host are copied to the device
// as they come, and the results back by `finish`.
class Transfer {
 public:
  // `x` decides. `host_storage` is the module's type.
  Transfer(const py::object& x, Storage host_storage, std::uintptr_t stream)
      : host_(py::isinstance<py::array>(x)),
        host_storage_(host_storage),
        stream_(host_ ? cudaStreamPerThread : stream_of(stream)) {}

  bool host() const { return host_; }
  cudaStream_t stream() const { return stream_; }

  // What an argument holds, its features next to each other.
  ArrayView input(const char* name, const py::object& object) {
    if (!host_) {
      const std::shared_ptr<Array> array = Array::shared(name, object, stream_);
      kept_.push_back(array);
      const ArrayView& view = array->view();
      if (view.axes() > 0 && view.shape.back() > 1 && view.strides.back() != 1)
        refuse_value(name, "features next to each other in memory",
                     "a stride of " + std::to_string(view.strides.back()));
      return view;
    }
    py::array given = bindings::float_array(name, object);
    const py::array contiguous = host_storage_ == Storage::float64
                                     ? py::array(bindings::contiguous<double>(name, given))
                                     : py::array(bindings::contiguous<float>(name, given));
    kept_.push_back(Array::from_numpy(contiguous, stream_));
    return kept_.back()->view();
  }

  // The same in memory that nobody else writes into.
  ArrayView copied(const char* name, const py::object& object) {
    const ArrayView from = input(name, object);
    if (host_ || from.axes() < 2) return from;
    const auto array = std::make_shared<Array>(from.shape, from.storage, stream_);
    kept_.push_back(array);
    const ArrayView& to = array->view();
    const Index width = from.shape.back() * bytes_of(from.storage), outer = from.axes() == 3 ? from.shape[0] : 1;
    const Index rows = from.shape[from.axes() - 2], row = from.strides[from.axes() - 2] * bytes_of(from.storage);
    for (Index i = 0; i < outer && rows > 0; ++i) {
      auto* const at = static_cast<char*>(to.data) + i * rows * width;
      const auto* const source =
          static_cast<const char*>(from.data) + (outer > 1 ? i * from.strides[0] : 0) * bytes_of(from.storage);
      if (row == width || rows == 1)
        copy(at, source, rows * width, cudaMemcpyDeviceToDevice, stream_);
      else if (row > width)
        copy_rows(at, source, row, rows, width, stream_);
      else  // rows that share memory
        for (Index r = 0; r < rows; ++r)
          copy(at + r * width, source + r * row, width, cudaMemcpyDeviceToDevice, stream_);
    }
    return to;
  }

  // A new array of this shape: on the host in the module's type, on the device in that of x.
  ArrayView output(const Sizes& shape, Storage device_storage, py::object& object) {
    const auto array = std::make_shared<Array>(shape, host_ ? host_storage_ : device_storage, stream_);
    kept_.push_back(array);
    object = py::cast(array);
    if (host_) results_.push_back({array, &object});
    return array->view();
  }

  // An array of the caller's for a result. On the host it is filled by `finish`.
  ArrayView output_into(const char* name, const py::object& given, const Sizes& shape, Storage storage) {
    if (!host_) {
      const std::shared_ptr<Array> array = Array::shared(name, given, stream_);
      const ArrayView& view = array->view();
      if (view.shape != shape) refuse_value(name, "shape " + text(shape), "shape " + text(view.shape));
      if (view.storage != storage) refuse_type(name, name_of(storage), name_of(view.storage));
      if (!view.contiguous()) refuse_value(name, "a C-contiguous array", "strides");
      kept_.push_back(array);
      return view;
    }
    const auto array = std::make_shared<Array>(shape, storage, stream_);
    kept_.push_back(array);
    filled_.push_back({array, given});
    return array->view();
  }

  // For results of the host: waits for them.
  void finish() {
    if (!host_) return;
    {
      const bindings::GilRelease release;
      check(cudaStreamSynchronize(stream_), "waiting for the results");
    }
    for (const auto& [array, object] : results_) *object = array->to_numpy(stream_);
    for (const auto& [array, given] : filled_) given[py::ellipsis()] = array->to_numpy(stream_);
  }

  // What has to live as long as a tape.
  std::vector<std::shared_ptr<Array>> kept() const { return kept_; }

 private:
  const bool host_;
  const Storage host_storage_;
  const cudaStream_t stream_;
  std::vector<std::shared_ptr<Array>> kept_;
  std::vector<std::pair<std::shared_ptr<Array>, py::object*>> results_;
  std::vector<std::pair<std::shared_ptr<Array>, py::object>> filled_;
};

inline AnyFeatures features_of(const ArrayView& view, bool unbatched, bool batch_first) {
  const bool swapped = !unbatched && batch_first;
  return {view.data, view.storage, view.strides[swapped ? 1 : 0], unbatched ? 0 : view.strides[swapped ? 0 : 1]};
}

}  // namespace gatedrnn::cuda
