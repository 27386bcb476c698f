// Multiplicative hashes side by side, as fast as memory is read. Each step is a bijection of its lane, so that a change of one
// word is never missed. It multiplies twice: the sign of a number, its top bit, goes through one product as it is, and another
// word could take the change back whatever the hash so far (Appleby 2008, MurmurHash3, ends with the same pair of steps).
#pragma once

#include <cstring>

#include "gatedrnn/kernel_table.h"
#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

inline void hash_blocks(const unsigned char* data, Index blocks, std::uint32_t* lanes) noexcept {
  typedef std::uint32_t Words __attribute__((vector_size(sizeof(Simd<float>::V))));
  constexpr int count = kHashBlock / sizeof(Words);
  constexpr Index ahead = 1024;  // the hardware's prefetching ends with each page
  Words hash[count];
  std::memcpy(hash, lanes, sizeof hash);
  for (Index block = 0; block < blocks; ++block, data += kHashBlock) {
    for (Index line = 0; line < kHashBlock; line += 64) __builtin_prefetch(data + line + ahead);
#pragma GCC unroll 16
    for (int i = 0; i < count; ++i) {
      Words words;
      std::memcpy(&words, data + i * sizeof words, sizeof words);
      hash[i] = (hash[i] ^ words) * 0x9e3779b1u;
      hash[i] = (hash[i] ^ hash[i] >> 15) * 0x85ebca77u;
      hash[i] ^= hash[i] >> 13;
    }
  }
  std::memcpy(lanes, hash, sizeof hash);
}

}  // namespace gatedrnn::GATEDRNN_ISA
