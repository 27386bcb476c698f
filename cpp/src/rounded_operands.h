// Scratch for the operands of a product in the network's format, where that is not the format of states and inputs.
#pragma once

#include "call.h"

namespace gatedrnn {

template <class T>
class RoundedOperands {
 public:
  explicit RoundedOperands(const Call<T>& call) : call_(call) {}

  // For products of at most so many rows and terms, one at a time for each thread.
  void carve(Arena& arena, Index rows, Index depth) {
    bytes_ = call_.kernels().layout.rounded_bytes(rows, depth);
    data_ = arena.take<unsigned char>(call_.plan.threads() * bytes_);
  }

  void* of(const Member& member) const { return data_ + member.thread() * bytes_; }

 private:
  const Call<T>& call_;
  Index bytes_ = 0;
  unsigned char* data_ = nullptr;
};

}  // namespace gatedrnn
