// Backward on every kernel table that this machine can run against the reference, bit by bit where multiplication and addition
// are fused, within a derived tolerance where not; and with any plan, block of steps, and recomputing the same bits. With the
// argument "formats": those that round, of one cell if its name follows. With "threads": the part of this in which some threads
// compute, for ThreadSanitizer, under which all of it takes too long.
#include <algorithm>

#include "check.h"
#include "gatedrnn/tape.h"
#include "networks.h"

namespace gatedrnn {
namespace test {
namespace {

// All gradients of one call, by name, between values that have to stay as they were.
template <class T>
class Gradients {
 public:
  Gradients(const Spec& spec, Index steps, Index batch, bool bias, T initial) {
    call.accumulate = initial != 0;
    const Index H = spec.hidden_size, P = spec.state_size(), tracks = spec.num_layers * spec.directions;
    const Index I = spec.input_size;
    values_.reserve(3 + 12 * tracks);
    call.d_x_row = I + 1;
    call.d_x_step = batch * call.d_x_row + 2;
    call.d_x = add("d_x", steps * call.d_x_step, guard);
    call.d_h_0 = add("d_h_0", tracks * batch * P, guard);
    if (spec.description().has_c) call.d_c_0 = add("d_c_0", tracks * batch * H, guard);
    const Index rows = spec.description().gates * H;
    for (Index track = 0; track < tracks; ++track) {
      LayerGradients<T> to;
      to.weight_ih = add("weight_ih", rows * spec.layer_input_size(track / spec.directions), initial);
      to.weight_hh = add("weight_hh", rows * P, initial);
      if (bias) to.bias_ih = add("bias_ih", rows, initial);
      if (bias) to.bias_hh = add("bias_hh", rows, initial);
      if (spec.proj_size > 0) to.weight_hr = add("weight_hr", P * H, initial);
      for (int i = 0; i < spec.description().peephole_count; ++i) to.peephole[i] = add("peephole", H, initial);
      visit_norm_parameters(spec.description(), bias, to,
                            [&](const char* name, int blocks, T*& place) { place = add(name, blocks * H, initial); });
      call.gradients.push_back(to);
    }
  }

  BackwardCall<T> call;

  // Empty if nothing is further off than `tolerance` times the largest value; with 0, if all bits are equal.
  std::string difference(const Gradients& got, double tolerance) const {
    const double allowed = tolerance == 0 ? 0 : tolerance * std::max(1.0, largest());
    for (std::size_t v = 0; v < values_.size(); ++v)
      for (std::size_t i = 0; i < values_[v].size(); ++i) {
        const T mine = values_[v][i], theirs = got.values_[v][i];
        const bool right = tolerance == 0 ? mine == theirs : std::fabs(double(mine) - double(theirs)) <= allowed;
        if (!right) {
          std::ostringstream out;
          out.precision(std::numeric_limits<T>::max_digits10);
          out << names_[v] << "[" << i << "]: expected " << mine << ", got " << theirs << ", allowed error " << allowed;
          return out.str();
        }
      }
    return {};
  }

  double largest() const {
    double most = 0;
    for (const auto& values : values_)
      for (const T value : values) most = std::max(most, std::fabs(double(value)));
    return most;
  }

 private:
  static constexpr T guard = T(0.4375);

  T* add(const char* name, Index count, T initial) {
    names_.push_back(name);
    values_.emplace_back(count + 3, initial);
    return values_.back().data();
  }

  std::vector<const char*> names_;
  std::vector<std::vector<T>> values_;
};

template <class T>
class BackwardTest {
 public:
  explicit BackwardTest(const NamedCell& cell, Format format = plain_format<T>) : cell_(cell), format_(format) {}

  // Fewer units than a vector has lanes, and around that, with rows in a part of a block and in many.
  void smaller_than_a_vector() {
    for (Index hidden = 1; hidden <= 17; ++hidden)
      for (const Index rows : {1, 7, 9, 15, 17, 31, 33, 129}) compare({rows % 3 == 0 ? 21 : hidden, hidden, 2, rows});
    for (const Index hidden : {1, 3, 9})
      for (const Index directions : {1, 2}) {
        compare({hidden, hidden, 9, 67, 2, directions, ragged(67, 9)});
        compare({20, hidden, 9, 167, 1, directions, ragged(167, 9), directions == 1, directions == 1});
      }
    for (const auto& lengths : {ragged(67, 9), std::vector<Index>()})
      compare({9, 3, 9, 67, 2, 1, lengths, true, true, true});
    compare({131, 2, 2, 1000});
    compare({2, 1, 100, 90});  // more than a group of blocks
  }

