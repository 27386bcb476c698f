#include "gatedrnn/cpu_features.h"

#include <algorithm>
#include <iterator>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace gatedrnn {
namespace {

unsigned basic_c(const CpuRegisters& r) { return r.basic.c; }
unsigned structured_b(const CpuRegisters& r) { return r.structured.b; }
unsigned structured_c(const CpuRegisters& r) { return r.structured.c; }
unsigned structured_d(const CpuRegisters& r) { return r.structured.d; }
unsigned structured_more_a(const CpuRegisters& r) { return r.structured_more.a; }
unsigned extended_c(const CpuRegisters& r) { return r.extended.c; }
unsigned saved(const CpuRegisters& r) { return static_cast<unsigned>(r.xcr0); }
unsigned arm(const CpuRegisters& r) { return static_cast<unsigned>(r.arm); }
unsigned arm_more(const CpuRegisters& r) { return static_cast<unsigned>(r.arm_more); }
unsigned tiles_permitted(const CpuRegisters& r) { return r.tiles_permitted; }

constexpr unsigned kAmxTile = 1u << 24;  // of leaf 7, in d

#if defined(__x86_64__)
constexpr unsigned kOsXsave = 1u << 27;  // of leaf 1, in c: xgetbv may be used
constexpr unsigned kSavedTiles = 0x60000;

CpuRegisters::Leaf leaf(unsigned number, unsigned sub = 0) {
  CpuRegisters::Leaf leaf;
  if (!__get_cpuid_count(number, sub, &leaf.a, &leaf.b, &leaf.c, &leaf.d)) return {};
  return leaf;
}

unsigned long long xcr0() {
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<unsigned long long>(high) << 32 | low;
}

// Linux gives a process its eight kilobytes for tiles when it asks for them; to ask again changes nothing. (Linux kernel documentation,
// "Using XSTATE features in user space applications".)
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

}  // namespace

CpuRegisters read_cpu_registers() {
  CpuRegisters registers;
#if defined(__x86_64__)
  registers.vendor = leaf(0);
  registers.basic = leaf(1);
  registers.structured = leaf(7);
  if (registers.structured.a > 0) registers.structured_more = leaf(7, 1);
  registers.extended = leaf(0x80000001u);
  if (registers.basic.c & kOsXsave) registers.xcr0 = xcr0();
  const bool has_tiles = registers.structured.d & kAmxTile && (registers.xcr0 & kSavedTiles) == kSavedTiles;
  registers.tiles_permitted = has_tiles && ask_for_tiles();
#elif defined(__aarch64__) && defined(__linux__)
  registers.arm = getauxval(AT_HWCAP);
  registers.arm_more = getauxval(AT_HWCAP2);
  constexpr unsigned long has_model = 1u << 11;  // the system answers for the register
  if (registers.arm & has_model) __asm__("mrs %0, MIDR_EL1" : "=r"(registers.arm_model));
#endif
  return registers;
}

const std::vector<CpuFeature>& cpu_features() {
  static const std::vector<CpuFeature> features = {
      {"sse3", "__SSE3__", basic_c, 1u << 0},
      {"ssse3", "__SSSE3__", basic_c, 1u << 9},
      {"cx16", "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16", basic_c, 1u << 13},
      {"sse4_1", "__SSE4_1__", basic_c, 1u << 19},
      {"sse4_2", "__SSE4_2__", basic_c, 1u << 20},
      {"movbe", "__MOVBE__", basic_c, 1u << 22},
      {"popcnt", "__POPCNT__", basic_c, 1u << 23},
      {"lahf_lm", "__LAHF_SAHF__", extended_c, 1u << 0},
      {"lzcnt", "__LZCNT__", extended_c, 1u << 5},
      {"xsave", "__XSAVE__", basic_c, 1u << 26},
      {"os-ymm", "", saved, 0x6},
      {"avx", "__AVX__", basic_c, 1u << 28},
      {"f16c", "__F16C__", basic_c, 1u << 29},
      {"fma", "__FMA__", basic_c, 1u << 12},
      {"bmi1", "__BMI__", structured_b, 1u << 3},
      {"bmi2", "__BMI2__", structured_b, 1u << 8},
      {"avx2", "__AVX2__", structured_b, 1u << 5},
      {"os-zmm", "", saved, 0xe6},
      {"avx512f", "__AVX512F__", structured_b, 1u << 16},
      {"avx512dq", "__AVX512DQ__", structured_b, 1u << 17},
      {"avx512cd", "__AVX512CD__", structured_b, 1u << 28},
      {"avx512bw", "__AVX512BW__", structured_b, 1u << 30},
      {"avx512vl", "__AVX512VL__", structured_b, 1u << 31},
      {"avx512_vnni", "__AVX512VNNI__", structured_c, 1u << 11},
      {"avx_vnni", "__AVXVNNI__", structured_more_a, 1u << 4},
      {"avx512_bf16", "__AVX512BF16__", structured_more_a, 1u << 5},
      {"os-tmm", "", tiles_permitted, 1u},
      {"amx_tile", "__AMX_TILE__", structured_d, kAmxTile},
      {"amx_int8", "__AMX_INT8__", structured_d, 1u << 25},
      {"amx_bf16", "__AMX_BF16__", structured_d, 1u << 22},
      {"crc32", "__ARM_FEATURE_CRC32", arm, 1u << 7},
      {"atomics", "__ARM_FEATURE_ATOMICS", arm, 1u << 8},
      {"asimdrdm", "__ARM_FEATURE_QRDMX", arm, 1u << 12},
      {"asimddp", "__ARM_FEATURE_DOTPROD", arm, 1u << 20},
      {"bf16", "__ARM_FEATURE_BF16_VECTOR_ARITHMETIC", arm_more, 1u << 14},
  };
  return features;
}

