// How a kernel starts, and its shared memory. tests/cuda has the same for a machine without a device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstring>

namespace gatedrnn::cuda {

// The arguments have to have the kernel's own types.
template <class... Parameters>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                  Parameters... arguments) {
  void* addresses[] = {&arguments...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses, shared_bytes, stream);
}

// All blocks at once, so that they may wait for each other.
template <class... Parameters>
cudaError_t start_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                           cudaStream_t stream, Parameters... arguments) {
  void* addresses[] = {&arguments...};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, addresses, shared_bytes,
                                     stream);
}

template <class... Parameters>
cudaError_t allow_shared_bytes(void (*kernel)(Parameters...), std::size_t bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char gatedrnn_shared[];
  return gatedrnn_shared;
}

// Between blocks that run together. What is loaded may be of before or after a store, each value by itself.
template <class T>
__device__ inline void send(T* place, T value) {
  if constexpr (sizeof(T) == 2) {
    unsigned short bits;
    memcpy(&bits, &value, 2);
    asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(place), "h"(bits) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(place), "r"(__float_as_uint(value)) : "memory");
  } else {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(place), "l"(__double_as_longlong(value)) : "memory");
  }
}

// 16 bytes of values.
template <class Pack, class T>
__device__ inline Pack load_sent(const T* place) {
  ulonglong2 bits;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(bits.x), "=l"(bits.y) : "l"(place) : "memory");
  Pack pack;
  memcpy(&pack, &bits, sizeof pack);
  return pack;
}

__device__ inline void wait_a_little() {}

// To shared memory, at once or by await_fetched().
template <class T>
__device__ inline void fetch(T* to, const T* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "n"(sizeof(T))
               : "memory");
#else
  *to = *from;
#endif
}
// Past the first-level cache, which does not see what other blocks wrote; zeros where nothing exists.
__device__ inline void fetch_16_bytes(void* to, const void* from, bool exists) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(from), "r"(exists ? 16 : 0)
      : "memory");
#else
  *static_cast<uint4*>(to) = exists ? __ldcg(static_cast<const uint4*>(from)) : uint4{};
#endif
}
// What a thread has fetched since the last end belongs together.
__device__ inline void end_of_fetch() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
__device__ inline void await_fetched() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
__device__ inline void await_fetched_but_one() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group 1;" ::: "memory");
#endif
}

// A counter that all blocks see: who finds it raised sees what was written before.
__device__ inline void arrive_release(unsigned* place) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(place) : "memory");
}
__device__ inline unsigned load_acquire(const unsigned* place) {
  unsigned value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
  return value;
}

}  // namespace gatedrnn::cuda
