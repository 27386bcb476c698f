// The formats that round, on every kernel table that this machine can run: against the reference, bit by bit where multiplication
// and addition are fused, and the bits of a row whatever plan computes it.
#include <algorithm>

#include "check.h"
#include "networks.h"

namespace gatedrnn {
namespace test {
namespace {

class FormatTest {
 public:
  FormatTest(const NamedCell& cell, Format format) : cell_(cell), format_(format) {}

  void run() {
    for (const Index batch : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 33}) compare({(batch * 31) % 70 + 1, 33, 2, batch});
    for (const Index hidden : {17, 31, 64, 129})
      for (const Index batch : {1, 5, 18}) compare({(hidden * 7 + batch) % 140 + 1, hidden, 2, batch});
    for (const Index wide : {600, 1100}) compare({wide, 33, 1, 5});
    compare({5, 530, 1, 2});
    compare({7, 19, 90, 4, 1, 2, {90, 1, 0, 64}});
    for (const bool bias : {false, true})
      for (const Index layers : {1, 2}) compare({17, 33, 4, 5, layers, 2, {4, 0, 1, 3, 4}, bias, !bias});
    compare({9, 16, 3, 5});  // few units: float32
    plans();
  }

 private:
  void compare(const Shape& shape) {
    const Problem<float> problem(cell_, shape);
    for (const KernelTable* table : tested_tables(format_)) {
      const Arithmetic arithmetic = arithmetic_of(*table, format_for<float>(problem.spec, format_));
      const Results<float> expected = problem.reference(arithmetic),
                           got = computed(problem, *table, shape, alone(shape));
      const std::string what =
          std::string(table->name) + ", " + kFormatNames[static_cast<int>(format_)] + ", " + problem.name();
      CHECK_NOTHING_WRONG(has_fused_multiply_add(*table)
                              ? expected.difference(got)
                              : expected.difference(got, tolerance(problem, expected.largest())),
                          what);
    }
  }

  double tolerance(const Problem<float>& problem, double largest) const {
    return problem.tolerance(largest) + operand_tolerance(format_) * std::max(1.0, largest);
  }

  static Plan alone(const Shape& shape) { return {1, 1, 1, 1, std::max<Index>(4, shape.batch), 0}; }

  Results<float> computed(const Problem<float>& problem, const KernelTable& table, const Shape& shape,
                          const Plan& plan) {
    const Network<float> network(problem.spec, problem.parameters, table, core(), format_);
    Workspace workspace;
    Results<float> results;
    CHECK(network.forward(problem.sequence(results), workspace, nullptr, plan));
    (void)shape;
    return results;
  }

  void plans() {
    const Shape shape{33, 129, 9, 7, 2, 1, {9, 0, 3, 9, 2, 5, 9}};
    const Problem<float> problem(cell_, shape);
    for (const KernelTable* table : tested_tables(format_)) {
      const Results<float> expected = computed(problem, *table, shape, alone(shape));
      for (const Plan& plan : {Plan{1, 1, 2, 1, 8, 0}, Plan{1, 1, 1, 2, 16, 0}, Plan{2, 1, 1, 1, 8, 0}})
        CHECK_NOTHING_WRONG(expected.difference(computed(problem, *table, shape, plan)),
                            std::string(table->name) + ", plans, " + problem.name());
    }
  }

  const NamedCell cell_;
  const Format format_;
};

}  // namespace
}  // namespace test
}  // namespace gatedrnn

int main() {
  using namespace gatedrnn;
  for (const Format format : {Format::bfloat16, Format::bfloat16x3, Format::int8}) {
    std::string names;
    for (const KernelTable* table : test::tested_tables(format)) names += std::string(" ") + table->name;
    std::printf("%s:%s\n", kFormatNames[static_cast<int>(format)], names.c_str());
    for (const test::NamedCell& cell : test::typical_cells()) test::FormatTest(cell, format).run();
  }
  return test::finish("test_formats");
}
