// cpp/cuda/launch/launch.h for the emulation.
#pragma once

#include <cuda_runtime.h>

namespace gatedrnn::cuda {

template <class... Parameters>
cudaError_t start(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
                  Parameters... arguments) {
  emulated::run(grid, block, shared_bytes, false, [&] { kernel(arguments...); });
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t start_together(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
                           Parameters... arguments) {
  emulated::run(grid, block, shared_bytes, true, [&] { kernel(arguments...); });
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t allow_shared_bytes(void (*)(Parameters...), std::size_t) {
  return cudaSuccess;
}

inline char* shared_memory() { return emulated::shared_memory(); }

template <class T>
void send(T* place, T value) {
  *place = value;
}

template <class Pack, class T>
Pack load_sent(const T* place) {
  return *reinterpret_cast<const Pack*>(place);
}

inline void wait_a_little() { emulated::give_way(); }

template <class T>
void fetch(T* to, const T* from) {
  *to = *from;
}
inline void fetch_16_bytes(void* to, const void* from, bool exists) {
  if (exists)
    std::memcpy(to, from, 16);
  else
    std::memset(to, 0, 16);
}
inline void end_of_fetch() {}
inline void await_fetched() {}
inline void await_fetched_but_one() {}

inline void arrive_release(unsigned* place) { ++*place; }
inline unsigned load_acquire(const unsigned* place) { return *place; }

}  // namespace gatedrnn::cuda