  void run_sizes() {
    constexpr Index sizes[] = {1, 7, 9, 15, 17, 31, 33, 129};
    for (int i = 0; i < 8; ++i)
      compare({sizes[(3 * i + 1) % 8], sizes[i], 2, std::min<Index>(sizes[(5 * i + 2) % 8], 33)});
    for (const Index hidden : {47, 65, 127, 260}) compare({3, hidden, 2, 2});
    compare({5, 17, 20, 33, 2, 2, ragged(33, 20)});
    mistakes_are_seen();
  }

  void run() {
    smaller_than_a_vector();
    run_sizes();
    compare({5, 9, 300, 9});  // several blocks of steps
    for (const Index batch : {64, 65, 129})
      compare({3, 5, 4, batch, 1, 1, ragged(batch, 4)});  // steps of several blocks
    compare(kSeveralGroups);
    for (const bool bias : {false, true})
      for (const bool states : {false, true})
        for (const Index directions : {1, 2}) compare({17, 33, 4, 5, 2, directions, {4, 0, 1, 3, 4}, bias, states});
    compare({17, 33, 4, 5, 2, 1, {4, 0, 1, 3, 4}, true, true, true});
    compare({9, 17, 1, 3});
    compare({9, 17, 0, 3});
    compare({9, 17, 3, 0});
    compare({9, 17, 3, 4, 1, 2, {0, 0, 0, 0}});
    accumulated({{5, 17, 6, 3, 2, 1, {6, 2, 4}}, {5, 2, 6, 67, 2, 2, ragged(67, 6)}, kSeveralGroups});
    plans({{9, 129, 7, 5, 2, 1, {7, 0, 3, 7, 2}},
           {33, 70, 20, 33, 1, 2, ragged(33, 20)},
           {20, 17, 120, 3, 2, 2},
           {20, 17, 70, 3, 2, 1, {70, 9, 0}, true, true, true},
           kSeveralGroups});
    large_tapes();
    in_used_memory();
    ring();
  }

  // What is another's with a format that rounds: the products.
  void run_format() {
    constexpr Index sizes[] = {17, 31, 33, 65}, rows[] = {1, 2, 3, 4, 5, 7, 9, 33};
    for (int i = 0; i < 8; ++i) compare({sizes[(i + 1) % 4], sizes[i % 4], 2, rows[i]});
    compare({5, 17, 6, 33, 2, 2, ragged(33, 6)});
    compare({9, 16, 3, 5});   // few units: float32
    compare({3, 20, 4, 65});  // more pairs than inputs' gradients are computed of at a time
    compare({64, 33, 6, 3});  // sums as wide as the inputs
    accumulated({{5, 17, 6, 3, 2, 1, {6, 2, 4}}});
    if (cell_.cell == Cell::gru) {
      compare({3, 17, 9, 65});                                        // more pairs than a slice has
      accumulated({{2, 17, kGroupBlocks + 2, kBlockPairs / 2 + 1}});  // more blocks than a group has
    }
    for (const bool bias : {false, true}) compare({17, 33, 4, 5, 2, 2, {4, 0, 1, 3, 4}, bias, !bias});
    plans({{9, 65, 7, 5, 2, 1, {7, 0, 3, 7, 2}}});
  }

  void run_threads() {
    plans({{9, 129, 7, 5, 2, 1, {7, 0, 3, 7, 2}}, {5, 3, 7, 150, 2, 1, ragged(150, 7)}});
    large_tapes();
    ring();
  }

 private:
  // More blocks of pairs than a group has: three steps fill one.
  static inline const Shape kSeveralGroups{2, 3, 3 * (kGroupBlocks + 12), kBlockPairs / 4 + 1};

  // A problem with gradients of its results.
  struct Case {
    Case(const NamedCell& cell, const Shape& shape) : problem(cell, shape), shape(shape) {
      const Spec& spec = problem.spec;
      const Index tracks = spec.num_layers * spec.directions;
      std::mt19937 random(7);
      const auto fill = [&](std::vector<T>& values, Index count) {
        values.resize(count + 1);
        for (T& value : values) value = static_cast<T>(static_cast<double>(random()) / 2147483648.0 - 1.0);
      };
      fill(d_y, shape.steps * shape.batch * (spec.output_size() + 2));
      fill(d_h_n, tracks * shape.batch * spec.state_size());
      fill(d_c_n, tracks * shape.batch * spec.hidden_size);
    }

