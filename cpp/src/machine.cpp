#include "gatedrnn/machine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "gatedrnn/cpu_features.h"

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gatedrnn {

#define GATEDRNN_DECLARE_TABLE(isa) \
  namespace isa {                   \
  extern const KernelTable table;   \
  }
GATEDRNN_ISAS(GATEDRNN_DECLARE_TABLE)

namespace {

std::string names(const std::vector<const KernelTable*>& tables) {
  std::string joined;
  for (const KernelTable* table : tables) joined += (joined.empty() ? "" : ", ") + std::string(table->name);
  return joined;
}

const KernelTable* choose_table() {
  const std::vector<const KernelTable*> available = available_tables();
  const char* wanted = std::getenv("GATEDRNN_ISA");
  if (!wanted || !*wanted) return available.back();
  for (const KernelTable* table : available)
    if (std::string(wanted) == table->name) return table;
  throw std::invalid_argument("GATEDRNN_ISA: expected one of " + names(available) + " on this machine, got '" + wanted +
                              "'");
}

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

Core read_core() {
  const auto cache = [](int level, Index otherwise) {
    const Index size = cache_size(level);
    return size > 0 ? size : otherwise;
  };
  constexpr Index two_widest_vectors = 128;
  Core core = {cache(1, 32 << 10), cache(2, 512 << 10), cache(3, 8 << 20),
               is_zen_3_or_4(read_cpu_registers()) ? two_widest_vectors / 2 : two_widest_vectors};
  core.l2 = std::max(core.l2, core.l1);
  core.l3 = std::max(core.l3, core.l2);
  return core;
}

// Control groups limit time rather than processors: quota microseconds of processor time in each period.
double quota_processors() {
  double quota = 0, period = 0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  if (v2 >> quota >> period && period > 0) return quota / period;  // "max" fails to parse: no limit
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (v1_quota >> quota && v1_period >> period && quota > 0 && period > 0) return quota / period;
  return 0;
}

}  // namespace

std::vector<const KernelTable*> compiled_tables() {
#define GATEDRNN_TABLE_ADDRESS(isa) &isa::table,
  return {GATEDRNN_ISAS(GATEDRNN_TABLE_ADDRESS)};
}

std::vector<const KernelTable*> available_tables() {
  const CpuRegisters registers = read_cpu_registers();
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : compiled_tables())
    if (missing_features(table->name, registers).empty()) tables.push_back(table);
  return tables;
}

const KernelTable& active_table() {
  static const KernelTable* const table = choose_table();
  return *table;
}

const Core& core() {
  static const Core core = read_core();
  return core;
}

int usable_processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
#endif
  const double quota = quota_processors();
  if (quota > 0) count = std::min(count, static_cast<int>(std::ceil(quota)));
  return std::max(count, 1);
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) {
  constexpr unsigned flush_to_zero = 0x8000, denormals_are_zero = 0x0040;
  _mm_setcsr(static_cast<unsigned>(saved_) | flush_to_zero | denormals_are_zero);
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
  constexpr unsigned long long flush_to_zero = 1ull << 24;
  __asm__ volatile("msr fpcr, %0" : : "r"(saved_ | flush_to_zero));
}
FlushDenormals::~FlushDenormals() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace gatedrnn
