// Every kernel table that this machine can run against the reference: bit by bit where multiplication and addition are fused,
// within a derived tolerance where not. One thread; what plans do is in test_plans.
#include <algorithm>

#include "check.h"
#include "networks.h"

namespace gatedrnn {
namespace test {
namespace {

constexpr Index kOddSizes[] = {1, 7, 9, 15, 17, 31, 33, 129};

// An instrumented build looks for stray accesses, for which one tile of each kind is enough: its reference is 20 times slower.
#ifdef __SANITIZE_ADDRESS__
constexpr Index kNearRows[] = {6}, kFarRows[] = {3};
#else
constexpr Index kNearRows[] = {1, 2, 3, 5, 6, 7, 9, 17}, kFarRows[] = {1, 3, 4, 7, 13};
#endif

// Descriptions that do not fit together would not compile.
template <class Change>
constexpr bool is_refused(Cell cell, Change&& change) {
  CellDescription changed = description(cell);
  change(changed);
  return !is_consistent(changed);
}
static_assert(!is_refused(Cell::gru, [](CellDescription&) {}));
static_assert(is_refused(Cell::lstm, [](CellDescription& d) { d.gates = 3; }));
static_assert(is_refused(Cell::lstm, [](CellDescription& d) { d.gate_of_slot[1] = 2; }));
static_assert(is_refused(Cell::lstm_peephole, [](CellDescription& d) { d.has_c = false; }));
static_assert(is_refused(Cell::gru_reset_before, [](CellDescription& d) { d.has_c = true; }));
static_assert(is_refused(Cell::rnn_tanh, [](CellDescription& d) { d.kept = kMostKept + 1; }));

// The fewest weights that one stage of this cell has per unit and unit of depth.
Index gates_in_narrowest_stage(Cell cell) { return description(cell).last_stage().gates; }

template <class T>
class KernelTest {
 public:
  explicit KernelTest(const NamedCell& cell) : cell_(cell) {}

  void run() {
    smaller_than_a_vector();
    odd_sizes();
    unit_tails();
    panel_counts();
    weights_beyond(kNearBytes, kNearRows, 2);
    if (is_first_of_its_products()) {  // the reference takes long for these
      weights_beyond(kFarBytes, kFarRows, 1);
      many_long_rows();
    }
    many_steps();
    other_cores();
    options();
    mistakes_are_seen();
  }

 private:
  // Whether no cell before this one has stages whose products are cut into the same panels.
  bool is_first_of_its_products() const {
    const auto same = [this](const NamedCell& other) {
      const CellDescription &a = description(other.cell), &b = description(cell_.cell);
      bool alike = other.projection == cell_.projection && a.stage_count == b.stage_count;
      for (int i = 0; alike && i < a.stage_count; ++i)
        alike = a.stages[i].slots == b.stages[i].slots && a.stages[i].gates == b.stages[i].gates;
      return alike;
    };
    const auto cells = all_cells();
    const auto found = std::find_if(cells.begin(), cells.end(), same);
    return found->cell == cell_.cell && found->projection == cell_.projection;
  }

  // Fewer units than a vector has lanes, and around that, with rows in a part of a block and in many.
  void smaller_than_a_vector() {
    for (Index hidden = 1; hidden <= 17; ++hidden)
      for (const Index rows : {1, 7, 9, 15, 17, 31, 33, 129}) compare({hidden, hidden, 3, rows});
    for (const Index hidden : {1, 8, 15}) compare({131, hidden, 3, 1000});
    for (const Index hidden : {1, 2, 3, 5, 9})
      for (const Index directions : {1, 2})
        for (const bool states : {false, true}) {
          compare({hidden, hidden, 10, 67, 2, directions, ragged(67, 10), true, states});
          compare({20, hidden, 10, 67, 2, directions, {}, states, states});
        }
    for (const Index hidden : {1, 3, 9})
      for (const auto& lengths : {ragged(67, 10), std::vector<Index>()})
        compare({hidden, hidden, 10, 67, 2, 1, lengths, true, true, true});
  }

  // Each size as I and as H and as B, and every tile height: 1 to 9 rows, and more in several tiles.
  void odd_sizes() {
    constexpr int count = static_cast<int>(std::size(kOddSizes));
    for (int i = 0; i < count; ++i)
      for (const Index rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 129})
        compare({kOddSizes[(3 * i + rows) % count], kOddSizes[i], 2, rows});
  }

  // Every number of units up to more than a vector's.
  void unit_tails() {
    for (Index hidden = 1; hidden < 20; ++hidden) compare({3, hidden, 3, 2});
  }

  // Several blocks of time, with rows that end in different ones.
  void many_steps() {
    for (const Index directions : {1, 2}) compare({7, 9, 700, 6, 1, directions, {700, 1, 64, 333, 0, 512}});
    compare({7, 9, 700, 6, 1, 1, {700, 1, 64, 333, 0, 512}, true, true, true});
  }

  // 1 to 17 panels, however wide the vectors and however many of them a panel has.
  void panel_counts() {
    for (const Index hidden : {47, 49, 63, 65, 127, 255})
      for (const Index rows : {1, 2, 3, 4, 6, 8}) compare({3, hidden, 2, rows});
  }

