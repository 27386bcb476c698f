// What the machine can do: instruction sets, caches, processors, and its floating-point mode.
#pragma once

#include <string>
#include <vector>

#include "gatedrnn/kernel_table.h"

namespace gatedrnn {

// Tables in this build, from the plainest to the widest.
std::vector<const KernelTable*> compiled_tables();

// Those of them that this machine and its operating system support.
std::vector<const KernelTable*> available_tables();

// The table in use: the widest available, or the one that the environment variable GATEDRNN_ISA names. Throws
// std::invalid_argument when it names none that is available.
const KernelTable& active_table();

const Core& core();

// Processors that this process may use: its affinity mask and its control group's quota.
int usable_processors();

// Denormal numbers are treated as zero while an instance lives, on this thread.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned long long saved_;
};

}  // namespace gatedrnn