    Gradients<T> gradients(const Sequence<T>& sequence, T initial = 0) const {
      Gradients<T> result(problem.spec, shape.steps, shape.batch, shape.bias, initial);
      BackwardCall<T>& call = result.call;
      call.x = sequence.x;
      call.x_step = sequence.x_step;
      call.x_row = sequence.x_row;
      call.d_y = d_y.data();
      call.d_y_row = problem.spec.output_size() + 2;
      call.d_y_step = shape.batch * call.d_y_row;
      if (shape.states) call.d_h_n = d_h_n.data();
      if (shape.states && problem.spec.description().has_c) call.d_c_n = d_c_n.data();
      return result;
    }

    Problem<T> problem;
    Shape shape;
    std::vector<T> d_y, d_h_n, d_c_n;
  };

  static Gradients<T> reference(const Case& c, const Arithmetic& arithmetic = {}, T initial = 0) {
    Results<T> results;
    const Sequence<T> sequence = c.problem.sequence(results);
    Gradients<T> gradients = c.gradients(sequence, initial);
    run_reference_backward(c.problem.spec, c.problem.parameters, sequence, gradients.call, arithmetic);
    return gradients;
  }

  Gradients<T> computed(const Case& c, const KernelTable& table, const Plan& forward, const Plan& backward,
                        const TapeOptions& options = {}, T initial = 0) const {
    const Network<T> network(c.problem.spec, c.problem.parameters, table, core(), format_);
    network.pack_for_backward(c.problem.parameters);
    return computed_by(network, c, forward, backward, options, initial);
  }

  // A block has room for a step of a group's rows.
  static Plan with_room(Plan plan, Index batch) {
    plan.block_pairs = std::max(plan.block_pairs, ceil_div(batch, plan.row_groups));
    return plan;
  }

  static Gradients<T> computed_by(const Network<T>& network, const Case& c, Plan forward, Plan backward,
                                  const TapeOptions& options = {}, T initial = 0) {
    forward = with_room(forward, c.shape.batch);
    backward = with_room(backward, c.shape.batch);
    Workspace workspace, memory;
    Results<T> results, inference;
    const Sequence<T> sequence = c.problem.sequence(results);
    Tape<T> tape(network, sequence, options, memory);
    CHECK(network.forward(sequence, workspace, &tape, forward));
    CHECK(network.forward(c.problem.sequence(inference), workspace, nullptr, forward));
    CHECK_NOTHING_WRONG(inference.difference(results), "forward with a tape, " + c.problem.name());
    Gradients<T> gradients = c.gradients(sequence, initial), again = c.gradients(sequence, initial);
    CHECK(network.backward(tape, gradients.call, workspace, backward));
    CHECK(network.backward(tape, again.call, workspace, backward));  // a tape may be used more than once
    CHECK_NOTHING_WRONG(gradients.difference(again, 0), "again, " + c.problem.name());
    return gradients;
  }

  static Plan alone(const Case& c) { return {1, 1, 1, 1, std::max<Index>(1, c.shape.batch), 0}; }

  // Sums over steps and rows on top of what a step's own products are off by.
  double tolerance(const Case& c) const {
    return (c.problem.tolerance(1) + operand_tolerance(format_)) * std::sqrt(double(1 + c.shape.steps * c.shape.batch));
  }

  void compare(const Shape& shape) const {
    const Case c(cell_, shape);
    for (const KernelTable* table : tested_tables(format_)) {
      const Gradients<T> expected = reference(c, arithmetic_of(*table, format_for<T>(c.problem.spec, format_)));
      const Gradients<T> got = computed(c, *table, alone(c), alone(c));
      CHECK_NOTHING_WRONG(expected.difference(got, has_fused_multiply_add(*table) ? 0 : tolerance(c)),
                          std::string(table->name) + ", " + c.problem.name());
    }
  }

  // Into places that hold something already.
  void accumulated(const std::vector<Shape>& shapes) {
    const bool plain = format_ == plain_format<T>;
    const KernelTable& table = plain ? *available_tables().back() : *tested_tables(format_).back();
    for (const Shape& shape : shapes) {
      const Case c(cell_, shape);
      const Gradients<T> expected = reference(c, arithmetic_of(table, format_for<T>(c.problem.spec, format_)), T(0.25));
      const Gradients<T> got = computed(c, table, alone(c), alone(c), {}, T(0.25));
      const double allowed = has_fused_multiply_add(table) ? 0 : tolerance(c);
      CHECK_NOTHING_WRONG(expected.difference(got, allowed), "accumulated, " + c.problem.name());
    }
  }