  template <std::size_t count>
  void weights_beyond(Index bytes, const Index (&rows)[count], Index steps) {
    const Index per_unit = gates_in_narrowest_stage(cell_.cell) * static_cast<Index>(sizeof(T));
    // With a projection the recurrent depth is half of H.
    const Index square = static_cast<Index>(std::sqrt(double(bytes) / double(per_unit) * (cell_.projection ? 2 : 1)));
    const Index narrow = 33;  // units of a network with a wide input
    for (const Index batch : rows) {
      compare({1, square + 2, steps, batch});
      if (batch < 9) compare({bytes / per_unit / narrow + 2, narrow, 1, batch});
    }
  }

  // Many slices of many tiles, of inputs and of states.
  void many_long_rows() {
    for (const Index batch : {47, 48, 49, 97}) many_rows(1026, batch);
  }
  void many_rows(Index long_row, Index batch) {
    compare({long_row, 17, 1, batch});
    if (batch == 49) compare({1, long_row * (cell_.projection ? 2 : 1), 1, batch});
  }

  // Without slices and with no panel in the first-level cache, then the reverse, whatever this machine's core is.
  void other_cores() {
    const Core own = core_;
    for (const Core& other : {Core{4 << 10, own.l2, own.l3, 16}, Core{1 << 20, own.l2, own.l3, 1024}}) {
      core_ = other;
      many_rows(301, 49);
      for (const Index rows : {1, 2, 4, 13}) compare({65, 129, 3, rows});
    }
    core_ = own;
  }

  void options() {
    for (const bool bias : {false, true})
      for (const bool states : {false, true})
        for (const Index directions : {1, 2})
          for (const Index layers : {1, 2, 3})
            compare({17, 33, 4, 5, layers, directions, {4, 0, 1, 3, 4}, bias, states});
    for (const Index layers : {1, 3}) compare({17, 33, 4, 5, layers, 1, {4, 0, 1, 3, 4}, true, true, true});
    compare({9, 17, 0, 3});
    compare({9, 17, 3, 4, 1, 2, {0, 0, 0, 0}});
  }

  void compare(const Shape& shape) {
    const Problem<T> problem(cell_, shape);
    const Results<T> expected = problem.reference();
    for (const KernelTable* table : tested_tables()) {
      const Results<T> got = computed(problem, *table, shape);
      const double tolerance = problem.tolerance(expected.largest());
      CHECK_NOTHING_WRONG(
          has_fused_multiply_add(*table) ? expected.difference(got) : expected.difference(got, tolerance),
          std::string(table->name) + ", " + problem.name());
    }
  }

  Results<T> computed(const Problem<T>& problem, const KernelTable& table, const Shape& shape) const {
    const Network<T> network(problem.spec, problem.parameters, table, core_);
    Workspace workspace;
    Results<T> results;
    CHECK(network.forward(problem.sequence(results), workspace, nullptr,
                          network.plan(shape.steps, shape.batch, problem.valid(), 1)));
    return results;
  }

  // The comparisons above would notice a wrong last weight of each sum, and the bitwise one a change of order.
  void mistakes_are_seen() {
    const Shape shape{17, 33, 2, 5};
    const Problem<T> problem(cell_, shape);
    const Results<T> expected = problem.reference();
    for (const int which : {0, 1}) {
      Problem<T> wrong(cell_, shape);
      wrong.spoil(which);
      for (const KernelTable* table : tested_tables()) {
        const Results<T> got = computed(wrong, *table, shape);
        CHECK(!expected.difference(got).empty());
        CHECK(!expected.difference(got, problem.tolerance(expected.largest())).empty());
      }
    }
    Problem<T> reordered(cell_, shape);  // the same sums, from the last input to the first
    std::vector<T>& weights = reordered.matrix(0);
    for (std::size_t row = 0; row < weights.size(); row += shape.input_size)
      std::reverse(weights.begin() + row, weights.begin() + row + shape.input_size);
    for (Index t = 0; t < shape.steps; ++t)
      for (Index b = 0; b < shape.batch; ++b) std::reverse(reordered.x(t, b), reordered.x(t, b) + shape.input_size);
    for (const KernelTable* table : tested_tables()) {
      const Results<T> got = computed(reordered, *table, shape);
      CHECK(!expected.difference(got).empty());
      CHECK_NOTHING_WRONG(expected.difference(got, problem.tolerance(expected.largest())), "reordered");
    }
  }

  const NamedCell cell_;
  Core core_ = core();
};

}  // namespace
}  // namespace test
}  // namespace gatedrnn

int main(int argc, char** argv) {
  using namespace gatedrnn;
  const std::string only = argc > 1 ? argv[1] : "";
  const auto available = available_tables();
  for (const KernelTable* table : compiled_tables()) {
    const bool runs = std::find(available.begin(), available.end(), table) != available.end();
    std::printf("%s: %s\n", table->name, runs ? "tested" : "NOT TESTED, this machine does not support it");
  }
  for (const test::NamedCell& cell : test::all_cells()) {
    if (std::string(cell.name).rfind(only, 0) != 0) continue;
    test::KernelTest<float>(cell).run();
    test::KernelTest<double>(cell).run();
  }
  return test::finish("test_kernels");
}
