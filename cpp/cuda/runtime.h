// The CUDA runtime with errors as exceptions, and memory that is given back by itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "gatedrnn/checked_bytes.h"
#include "plan.h"

namespace gatedrnn::cuda {

inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report it again
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw std::runtime_error(std::string("CUDA: ") + doing + ": " + cudaGetErrorString(status));
}

// Memory that stays with the process: the default pool would give it back whenever somebody waits for the device.
inline cudaMemPool_t memory_pool() {
  static std::mutex mutex;
  static std::map<int, cudaMemPool_t> pools;  // by device
  int device = 0;
  check(cudaGetDevice(&device), "asking for the device");
  const std::lock_guard lock(mutex);
  cudaMemPool_t& pool = pools[device];
  if (!pool) {
    cudaMemPoolProps properties{};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&pool, &properties), "making a memory pool");
    std::uint64_t everything = std::numeric_limits<std::uint64_t>::max();
    check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &everything), "making a memory pool");
  }
  return pool;
}

// Memory of the device in the order of a stream: usable by what the stream does after it was taken, and free for others after
// what the stream had been given by then.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(Index bytes, cudaStream_t stream) : bytes_(bytes), stream_(stream) {
    if (bytes == 0) return;
    check(cudaMallocFromPoolAsync(&data_, static_cast<std::size_t>(bytes), memory_pool(), stream), "taking memory");
  }
  DeviceMemory(DeviceMemory&& other) noexcept { swap(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    DeviceMemory gone(std::move(other));
    swap(gone);
    return *this;
  }
  ~DeviceMemory() {
    if (data_) cudaFreeAsync(data_, stream_);
  }

  void* data() const { return data_; }
  Index bytes() const { return bytes_; }
  // From now on in the order of another stream, which comes after the one before.
  void follow(cudaStream_t stream) { stream_ = stream; }

 private:
  void swap(DeviceMemory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(stream_, other.stream_);
  }

  void* data_ = nullptr;
  Index bytes_ = 0;
  cudaStream_t stream_ = nullptr;
};

// `count` values of the device.
template <class T>
class DeviceArray {
 public:
  DeviceArray() = default;
  DeviceArray(Index count, cudaStream_t stream) : count_(count), memory_(checked_bytes<T>(count), stream) {}

  T* data() const { return static_cast<T*>(memory_.data()); }
  Index size() const { return count_; }
  Index bytes() const { return memory_.bytes(); }

 private:
  Index count_ = 0;
  DeviceMemory memory_;
};

template <class T>
void clear(T* data, Index count, cudaStream_t stream) {
  if (count > 0)
    check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(count) * sizeof(T), stream), "clearing memory");
}

template <class T>
void fill_with_ones(T* data, Index count, cudaStream_t stream) {
  if (count > 0)
    check(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(count) * sizeof(T), stream), "filling memory");
}

inline void copy(void* to, const void* from, Index bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (bytes > 0) check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream), "copying memory");
}

// Rows that are `stride` bytes apart, next to each other.
inline void copy_rows(void* to, const void* from, Index stride, Index rows, Index bytes, cudaStream_t stream) {
  const auto width = static_cast<std::size_t>(bytes);
  if (rows > 0 && bytes > 0)
    check(cudaMemcpy2DAsync(to, width, from, static_cast<std::size_t>(stride), width, static_cast<std::size_t>(rows),
                            cudaMemcpyDeviceToDevice, stream),
          "copying rows");
}

inline cudaError_t try_to_follow(cudaStream_t first, cudaStream_t second) {
  if (first == second) return cudaSuccess;
  cudaEvent_t event = nullptr;
  cudaError_t status = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (status != cudaSuccess) return status;
  status = cudaEventRecord(event, first);
  if (status == cudaSuccess) status = cudaStreamWaitEvent(second, event, 0);
  cudaEventDestroy(event);
  return status;
}

// What `second` is given from now on comes after what `first` has been given.
inline void follow(cudaStream_t first, cudaStream_t second) {
  check(try_to_follow(first, second), "putting streams in order");
}

// While it lives, `later` works after what `earlier` had been given, and afterwards the other way round.
class Following {
 public:
  Following(cudaStream_t earlier, cudaStream_t later) : earlier_(earlier), later_(later) { follow(earlier, later); }
  ~Following() { try_to_follow(later_, earlier_); }  // what fails here fails in the next call too
  Following(const Following&) = delete;
  Following& operator=(const Following&) = delete;

 private:
  cudaStream_t earlier_, later_;
};

inline int current_device() {
  int number = 0;
  check(cudaGetDevice(&number), "asking for the device");
  return number;
}

inline bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking for the stream");
  return status != cudaStreamCaptureStatusNone;
}

// A stream of our own, which all threads may use in turns.
class OwnStream {
 public:
  OwnStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  ~OwnStream() { cudaStreamDestroy(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

inline DeviceLimits limits_of(int number) {
  const auto attribute = [number](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, number), "asking for the device's properties");
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          attribute(cudaDevAttrMaxRegistersPerBlock), attribute(cudaDevAttrCooperativeLaunch) != 0};
}

}  // namespace gatedrnn::cuda
