// What a processor and its operating system offer. On x86 it is read by ourselves: the compilers' built-in tests answer "no" to
// everything in some builds of Clang, and a machine with AVX-512 then ran the baseline kernels without a word.
#pragma once

#include <string>
#include <vector>

namespace gatedrnn {

// What the instructions cpuid and xgetbv say, as they say it; zeros where the processor lacks the leaf or the instruction.
struct CpuRegisters {
  struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
  };
  Leaf vendor;                          // leaf 0
  Leaf basic;                           // leaf 1
  Leaf structured;                      // leaf 7, subleaf 0
  Leaf structured_more;                 // leaf 7, subleaf 1
  Leaf extended;                        // leaf 0x80000001
  unsigned long long xcr0 = 0;          // which registers the operating system saves
  bool tiles_permitted = false;         // whether it lets this process use those of the matrix unit
  unsigned long arm = 0, arm_more = 0;  // what Linux says of an AArch64 processor: AT_HWCAP and AT_HWCAP2
  unsigned long arm_model = 0;          // and its register MIDR_EL1: maker, model, revision
};

// This machine's; all zeros where it is neither. Asks for the matrix unit's registers.
CpuRegisters read_cpu_registers();

// A bit of these registers. The names are those of /proc/cpuinfo, and "os-ymm", "os-zmm" and "os-tmm" for registers that the operating
// system saves: without them the instructions are there and must not be used.
struct CpuFeature {
  const char* name;
  const char* macro;  // what compilers define where they may use it, "" if nothing
  unsigned (*bits)(const CpuRegisters&);
  unsigned mask;  // all of these have to be set
};

// Every feature that we know.
const std::vector<CpuFeature>& cpu_features();

// The names of those that are there.
std::vector<std::string> features_of(const CpuRegisters& registers);

// Everything that the kernels of this name may use beyond the baseline: what their compiler flags allow, not only what their
// source asks for.
std::vector<std::string> required_features(const std::string& isa);

// Those of them that are not there.
std::vector<std::string> missing_features(const std::string& isa, const CpuRegisters& registers);

// Whether the processor is AMD's, whose AVX512-BF16 is twice as fast as float32; on others it is no faster.
bool is_amd(const CpuRegisters& registers);

// Zen 3 and 4 have two units of 32 bytes: a vector of 64 takes both.
bool is_zen_3_or_4(const CpuRegisters& registers);

// Arm's larger cores multiply and add four vectors of 16 bytes in a cycle, the others two.
bool is_wide_arm(const CpuRegisters& registers);

}  // namespace gatedrnn
