// A sum of products as fast as memory is read: NH (Black et al. 1999, UMAC), whose keys go on from block to block, so that words
// that change places are seen. A product is blind to one half where the other is its key, so all words are counted by exclusive
// or as well, which never misses the change of one.
#pragma once

#include <cstring>

#include "gatedrnn/kernel_table.h"
#include "isa_namespace.h"

namespace gatedrnn::GATEDRNN_ISA {

// The machine's own, also where tests have another width (simd.h).
#if defined(__AVX512F__)
constexpr int kHashVector = 64;
#elif defined(__AVX2__)
constexpr int kHashVector = 32;
#else
constexpr int kHashVector = 16;
#endif
typedef std::uint64_t HashWords __attribute__((vector_size(kHashVector)));

// Of the lower 32 bits of each word with the upper ones. Where a vector of 64-bit integers is multiplied, GCC 12 takes three
// products, not one.
GATEDRNN_INLINE HashWords product_of_halves(HashWords x) noexcept {
  const HashWords upper = x >> 32;
#if defined(__AVX512F__)
  return HashWords(_mm512_mul_epu32(__m512i(x), __m512i(upper)));
#elif defined(__AVX2__)
  return HashWords(_mm256_mul_epu32(__m256i(x), __m256i(upper)));
#elif defined(__SSE2__)
  return HashWords(_mm_mul_epu32(__m128i(x), __m128i(upper)));
#elif defined(__aarch64__)
  return HashWords(vmull_u32(vmovn_u64(uint64x2_t(x)), vmovn_u64(uint64x2_t(upper))));
#else
  return (x & 0xffffffffu) * upper;
#endif
}

inline void hash_blocks(const unsigned char* data, Index blocks, Hash& hash) noexcept {
  constexpr int count = kHashBlock / sizeof(HashWords);
  constexpr Index ahead = 1024;  // the hardware's prefetching ends with each page
  HashWords sums[count], all{};
  std::memcpy(sums, hash.sums, sizeof sums);
  HashWords key = HashWords{} + hash.key;
  for (Index block = 0; block < blocks; ++block, data += kHashBlock) {
    for (Index line = 0; line < kHashBlock; line += 64) __builtin_prefetch(data + line + ahead);
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) {
      HashWords words;
      std::memcpy(&words, data + i * sizeof words, sizeof words);
      words ^= key;
      all ^= words;
      sums[i] += product_of_halves(words);
    }
    key += 0x9e3779b97f4a7c15u;
  }
  std::memcpy(hash.sums, sums, sizeof sums);
  for (std::size_t i = 0; i < sizeof all / sizeof hash.all; ++i) hash.all ^= all[i];
  hash.key = key[0];
}

}  // namespace gatedrnn::GATEDRNN_ISA
