// How a kernel starts, and its shared memory. tests/cuda has the same for a machine without a device.
#pragma once

#include <cuda_runtime.h>

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

// What another block wrote before the last barrier: past the first-level cache, which does not see it.
template <class T>
__device__ inline T load_from_others(const T* place) {
  return __ldcg(place);
}

__device__ inline unsigned load_acquire(const unsigned* place) {
  unsigned value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
  return value;
}

// Past the first-level cache too, straight to shared memory where the device can.
__device__ inline void fetch_16_bytes(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#else
  *static_cast<uint4*>(to) = __ldcg(static_cast<const uint4*>(from));
#endif
}
__device__ inline void await_fetched() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ inline void arrive_release(unsigned* place) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(place) : "memory");
}

__device__ inline void wait_a_little() { __nanosleep(20); }

}  // namespace gatedrnn::cuda
