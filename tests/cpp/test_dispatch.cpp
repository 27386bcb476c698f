// Which table is in use, with GATEDRNN_ISA as it stands in the environment (CTest runs this once for each value), and which
// would be on other processors.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "check.h"
#include "gatedrnn/cpu_features.h"
#include "gatedrnn/dispatch.h"
#include "implied_macros.h"

namespace gatedrnn::test {
namespace {

std::vector<std::string> names(const std::vector<const KernelTable*>& tables) {
  std::vector<std::string> all;
  for (const KernelTable* table : tables) all.emplace_back(table->name);
  return all;
}

bool contains(const std::vector<std::string>& all, const std::string& name) {
  return std::find(all.begin(), all.end(), name) != all.end();
}

std::vector<std::string> split(const std::string& text) {
  std::istringstream words(text);
  return {std::istream_iterator<std::string>(words), {}};
}

void check_tables() {
  const std::vector<std::string> compiled = names(compiled_tables()), available = names(available_tables());
  CHECK(!available.empty());
  for (const std::string& name : available) CHECK(contains(compiled, name));
  for (const KernelTable* table : compiled_tables()) {
    const auto* const twice = table->find<double>(Format::float64);
    for (const Format format : {Format::float32, Format::bfloat16, Format::bfloat16x3, Format::int8}) {
      const auto* const single = table->find<float>(format);
      CHECK(single && twice && single->lanes() == 2 * twice->lanes());
      CHECK(table->with<float>(format)->find<float>(format) == single);
      CHECK(!table->find<double>(format));
    }
    CHECK(!table->find<float>(Format::float64));
    CHECK(!table->whole().base && table->whole().hash_blocks);
  }
  CHECK_EQUAL(compiled.front(), available.front());  // the plainest runs anywhere
}

// ---- Processors that this is not ----------------------------------------------------------------------------------------------

CpuRegisters::Leaf vendor(const char* text) {
  const auto word = [text](int at) {
    unsigned value = 0;
    for (int i = 0; i < 4; ++i) value |= static_cast<unsigned>(static_cast<unsigned char>(text[at + i])) << 8 * i;
    return value;
  };
  return {0x16, word(0), word(8), word(4)};
}

// The bits as such processors have them, with registers that the system saves: none, up to 32 bytes, up to 64.
constexpr unsigned long long kNone = 0, kYmm = 0x7, kZmm = 0xe7;
const CpuRegisters::Leaf kIntel = vendor("GenuineIntel"), kAmd = vendor("AuthenticAMD");
const CpuRegisters kNehalem = {kIntel, {0x106a5, 0, 0x0098e3bd, 0}, {}, {}, {0, 0, 0x1, 0}, kNone};
const CpuRegisters kSandyBridge = {kIntel, {0x206a7, 0, 0x1fbae3ff, 0}, {}, {}, {0, 0, 0x1, 0}, kYmm};
const CpuRegisters kHaswell = {kIntel, {0x306c3, 0, 0x7ffafbff, 0}, {0, 0x27ab, 0, 0}, {}, {0, 0, 0x21, 0}, kYmm};
const CpuRegisters kKnightsLanding = {kIntel, {0x50671, 0, 0x7ff8f3bf, 0}, {0, 0x1c0d23ab, 0, 0}, {}, {0, 0, 0x121, 0},
                                      kZmm};
const CpuRegisters kSkylakeX = {kIntel, {0x50654, 0, 0x7ffefbff, 0}, {0, 0xd39ffffb, 0, 0}, {}, {0, 0, 0x121, 0}, kZmm};
const CpuRegisters kCascadeLake = {kIntel, {0x50657, 0, 0x7ffefbff, 0}, {0, 0xd39ffffb, 0x808, 0}, {}, {0, 0, 0x121, 0},
                                   kZmm};
const CpuRegisters kSapphireRapids = {kIntel,
                                      {0x806f8, 0, 0x7ffefbff, 0},
                                      {2, 0xf3bfbffb, 0xfb417ffe, 0xffdd4432},
                                      {0x1c30, 0, 0, 0},
                                      {0, 0, 0x121, 0},
                                      0x602e7,
                                      true};
const CpuRegisters kZen2 = {kAmd, {0x830f10, 0, 0x7ed8320b, 0}, {0, 0x219c91a9, 0, 0}, {}, {0, 0, 0x75c237ff, 0}, kYmm};
const CpuRegisters kZen3 = {kAmd, {0xa20f10, 0, 0x7ef8320b, 0}, {0, 0x219c97a9, 0, 0}, {}, {0, 0, 0x75c237ff, 0}, kYmm};
const CpuRegisters kZen4 = {
    kAmd, {0xa60f12, 0, 0x7ef8320b, 0}, {1, 0xf1bf97a9, 0x405fce, 0}, {0x20, 0, 0, 0}, {0, 0, 0x75c237ff, 0}, kZmm};
const CpuRegisters kZen5 = {
    kAmd, {0xb40f40, 0, 0x7ef8320b, 0}, {1, 0xf1bf97a9, 0x405fce, 0}, {0x30, 0, 0, 0}, {0, 0, 0x75c237ff, 0}, kZmm};

// What hypervisors, firmware and old systems take away.
CpuRegisters with_basic_c(CpuRegisters registers, unsigned taken) {
  registers.basic.c &= ~taken;
  return registers;
}
CpuRegisters with_xcr0(CpuRegisters registers, unsigned long long xcr0) {
  registers.xcr0 = xcr0;
  return registers;
}
CpuRegisters without_lzcnt(CpuRegisters registers) {
  registers.extended.c &= ~(1u << 5);
  return registers;
}

std::string joined(const std::vector<std::string>& all) {
  std::string text;
  for (const std::string& name : all) text += (text.empty() ? "" : " ") + name;
  return text;
}

void check_other_processors() {
  constexpr unsigned fma = 1u << 12, movbe = 1u << 22;
  const std::string all_512 = "avx512f avx512dq avx512cd avx512bw avx512vl os-zmm";
  const struct {
    const char* name;
    CpuRegisters registers;
    std::string lacks, lacks_for_512, lacks_for_bf16;  // for AVX2, for AVX-512 beyond that, for AVX512-BF16 beyond both
  } processors[] = {
      {"Nehalem", kNehalem, "movbe lzcnt xsave avx f16c fma bmi1 bmi2 avx2 os-ymm", all_512, "avx512_vnni avx512_bf16"},
      {"Sandy Bridge", kSandyBridge, "movbe lzcnt f16c fma bmi1 bmi2 avx2", all_512, "avx512_vnni avx512_bf16"},
      {"Haswell", kHaswell, "", all_512, "avx512_vnni avx512_bf16"},
      {"Knights Landing", kKnightsLanding, "", "avx512dq avx512bw avx512vl", "avx512_vnni avx512_bf16"},
      {"Skylake-X", kSkylakeX, "", "", "avx512_vnni avx512_bf16"},
      {"Cascade Lake", kCascadeLake, "", "", "avx512_bf16"},
      {"Sapphire Rapids", kSapphireRapids, "", "", ""},
      {"Zen 2", kZen2, "", all_512, "avx512_vnni avx512_bf16"},
      {"Zen 3", kZen3, "", all_512, "avx512_vnni avx512_bf16"},
      {"Zen 4", kZen4, "", "", ""},
      {"Zen 5", kZen5, "", "", ""},
      {"Skylake-X, a system that saves 32 bytes", with_xcr0(kSkylakeX, kYmm), "", "os-zmm", "avx512_vnni avx512_bf16"},
      {"Zen 4, mask registers not saved", with_xcr0(kZen4, kZmm & ~0x20ull), "", "os-zmm", ""},
      {"Zen 4, a system that saves neither", with_xcr0(kZen4, kNone), "os-ymm", "os-zmm", ""},
      {"Haswell, only half of ymm saved", with_xcr0(kHaswell, 0x3), "os-ymm", all_512, "avx512_vnni avx512_bf16"},
      {"Haswell, a hypervisor hides FMA", with_basic_c(kHaswell, fma), "fma", all_512, "avx512_vnni avx512_bf16"},
      {"Skylake-X, a hypervisor hides MOVBE", with_basic_c(kSkylakeX, movbe), "movbe", "", "avx512_vnni avx512_bf16"},
      {"Zen 4, a hypervisor hides LZCNT", without_lzcnt(kZen4), "lzcnt", "", ""},
  };
  for (const auto& processor : processors) {
    const auto check = [&](const std::string& isa, const std::string& expected) {
      const std::string missing = joined(missing_features(isa, processor.registers));
      CHECK_NOTHING_WRONG(missing == joined(split(expected)) ? "" : "for " + isa + " it lacks: " + missing,
                          processor.name);
    };
    const std::string for_512 = processor.lacks + " " + processor.lacks_for_512;
    check("baseline", "");
    check("avx2", processor.lacks);
    const std::string processor_name = processor.name;
    const bool is_sapphire = processor_name == "Sapphire Rapids";
    check("avx_vnni", processor.lacks + (is_sapphire || processor_name == "Zen 5" ? "" : " avx_vnni"));
    check("avx512", for_512);
    check("avx512_bf16", for_512 + " " + processor.lacks_for_bf16);
    check("amx", for_512 + (is_sapphire ? "" : " os-tmm amx_tile amx_int8 amx_bf16"));
    const bool vnni = processor.lacks_for_bf16.find("vnni") == std::string::npos;
    check("avx512_vnni", for_512 + (vnni ? "" : " avx512_vnni"));
    const bool zen = processor_name.find("Zen 3") == 0 || processor_name.find("Zen 4") == 0;
    CHECK_EQUAL(zen, is_zen_3_or_4(processor.registers));
  }
  CHECK(is_amd(kZen2) && !is_amd(kSapphireRapids));
  CpuRegisters refused = kSapphireRapids;
  refused.tiles_permitted = false;
  CHECK_EQUAL("os-tmm", joined(missing_features("amx", refused)));
  CpuRegisters graviton_2, graviton_3;
  graviton_2.arm = graviton_3.arm = 0x101180;
  graviton_3.arm_more = 0x4000;
  graviton_2.arm_model = 0x413fd0c1;
  graviton_3.arm_model = 0x411fd401;
  CHECK(is_wide_arm(graviton_3) && !is_wide_arm(graviton_2) && !is_wide_arm(kZen4));
  CHECK_EQUAL("", joined(missing_features("neon_dot", graviton_2)));
  CHECK_EQUAL("bf16", joined(missing_features("neon_bf16", graviton_2)));
  CHECK_EQUAL("", joined(missing_features("neon_bf16", graviton_3)));
  for (const char* isa : {"avx_vnni", "avx512", "avx512_bf16", "amx", "neon_dot", "neon_bf16"})
    CHECK_EQUAL(joined(required_features(isa)), joined(missing_features(isa, {})));
  CHECK(features_of({}).empty());
}

// Every feature that is asked for is a known one, and every known one is asked for by somebody.
void check_names() {
  std::vector<std::string> known;
  for (const CpuFeature& feature : cpu_features()) known.emplace_back(feature.name);
  const std::vector<std::string> required = required_features("avx512_bf16");
  std::vector<std::string> wanted;
  for (const char* isa : {"avx512_bf16", "avx_vnni", "amx", "neon_bf16"})
    for (const std::string& name : required_features(isa)) wanted.push_back(name);
  for (const std::string& name : wanted) CHECK_NOTHING_WRONG(contains(known, name) ? "" : "unknown", name);
  for (const std::string& name : known) CHECK_NOTHING_WRONG(contains(wanted, name) ? "" : "of no use", name);
  for (const char* isa : {"avx2", "avx512", "avx512_vnni"})
    for (const std::string& name : required_features(isa))
      CHECK_NOTHING_WRONG(contains(required, name) ? "" : "those who can do more do not ask for it", name);
}

// Older Clangs, such as 14, have names of their own for AMX.
std::string as_gcc_has_it(const std::string& macro) {
  return macro.rfind("__AMX", 0) == 0 && macro[5] != '_' ? "__AMX_" + macro.substr(5) : macro;
}

// What the compiler may use with a unit's flags is what we ask the processor for, neither less nor more.
void check_against_the_compiler() {
  // They say nothing that another one does not: __CRC32__ is a part of SSE 4.2, those of Arm's of BF16.
  const std::vector<std::string> no_features = {"__CRC32__",
                                                "__EVEX256__",
                                                "__EVEX512__",
                                                "__ARM_FEATURE_BF16",
                                                "__ARM_FEATURE_BF16_SCALAR_ARITHMETIC",
                                                "__ARM_BF16_FORMAT_ALTERNATIVE"};
  for (const auto& [isa, defined] : kImpliedMacros) {
    std::vector<std::string> macros;
    for (const std::string& macro : defined) macros.push_back(as_gcc_has_it(macro));
    const std::vector<std::string> required = required_features(isa);
    for (const CpuFeature& feature : cpu_features()) {
      if (!*feature.macro) continue;
      const bool implied = contains(macros, feature.macro), asked = contains(required, feature.name);
      CHECK_NOTHING_WRONG(implied == asked ? ""
                          : implied        ? "is not asked for"
                                           : "is asked for without need",
                          isa + ", " + feature.name);
    }
    for (const std::string& macro : macros) {
      bool known = macro.rfind("__FP_FAST_", 0) == 0 || contains(no_features, macro);
      for (const CpuFeature& feature : cpu_features()) known = known || macro == feature.macro;
      CHECK_NOTHING_WRONG(known ? "" : "the compiler may use something that is not asked for", isa + ", " + macro);
    }
  }
}

// This machine's own words say what the operating system says of it.
void check_this_processor() {
#if defined(__linux__) && defined(__x86_64__)
  const std::vector<std::string> here = features_of(read_cpu_registers());
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line) && line.rfind("flags", 0) != 0) {
  }
  if (line.rfind("flags", 0) != 0) return;  // no such file here
  std::vector<std::string> listed = split(line);
  const auto has = [&](const std::string& name) { return contains(listed, name); };
  for (const CpuFeature& feature : cpu_features()) {
    const std::string name = feature.name;
    if (name.rfind("os-", 0) == 0) continue;
    const bool there = has(name) || (name == "sse3" && has("pni")) || (name == "lzcnt" && has("abm"));
    // The system leaves out what it does not save registers for.
    if (there) CHECK_NOTHING_WRONG(contains(here, name) ? "" : "the system lists it, we do not", name);
  }
#endif
}