  void plans(const std::vector<Shape>& shapes) {
    for (const Shape& shape : shapes) {
      const Case c(cell_, shape);
      const KernelTable& table = *available_tables().back();
      const Gradients<T> expected = computed(c, table, alone(c), alone(c));
      for (Plan plan : {Plan{1, 1, 2, 1, 40, 2e12}, Plan{1, 1, 1, 2, 33, 2e12}, Plan{1, 1, 3, 1, 64, 2e12},
                        Plan{1, 1, 1, 3, 33, 2e12}})
        for (const bool far : {false, true}) {
          plan.far = far;
          for (const bool recompute : {false, true})
            CHECK_NOTHING_WRONG(expected.difference(computed(c, table, plan, plan, {{}, recompute}), 0),
                                "plans, " + c.problem.name());
          // Backward's rows need not be shared out as forward's were.
          CHECK_NOTHING_WRONG(expected.difference(computed(c, table, plan, alone(c)), 0), "alone, " + c.problem.name());
          CHECK_NOTHING_WRONG(expected.difference(computed(c, table, Plan{1, 1, 3, 1, 64, 2e12}, plan), 0),
                              "other rows, " + c.problem.name());
        }
      const Plan beside{1, 1, 1, 1, 33, 2e12, 1};
      for (Plan plan : {beside, Plan{1, 1, 2, 1, 70, 2e12, 1}, Plan{1, 1, 1, 1, 100000, 2e12, 2}})
        for (const bool far : {false, true}) {
          plan.far = far;
          CHECK_NOTHING_WRONG(expected.difference(computed(c, table, alone(c), plan), 0),
                              "gradient threads, " + c.problem.name());
        }
      CHECK_NOTHING_WRONG(expected.difference(computed(c, table, alone(c), beside, {{}, true}), 0),
                          "gradient threads, recomputing, " + c.problem.name());
      if (shape.directions > 1) continue;
      for (const Plan& plan : {Plan{2, 1, 1, 1, 7, 2e12}, Plan{2, 1, 2, 1, 3, 2e12}})
        for (const bool recompute : {false, true})
          CHECK_NOTHING_WRONG(expected.difference(computed(c, table, plan, alone(c), {{}, recompute}), 0),
                              "overlapping layers, " + c.problem.name());
    }
  }

  // What exceeds the caches is kept past them, and padding written so.
  void large_tapes() {
    Core small = core();
    small.l2 = small.l3 = 1;
    for (const Shape& shape :
         {Shape{7, 64, 5, 6, 2, 1}, Shape{9, 129, 7, 5, 2, 2, {7, 0, 3, 7, 2}}, Shape{3, 2, 5, 67, 2, 2}}) {
      const Case c(cell_, shape);
      const KernelTable& table = *available_tables().back();
      const Network<T> network(c.problem.spec, c.problem.parameters, table, small);
      network.pack_for_backward(c.problem.parameters);
      for (const Plan& plan : {alone(c), Plan{1, 1, 2, 1, 40, 2e12}})
        CHECK_NOTHING_WRONG(
            computed(c, table, alone(c), alone(c)).difference(computed_by(network, c, plan, alone(c)), 0),
            "large tapes, " + c.problem.name());
    }
  }

  // A network in the memory of one that is gone is as good as one in new memory.
  void in_used_memory() {
    const Case c(cell_, {33, 65, 5, 7, 2, 2});
    const Problem<T> before(cell_, c.shape, 2);
    for (const KernelTable* table : tested_tables()) {
      const void *weights, *transposed;
      {
        const Network<T> first(before.spec, before.parameters, *table);
        first.pack_for_backward(before.parameters);
        weights = first.layer(1, 1).stages.back().recurrent.data();
        transposed = first.back_layer(1, 1).recurrent.weights.data();
      }
      const Network<T> second(c.problem.spec, c.problem.parameters, *table);
      second.pack_for_backward(c.problem.parameters);
      const auto is_used = [&](const void* data) { return data == weights || data == transposed; };
      bool used = false;
      for (Index layer = 0; layer < 2; ++layer)
        for (Index direction = 0; direction < 2; ++direction)
          used = used || is_used(second.layer(layer, direction).stages.back().recurrent.data()) ||
                 is_used(second.back_layer(layer, direction).recurrent.weights.data());
      CHECK(used || sizeof(T) * 65 * 65 * before.spec.description().gates < BlockStore::kLeast);
      const Gradients<T> expected = computed(c, *table, alone(c), alone(c));
      CHECK_NOTHING_WRONG(expected.difference(computed_by(second, c, alone(c), alone(c)), 0),
                          "in used memory, " + c.problem.name());
    }
  }

