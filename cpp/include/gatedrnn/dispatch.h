// Which kernels this build has, which of them this machine can run, and which are in use.
#pragma once

#include <vector>

#include "gatedrnn/kernel_table.h"

namespace gatedrnn {

// Tables in this build, from the plainest to the widest.
std::vector<const KernelTable*> compiled_tables();

// Those of them that this machine and its operating system support.
std::vector<const KernelTable*> available_tables();

// The table in use: the fastest available, or the one that the environment variable GATEDRNN_ISA names. Throws
// std::invalid_argument when it names none that is available.
const KernelTable& active_table();

}  // namespace gatedrnn
