#include "gatedrnn/memory.h"

#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gatedrnn {

void* allocate_block(std::size_t bytes) {
  constexpr std::size_t huge_page = std::size_t(2) << 20;
  // Not for less: weights that just fit into second-level caches lost up to a tenth.
  const bool huge = bytes >= 4 * huge_page;
  const std::size_t alignment = huge ? huge_page : kAlignment;
  void* const block = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!block) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  // Only whole pages, so that no more memory is taken than is used. A refusal costs nothing but time.
  if (huge) madvise(block, bytes / huge_page * huge_page, MADV_HUGEPAGE);
#endif
  return block;
}

}  // namespace gatedrnn