  // Many blocks of steps, none of which may overwrite what threads still read.
  void ring() {
    const Case c(cell_, {5, 9, 40, 120, 1, 1, ragged(120, 40)});
    const KernelTable& table = *available_tables().back();
    const Gradients<T> expected = computed(c, table, alone(c), alone(c));
    for (const Plan& plan : {Plan{1, 1, 2, 1, 60, 2e12}, Plan{1, 1, 3, 1, 40, 2e12}, Plan{1, 1, 1, 2, 120, 2e12}})
      CHECK_NOTHING_WRONG(expected.difference(computed(c, table, plan, plan), 0), "ring, " + c.problem.name());
    for (const Plan& plan : {Plan{1, 1, 1, 1, 120, 2e12, 1}, Plan{1, 1, 1, 1, 250, 2e12, 2}})
      CHECK_NOTHING_WRONG(expected.difference(computed(c, table, alone(c), plan), 0), "ring, " + c.problem.name());
    CHECK_NOTHING_WRONG(expected.difference(reference(c), tolerance(c)), "ring, " + c.problem.name());
    groups_apart();
  }

  // With gradient threads, groups of rows never meet: one may be most of two blocks ahead of another. The rows end at different steps, so
  // that blocks differ in size and come to lie anywhere in the ring.
  void groups_apart() {
    constexpr int repetitions = 10;
    const Case c(cell_, {5, 33, 100, 4, 1, 1, {100, 71, 79, 91}});
    const KernelTable& table = *available_tables().back();
    const Gradients<T> expected = computed(c, table, alone(c), alone(c));
    for (const Plan& plan : {Plan{1, 1, 2, 1, 32, 2e12, 1}, Plan{1, 1, 3, 1, 32, 2e12, 2}})
      for (int repetition = 0; repetition < repetitions; ++repetition)
        CHECK_NOTHING_WRONG(expected.difference(computed(c, table, alone(c), plan), 0),
                            "groups apart, " + c.problem.name());
  }

  // The comparisons above would notice it if forward had run on other weights.
  void mistakes_are_seen() {
    const Shape shape{17, 33, 3, 5};
    const Case c(cell_, shape);
    const Gradients<T> expected = reference(c);
    for (const int which : {0, 1}) {
      Case wrong(cell_, shape);
      wrong.problem.spoil(which);
      for (const KernelTable* table : tested_tables()) {
        const Gradients<T> got = computed(wrong, *table, alone(c), alone(c));
        CHECK(!expected.difference(got, 0).empty());
        CHECK(!expected.difference(got, tolerance(c)).empty());
      }
    }
  }

  const NamedCell cell_;
  const Format format_;
};

}  // namespace
}  // namespace test
}  // namespace gatedrnn

// AddressSanitizer takes ten times as long, and looks at memory: it sees all sizes, doubles, and formats that round, with
// two cells, and the others at a few sizes.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kSomeWillDo = true;
#else
constexpr bool kSomeWillDo = false;
#endif

// test_backward [all | formats | threads [the beginning of cells' names]]
int main(int argc, char** argv) {
  using namespace gatedrnn;
  const std::string part = argc > 1 ? argv[1] : "all", only = argc > 2 ? argv[2] : "";
  for (const test::NamedCell& cell : part == "formats" ? test::typical_cells() : test::all_cells()) {
    if (std::string(cell.name).rfind(only, 0) != 0) continue;
    const bool whole = !kSomeWillDo || cell.projection || cell.cell == Cell::gru;
    if (part == "threads") {
      test::BackwardTest<float>(cell).run_threads();
    } else if (part == "formats") {
      if (!whole) continue;
      for (const Format format : {Format::bfloat16, Format::bfloat16x3})
        test::BackwardTest<float>(cell, format).run_format();
    } else {
      // General cells differ from each other in their mathematics alone, for which a few sizes will do.
      const bool like_another = !whole || (description(cell.cell).is_general() && !test::is_typical(cell));
      const auto run = [&](auto&& of_cell) { like_another ? of_cell.run_sizes() : of_cell.run(); };
      run(test::BackwardTest<float>(cell));
      if (whole) run(test::BackwardTest<double>(cell));
    }
  }
  return test::finish(("test_backward " + part + " " + only).c_str());
}
