#include "gatedrnn/streaming_stores.h"

#include <algorithm>
#include <cstdint>

#include "gatedrnn/sizes.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace gatedrnn {

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
