#include "gatedrnn/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "gatedrnn/cpu_features.h"

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

const KernelTable* fastest(const std::vector<const KernelTable*>& available) {
  const KernelTable* chosen = available.front();
  for (const KernelTable* table : available)
    if (std::string(table->name) != "avx512_bf16" || is_amd(read_cpu_registers())) chosen = table;
  return chosen;
}

const KernelTable* choose_table() {
  const std::vector<const KernelTable*> available = available_tables();
  if (available.empty())
    throw std::runtime_error("this build of gatedrnn is for " + names(compiled_tables()) +
                             ", which this processor has not");
  const char* wanted = std::getenv("GATEDRNN_ISA");
  if (!wanted || !*wanted) return fastest(available);
  for (const KernelTable* table : available)
    if (std::string(wanted) == table->name) return table;
  throw std::invalid_argument("GATEDRNN_ISA: expected one of " + names(available) + " on this machine, got '" + wanted +
                              "'");
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

}  // namespace gatedrnn