// An error names the variable, what it could have been and what it was; asking again gives the same.
void check_refused(const std::string& wanted) {
  for (int i = 0; i < 2; ++i) {
    std::string message = "nothing was thrown";
    try {
      active_table();
    } catch (const std::invalid_argument& error) {
      message = error.what();
    }
    CHECK_NOTHING_WRONG(message.rfind("GATEDRNN_ISA: ", 0) == 0 ? "" : message, "the variable's name");
    CHECK_NOTHING_WRONG(message.find("'" + wanted + "'") != std::string::npos ? "" : message, "what came");
    for (const std::string& name : names(available_tables()))
      CHECK_NOTHING_WRONG(message.find(name) != std::string::npos ? "" : message, "what was expected");
  }
}

// AMD's units sum bfloat16 at full speed, Intel's are slower than float32's; and only those are in the common order.
std::string fastest() {
  std::vector<std::string> available = names(available_tables());
  if (available.back() == "avx512_bf16" && !is_amd(read_cpu_registers())) available.pop_back();
  return available.back();
}

}  // namespace
}  // namespace gatedrnn::test

int main() {
  using namespace gatedrnn;
  using namespace gatedrnn::test;
  check_tables();
  check_names();
  check_other_processors();
  check_against_the_compiler();
  check_this_processor();
  const char* variable = std::getenv("GATEDRNN_ISA");
  const std::string wanted = variable ? variable : "";
  const std::vector<std::string> available = names(available_tables());
  if (!wanted.empty() && !contains(available, wanted)) {
    std::printf("'%s' has to be refused\n", wanted.c_str());
    check_refused(wanted);
  } else {
    CHECK_EQUAL(wanted.empty() ? fastest() : wanted, active_table().name);
    CHECK(&active_table() == &active_table());
  }
  return finish("test_dispatch");
}
