#include "gatedrnn/machine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace gatedrnn {

#define GATEDRNN_DECLARE_TABLE(isa) \
  namespace isa {                   \
  extern const KernelTable table;   \
  }
GATEDRNN_ISAS(GATEDRNN_DECLARE_TABLE)

namespace {

#if defined(__x86_64__)
// The operating system saves the wide registers only if the bits of XCR0 say so.
unsigned long long saved_registers() {
  unsigned a, b, c, d;
  __cpuid(1, a, b, c, d);
  constexpr unsigned osxsave = 1u << 27;
  if (!(c & osxsave)) return 0;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<unsigned long long>(high) << 32) | low;
}

bool supports(const std::string& isa) {
  if (isa == "baseline") return true;
  __builtin_cpu_init();
  constexpr unsigned long long ymm = 0x6, zmm = 0xe6;
  const unsigned long long saved = saved_registers();
  const bool avx2 = (saved & ymm) == ymm && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (isa == "avx2") return avx2;
  return isa == "avx512" && avx2 && (saved & zmm) == zmm && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#else
bool supports(const std::string&) { return true; }
#endif

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

Caches read_caches() {
  Caches sizes = {32 << 10, 512 << 10, 8 << 20};
#if defined(__linux__) && defined(_SC_LEVEL1_DCACHE_SIZE)
  const auto ask = [](int name, Index& size) {
    const long value = sysconf(name);
    if (value > 0) size = value;
  };
  ask(_SC_LEVEL1_DCACHE_SIZE, sizes.l1);
  ask(_SC_LEVEL2_CACHE_SIZE, sizes.l2);
  ask(_SC_LEVEL3_CACHE_SIZE, sizes.l3);
#endif
  sizes.l2 = std::max(sizes.l2, sizes.l1);
  sizes.l3 = std::max(sizes.l3, sizes.l2);
  return sizes;
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
  std::vector<const KernelTable*> tables;
  for (const KernelTable* table : compiled_tables())
    if (supports(table->name)) tables.push_back(table);
  return tables;
}

const KernelTable& active_table() {
  static const KernelTable* const table = choose_table();
  return *table;
}

const Caches& caches() {
  static const Caches sizes = read_caches();
  return sizes;
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