std::vector<std::string> features_of(const CpuRegisters& registers) {
  std::vector<std::string> names;
  for (const CpuFeature& feature : cpu_features())
    if ((feature.bits(registers) & feature.mask) == feature.mask) names.emplace_back(feature.name);
  return names;
}

std::vector<std::string> required_features(const std::string& isa) {
  std::vector<std::string> names;
  const bool is_512 = isa.rfind("avx512", 0) == 0 || isa == "amx";
  if (isa == "avx2" || isa == "avx_vnni" || is_512)
    names = {"sse3",  "ssse3", "cx16", "sse4_1", "sse4_2", "movbe", "popcnt", "lahf_lm", "lzcnt",
             "xsave", "avx",   "f16c", "fma",    "bmi1",   "bmi2",  "avx2",   "os-ymm"};
  if (is_512) names.insert(names.end(), {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "os-zmm"});
  if (isa == "avx_vnni") names.emplace_back("avx_vnni");
  if (isa == "avx512_vnni" || isa == "avx512_bf16") names.emplace_back("avx512_vnni");
  if (isa == "avx512_bf16") names.emplace_back("avx512_bf16");
  if (isa == "amx") names.insert(names.end(), {"os-tmm", "amx_tile", "amx_int8", "amx_bf16"});
  if (isa == "neon_dot" || isa == "neon_bf16") names = {"crc32", "atomics", "asimdrdm", "asimddp"};
  if (isa == "neon_bf16") names.emplace_back("bf16");
  return names;
}

std::vector<std::string> missing_features(const std::string& isa, const CpuRegisters& registers) {
  const std::vector<std::string> there = features_of(registers);
  std::vector<std::string> missing;
  for (const std::string& name : required_features(isa))
    if (std::find(there.begin(), there.end(), name) == there.end()) missing.push_back(name);
  return missing;
}

bool is_amd(const CpuRegisters& registers) {
  const auto is = [](unsigned word, const char* text) {  // four letters, the first in the lowest byte
    for (int i = 0; i < 4; ++i)
      if ((word >> 8 * i & 0xff) != static_cast<unsigned char>(text[i])) return false;
    return true;
  };
  return is(registers.vendor.b, "Auth") && is(registers.vendor.d, "enti") && is(registers.vendor.c, "cAMD");
}

bool is_zen_3_or_4(const CpuRegisters& registers) {
  const unsigned a = registers.basic.a, base = a >> 8 & 0xf, family = base == 0xf ? base + (a >> 20 & 0xff) : base;
  return is_amd(registers) && family == 0x19;
}

bool is_wide_arm(const CpuRegisters& registers) {
  constexpr unsigned arm = 0x41, apple = 0x61;
  // Neoverse V1, V2 and V3; Cortex-X1, -X1C, -X2, -X3, -X4 and -X925.
  constexpr unsigned wide[] = {0xd40, 0xd4f, 0xd84, 0xd44, 0xd4c, 0xd48, 0xd4e, 0xd82, 0xd85};
  const auto maker = static_cast<unsigned>(registers.arm_model >> 24 & 0xff);
  const auto model = static_cast<unsigned>(registers.arm_model >> 4 & 0xfff);
  return maker == apple || (maker == arm && std::find(std::begin(wide), std::end(wide), model) != std::end(wide));
}

}  // namespace gatedrnn
