// Which table is in use, with GATEDRNN_ISA as it stands in the environment. CTest runs this once for each value.
#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "check.h"
#include "gatedrnn/machine.h"

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

void check_tables() {
  const std::vector<std::string> compiled = names(compiled_tables()), available = names(available_tables());
  CHECK(!available.empty());
  for (const std::string& name : available) CHECK(contains(compiled, name));
  for (const KernelTable* table : compiled_tables()) CHECK(table->f32.lanes == 2 * table->f64.lanes);
  CHECK_EQUAL(compiled.front(), available.front());  // the plainest runs anywhere
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

}  // namespace
}  // namespace gatedrnn::test

int main() {
  using namespace gatedrnn;
  using namespace gatedrnn::test;
  check_tables();
  const char* variable = std::getenv("GATEDRNN_ISA");
  const std::string wanted = variable ? variable : "";
  const std::vector<std::string> available = names(available_tables());
  if (!wanted.empty() && !contains(available, wanted)) {
    std::printf("'%s' has to be refused\n", wanted.c_str());
    check_refused(wanted);
  } else {
    CHECK_EQUAL(wanted.empty() ? available.back() : wanted, active_table().name);
    CHECK(&active_table() == &active_table());
  }
  return finish("test_dispatch");
}
