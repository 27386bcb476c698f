// Memory that a call needs only while it runs.
#pragma once

#include <spoil.h>

#include <vector>

#include "runtime.h"

namespace gatedrnn::cuda {

// `count` values of memory that is somebody else's.
template <class T>
class Scratched {
 public:
  Scratched() = default;
  Scratched(T* data, Index count) : data_(data), count_(count) {}

  T* data() const { return data_; }
  Index size() const { return count_; }
  Index bytes() const { return count_ * static_cast<Index>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  Index count_ = 0;
};

// Memory for what a call needs only while it runs. It stays from call to call, since taking and freeing pieces one by one costs
// microseconds each; what a call needs beyond it is taken for the call.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (done_) cudaEventDestroy(done_);
  }

  // Whether a call on this stream would wait for none on another.
  bool is_free_for(cudaStream_t stream) const {
    return !done_ || stream == stream_ || cudaEventQuery(done_) == cudaSuccess;
  }

  void begin(cudaStream_t stream) {
    if (done_)
      check(cudaStreamWaitEvent(stream, done_, 0), "waiting for a stream");
    else
      check(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "making an event");
    begun_ = true;
    stream_ = stream;
    memory_.follow(stream);
    if (most_ > memory_.bytes()) {
      memory_ = {};
      memory_ = DeviceMemory(most_, stream);
    }
  }
  void end() {
    more_.clear();
    used_ = 0;
    if (begun_) cudaEventRecord(done_, stream_);
    begun_ = false;
  }

  template <class T>
  Scratched<T> take(Index count) {
    if (count == 0) return {};
    return {static_cast<T*>(take_bytes(round_up(checked_bytes<T>(count), kAlignment))), count};
  }

  // What is taken while it lives is free again afterwards, for what the stream is given then.
  class Scope {
   public:
    explicit Scope(Scratch& scratch) : scratch_(scratch), used_(scratch.used_), more_(scratch.more_.size()) {}
    ~Scope() {
      scratch_.used_ = used_;
      scratch_.more_.resize(more_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Scratch& scratch_;
    Index used_;
    std::size_t more_;
  };

 private:
  static constexpr Index kAlignment = 256;
  static constexpr Index kMostKept = Index(256) << 20;

  void* take_bytes(Index bytes) {
    void* taken;
    if (used_ + bytes <= memory_.bytes()) {
      taken = static_cast<char*>(memory_.data()) + used_;
      used_ += bytes;
    } else {
      more_.emplace_back(bytes, stream_);
      taken = more_.back().data();
    }
    Index all = used_;
    for (const DeviceMemory& piece : more_) all += piece.bytes();
    if (all <= kMostKept) most_ = std::max(most_, all);
    spoil(taken, bytes);
    return taken;
  }

  cudaEvent_t done_ = nullptr;  // what the last call gave to its stream
  cudaStream_t stream_ = nullptr;
  bool begun_ = false;
  DeviceMemory memory_;
  std::vector<DeviceMemory> more_;
  Index used_ = 0, most_ = 0;
};

}  // namespace gatedrnn::cuda
