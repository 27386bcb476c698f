#include "gatedrnn/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gatedrnn {

void* allocate_block(std::size_t bytes, std::size_t huge) {
  constexpr std::size_t huge_page = std::size_t(2) << 20;
  const bool ask = bytes >= huge;
  const std::size_t alignment = ask ? huge_page : kAlignment;
  void* const block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!block) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Only whole pages, so that no more memory is taken than is used. A refusal costs nothing but time.
  if (ask) madvise(block, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
  return block;
}

void stream_zeros(void* to, Index bytes) {
  char* at = static_cast<char*>(to);
  char* const end = at + bytes;
#if defined(__SSE2__)
  const auto misaligned = static_cast<Index>(reinterpret_cast<std::uintptr_t>(at) % kAlignment);
  const Index before = misaligned == 0 ? 0 : std::min(bytes, static_cast<Index>(kAlignment) - misaligned);
  at = std::fill_n(at, before, char(0));
  for (; end - at >= static_cast<Index>(kAlignment); at += kAlignment)
    for (std::size_t part = 0; part < kAlignment; part += sizeof(__m128i))
      _mm_stream_si128(reinterpret_cast<__m128i*>(at + part), _mm_setzero_si128());
#endif
  std::fill(at, end, char(0));
}

void publish_streamed() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace gatedrnn
