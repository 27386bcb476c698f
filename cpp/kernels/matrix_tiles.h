// The registers of Intel's matrix unit, AMX: eight tiles of up to 16 rows of 64 bytes. (Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 1, chapter 18.)
#pragma once

#include <cstdint>

#include "gatedrnn/spec.h"
#include "isa_namespace.h"

#ifdef GATEDRNN_TEST_TILES
#include GATEDRNN_TEST_TILES  // a matrix unit that the machine at hand does not have
#else

namespace gatedrnn::GATEDRNN_ISA {

struct Tiles {
  struct alignas(64) Shapes {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {};
    std::uint8_t rows[16] = {};
  };

  static GATEDRNN_INLINE void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
  static GATEDRNN_INLINE void release() { asm volatile("tilerelease"); }

  // What the compiler keeps of memory in registers it writes before this, and reads again after it. Loads do not say what they read.
  static GATEDRNN_INLINE void fence() { asm volatile("" ::: "memory"); }

  template <int tile>
  static GATEDRNN_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }
  // Rows that many bytes apart.
  template <int tile>
  static GATEDRNN_INLINE void load(const void* from, Index stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile));
  }
  template <int tile>
  static GATEDRNN_INLINE void store(void* to, Index stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
  }

  // sums += a b, where a row of b has as many rows of the matrix as values fit into 32 bits: [column][value].
  template <int sums, int a, int b>
  static GATEDRNN_INLINE void add_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
  template <int sums, int a, int b>
  static GATEDRNN_INLINE void add_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(a), "i"(b));
  }
};

}  // namespace gatedrnn::GATEDRNN_ISA

#endif
