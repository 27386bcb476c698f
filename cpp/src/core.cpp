#include "gatedrnn/core.h"

#include <algorithm>
#include <fstream>
#include <string>

#include "gatedrnn/cpu_features.h"

#if defined(__linux__)
#include <unistd.h>
#endif

namespace gatedrnn {
namespace {

#if defined(__linux__)
// Of the first processor, in bytes, as the kernel lists its caches, or else as the C library knows them (which takes all last levels
// of an AMD processor for one); 0 where neither does.
Index cache_size(int level) {
  for (int index = 0; index < 8; ++index) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index);
    std::ifstream level_file(folder + "/level"), type_file(folder + "/type"), size_file(folder + "/size");
    int listed = 0;
    std::string type;
    Index kibibytes = 0;
    if (!(level_file >> listed) || !(type_file >> type) || !(size_file >> kibibytes)) continue;
    if (listed == level && type != "Instruction") return kibibytes << 10;
  }
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  constexpr int names[] = {_SC_LEVEL1_DCACHE_SIZE, _SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE};
  return std::max<Index>(0, sysconf(names[level - 1]));
#else
  return 0;
#endif
}
#else
Index cache_size(int) { return 0; }
#endif

// Vectors that a core multiplies and adds in a cycle, and their bytes.
void set_rates(Core& core) {
  const CpuRegisters registers = read_cpu_registers();
#if defined(__aarch64__)
  core.madd_vectors = is_wide_arm(registers) ? 4 : 2;
  core.madd_bytes = 16 * core.madd_vectors;
#else
  constexpr Index two_widest_vectors = 128;
  core.madd_bytes = is_zen_3_or_4(registers) ? two_widest_vectors / 2 : two_widest_vectors;
#endif
}

// Where nobody tells.
#if defined(__aarch64__)
constexpr Index kUsualL1 = 64 << 10, kUsualL2 = 1 << 20, kUsualL3 = 32 << 20;
#else
constexpr Index kUsualL1 = 32 << 10, kUsualL2 = 512 << 10, kUsualL3 = 8 << 20;
#endif

Core read_core() {
  const auto cache = [](int level, Index otherwise) {
    const Index size = cache_size(level);
    return size > 0 ? size : otherwise;
  };
  Core core = {cache(1, kUsualL1), cache(2, kUsualL2), cache(3, kUsualL3), 0};
  set_rates(core);
  core.l2 = std::max(core.l2, core.l1);
  core.l3 = std::max(core.l3, core.l2);
  return core;
}

}  // namespace

const Core& core() {
  static const Core core = read_core();
  return core;
}

}  // namespace gatedrnn
