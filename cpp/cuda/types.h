// The types of stored values, the type that sums are made in, and conversions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>  // whose fma has overloads in the global namespace too

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "gatedrnn/spec.h"

namespace gatedrnn::cuda {

// What x, h and the weights of products are stored as.
enum class Storage { float32, float64, float16, bfloat16 };

constexpr Index bytes_of(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

template <class S>
constexpr Storage storage_of = std::is_same_v<S, float>    ? Storage::float32
                               : std::is_same_v<S, double> ? Storage::float64
                               : std::is_same_v<S, __half> ? Storage::float16
                                                           : Storage::bfloat16;

// Sums, gates and c.
template <class S>
using Sum = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <class To, class From>
__host__ __device__ inline To converted(From value) {
  if constexpr (std::is_same_v<To, From>)
    return value;
  else if constexpr (std::is_same_v<From, __half>)
    return converted<To>(__half2float(value));
  else if constexpr (std::is_same_v<From, __nv_bfloat16>)
    return converted<To>(__bfloat162float(value));
  else if constexpr (std::is_same_v<To, __half>)
    return __float2half(static_cast<float>(value));
  else if constexpr (std::is_same_v<To, __nv_bfloat16>)
    return __float2bfloat16(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

// Calls `visit` with a value of the type that `storage` names.
template <class Visit>
auto with_type(Storage storage, Visit&& visit) {
  switch (storage) {
    case Storage::float64: return visit(double());
    case Storage::float16: return visit(__half());
    case Storage::bfloat16: return visit(__nv_bfloat16());
    default: return visit(float());
  }
}

// The arithmetic of the cells' mathematics (gatedrnn/cells) for one value: the operations of cells::Scalar, on both sides.
template <class Element>
struct Arithmetic {
  using T = Element;
  using V = T;
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

  __host__ __device__ static V set(T value) { return value; }
  __host__ __device__ static V madd(V a, V b, V c) { return ::fma(a, b, c); }
  __host__ __device__ static V add(V a, V b) { return a + b; }
  __host__ __device__ static V sub(V a, V b) { return a - b; }
  __host__ __device__ static V mul(V a, V b) { return a * b; }
  __host__ __device__ static V div(V a, V b) { return a / b; }
  __host__ __device__ static V min(V a, V b) { return b < a ? b : a; }  // a NaN in the first argument stays
  __host__ __device__ static V max(V a, V b) { return a < b ? b : a; }
  __host__ __device__ static V negate(V a) { return -a; }
  __host__ __device__ static V abs(V a) { return ::fabs(a); }
  __host__ __device__ static V copy_sign(V magnitude, V sign) { return ::copysign(magnitude, sign); }
  __host__ __device__ static V where_positive(V condition, V value) { return condition > 0 ? value : V(0); }
  template <int count>
  __host__ __device__ static V shift_left(V a) {
    Bits bits;
    memcpy(&bits, &a, sizeof bits);
    bits <<= count;
    memcpy(&a, &bits, sizeof bits);
    return a;
  }
};

}  // namespace gatedrnn::cuda
