// The vector at the end of a row, where memory may end before the vector does.
#pragma once

#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

// Instructions that leave lanes alone: a store of single values that a load of the vector follows makes it wait.
#if defined(__AVX512F__) && !defined(GATEDRNN_TEST_SIMD)
#define GATEDRNN_MASKS

GATEDRNN_INLINE unsigned first_lanes(Index count) { return _bzhi_u32(~0u, static_cast<unsigned>(count)); }
GATEDRNN_INLINE __m512 load_masked(const float* p, Index count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>(first_lanes(count)), p);
}
GATEDRNN_INLINE __m512d load_masked(const double* p, Index count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p);
}
GATEDRNN_INLINE void store_masked(float* p, __m512 value, Index count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(first_lanes(count)), value);
}
GATEDRNN_INLINE void store_masked(double* p, __m512d value, Index count) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(first_lanes(count)), value);
}
#elif defined(__AVX2__) && !defined(GATEDRNN_TEST_SIMD)
#define GATEDRNN_MASKS

alignas(64) constexpr std::int32_t kMask32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
alignas(64) constexpr std::int64_t kMask64[8] = {-1, -1, -1, -1};

GATEDRNN_INLINE __m256i mask(const void* all, Index bytes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const char*>(all) + 32 - bytes));
}
GATEDRNN_INLINE __m256 load_masked(const float* p, Index count) {
  return _mm256_maskload_ps(p, mask(kMask32, 4 * count));
}
GATEDRNN_INLINE __m256d load_masked(const double* p, Index count) {
  return _mm256_maskload_pd(p, mask(kMask64, 8 * count));
}
GATEDRNN_INLINE void store_masked(float* p, __m256 value, Index count) {
  _mm256_maskstore_ps(p, mask(kMask32, 4 * count), value);
}
GATEDRNN_INLINE void store_masked(double* p, __m256d value, Index count) {
  _mm256_maskstore_pd(p, mask(kMask64, 8 * count), value);
}
#endif

// The first `count` values of p, then zeros; all of them where count is more than a vector.
template <class S>
GATEDRNN_INLINE typename S::V load_first(const typename S::T* p, Index count) {
  if (count >= S::lanes) return S::load(p);
#ifdef GATEDRNN_MASKS
  return load_masked(p, count);
#else
  alignas(64) typename S::T values[S::lanes] = {};
  for (Index i = 0; i < count; ++i) values[i] = p[i];
  return S::load(values);
#endif
}

template <class S>
GATEDRNN_INLINE void store_first(typename S::T* p, typename S::V value, Index count) {
  if (count >= S::lanes) return S::store(p, value);
#ifdef GATEDRNN_MASKS
  store_masked(p, value, count);
#else
  alignas(64) typename S::T values[S::lanes];
  S::store(values, value);
  for (Index i = 0; i < count; ++i) p[i] = values[i];
#endif
}

// Past the caches where the vector is a line of them; a part of a line would go to memory on its own.
template <class S>
GATEDRNN_INLINE void stream_first(typename S::T* p, typename S::V value, Index count) {
  const bool whole_line = sizeof(value) == 64 && count >= S::lanes && reinterpret_cast<std::uintptr_t>(p) % 64 == 0;
  return whole_line ? S::stream(p, value) : store_first<S>(p, value, count);
}

}  // namespace gatedrnn::GATEDRNN_ISA
