// What of the device backend can be checked without a device: plans, the conversions of stored types, and that the device's
// arithmetic gives the cells' mathematics the bits of the processor's.
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "../cpp/check.h"
#include "../cpp/some_options.h"
#include "gatedrnn/cells/scalar.h"
#include "gatedrnn/cells/unit.h"
#include "gatedrnn/kernel_table.h"
#include "plan.h"
#include "types.h"

namespace gatedrnn::cuda {
namespace {

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

Problem problem(Cell cell, Index hidden, Index batch, Index steps, Index proj_size = 0) {
  Problem p;
  p.spec = {cell, 7, hidden, 1, 1, proj_size};
  p.steps = steps;
  p.batch = batch;
  return p;
}

constexpr DeviceLimits kHopper{132, 227 << 10, 65536, true};
constexpr DeviceLimits kFewRegisters{132, 227 << 10, 0, true};

// The threads of a block make every sum once, and every k belongs to one of its warps.
void check_tiling() {
  for (const Index rows : {1, 2, 4, 7, 8, 16, 33, 64})
    for (Index vectors = 1; vectors <= 256; ++vectors) {
      const Tiling t = tiling_of(rows, vectors);
      if (rows == 1) {
        CHECK(t.tile_rows == 1 && t.rows == 1 && t.parts == kRecurrenceWarps);
        continue;
      }
      if (t.parts == 0) {
        CHECK(vectors > 4 * 32);
        continue;
      }
      CHECK(t.rows >= rows && t.rows == t.warp_rows * t.row_tiles());
      CHECK_EQUAL(kRecurrenceWarps, t.parts * t.row_tiles());
      CHECK(Index(t.vector_lanes) * t.tile_vectors >= vectors);
      CHECK_EQUAL(t.warp_rows, t.row_lanes * t.tile_rows);
      CHECK(kWarp % (t.vector_lanes * t.row_lanes) == 0);
    }
}

void check_recurrence(const RecurrencePlan& plan, Index batch, Index hidden, Index depth, Index vectors) {
  CHECK(Index(plan.row_groups) * plan.rows >= batch && Index(plan.row_groups - 1) * plan.rows < batch);
  CHECK(Index(plan.unit_groups) * plan.units >= hidden && Index(plan.unit_groups - 1) * plan.units < hidden);
  CHECK(plan.shared_bytes <= kHopper.shared_bytes && plan.step_ns > 0);
  if (plan.undivided) {
    CHECK(plan.unit_groups == 1 && plan.fours() * 4 * kLanesOfUnits >= hidden);
    CHECK(plan.undivided_threads() <= kMostUndividedThreads);
    CHECK(plan.undivided_threads() * kUnitsOfWarp >= hidden * kWarp);
    return;
  }
  CHECK(Index(plan.row_groups) * plan.unit_groups <= kHopper.processors);
  const ProductPlan& product = plan.products[0];
  const Tiling& t = product.tiling;
  CHECK_EQUAL(depth, Index(product.depth));
  CHECK(product.vectors >= vectors * plan.units && (plan.rows == 1 || product.vectors % 4 == 0));
  CHECK(Index(t.parts) * product.part >= depth && product.part % t.k_turn() == 0);
  CHECK(product.chunk > 0 && product.chunk % t.k_turn() == 0);
  // What a warp stages, and then its sums, fits into its memory; and all weights into the block's.
  if (plan.rows == 1) {
    CHECK(plan.row_bytes >= Index(2) * 4 * t.parts * product.part);
    CHECK(plan.warp_bytes * kRecurrenceWarps >= Index(4) * product.vectors);
  } else {
    CHECK(plan.warp_bytes >= Index(4) * t.warp_rows * product.chunk);
    CHECK(plan.warp_bytes >= Index(4) * t.warp_rows * product.vectors);
  }
  CHECK(plan.shared_bytes >= 4 * product.weights() + kRecurrenceWarps * plan.warp_bytes);
}

void check_plans() {
  for (const CellDescription& described : kCellDescriptions)
    for (const Index hidden : {1, 31, 64, 132, 133, 256, 512, 1024, 2048})
      for (const Index batch : {1, 2, 8, 32, 33, 256, 5000})
        for (const DeviceLimits& device : {kHopper, kFewRegisters}) {
          const auto cell = static_cast<Cell>(&described - kCellDescriptions);
          const Plan plan = make_plan(problem(cell, hidden, batch, 100), device);
          CHECK(plan.most_pairs >= batch);
          CHECK(device.registers > 0 || (!plan.forward.undivided && !plan.backward.undivided));
          const Index gates = described.stages[0].gates;
          if (plan.forward.fits) check_recurrence(plan.forward, batch, hidden, hidden, gates);
          if (plan.backward.fits) check_recurrence(plan.backward, batch, hidden, gates * hidden, 1);
        }
  // The weights of 1024 units fit into the shared memory of all processors together, those of 2048 do not.
  const auto persistent = [](const Problem& p, const DeviceLimits& device) {
    const Plan plan = make_plan(p, device);
    return std::pair(plan.forward.fits, plan.backward.fits);
  };
  constexpr std::pair both(true, true), none(false, false);
  CHECK(persistent(problem(Cell::lstm, 1024, 1, 100), kHopper) == both);
  CHECK(persistent(problem(Cell::lstm, 2048, 1, 100), kHopper) == none);
  CHECK(persistent(problem(Cell::lstm, 128, 256, 100), kHopper) == both);
  CHECK(persistent(problem(Cell::gru, 256, 1, 2), kHopper) == both);
  CHECK(persistent(problem(Cell::gru, 256, 1, 1), kHopper) == none);
  CHECK(persistent(problem(Cell::lstm, 256, 1, 100, 64), kHopper) == none);
  CHECK(persistent(problem(Cell::lstm, 256, 1, 100), {132, 227 << 10, 0, false}) == none);
  CHECK(persistent(problem(Cell::lstm, 256, 1, 100), {0, 0, 0, true}) == none);
}

// Every value of 16 bits there and back, and what lies between two of them to the nearest, or to the even one.
template <class S>
void check_conversions(int mantissa_bits) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    S value;
    value.bits = static_cast<std::uint16_t>(bits);
    const float wide = converted<float>(value);
    if (std::isnan(wide)) {
      CHECK(std::isnan(converted<float>(converted<S>(wide))));
      continue;
    }
    CHECK_EQUAL(bits, std::uint32_t(converted<S>(wide).bits));
    S next;
    next.bits = static_cast<std::uint16_t>(bits + 1);
    const float after = converted<float>(next);
    if (!std::isfinite(wide) || !std::isfinite(after) || (bits & 0x7fff) == 0x7fff) continue;
    const double middle = (static_cast<double>(wide) + after) / 2;
    const auto even = static_cast<std::uint16_t>(bits + (bits & 1));
    if (static_cast<float>(middle) == middle) CHECK_EQUAL(even, converted<S>(static_cast<float>(middle)).bits);
    const auto nearer = static_cast<float>(wide + 0.4 * (static_cast<double>(after) - wide));
    CHECK_EQUAL(bits, std::uint32_t(converted<S>(nearer).bits));
  }
  CHECK_EQUAL(1.0f + std::ldexp(1.0f, -mantissa_bits),
              converted<float>(converted<S>(1.0f + std::ldexp(1.0f, -mantissa_bits))));
}

// A unit with values everywhere.
template <class Unit, class T>
Unit filled(T x, T y, T z) {
  Unit unit;
  static_assert(sizeof(Unit) % sizeof(T) == 0);
  for (std::size_t i = 0; i < sizeof(Unit) / sizeof(T); ++i)
    std::memcpy(reinterpret_cast<char*>(&unit) + i * sizeof(T), i % 3 == 0 ? &x : i % 3 == 1 ? &y : &z, sizeof(T));
  return unit;
}

// Takes two units of the same values, and of the two arithmetics, through the same mathematics.
template <template <class> class Unit, class T, class Through>
void check_unit(const CellOptions<T>& options, T x, T y, T z, Through&& through) {
  auto ours = filled<Unit<Arithmetic<T>>>(x, y, z);
  auto theirs = filled<Unit<cells::Scalar<T>>>(x, y, z);
  ours.cell_options = theirs.cell_options = &options;
  through(ours);
  through(theirs);
  CHECK(std::memcmp(&ours, &theirs, sizeof(ours)) == 0);
}

template <Cell cell, class T>
void check_cell(T x, T y, T z) {
  static const CellOptions<T> options = test::some_options(cell).template as<T>();
  check_unit<cells::Unit>(options, x, y, z, [](auto& unit) {
    Mathematics<cell>::template first<0>(unit);
    Mathematics<cell>::template second<0>(unit);
  });
  check_unit<cells::BackUnit>(options, x, y, z, [](auto& unit) { Mathematics<cell>::template backward<0>(unit); });
  if constexpr (description(cell).two_stages()) {
    check_unit<cells::Unit>(options, x, y, z, [](auto& unit) {
      Mathematics<cell>::template first<1>(unit);
      Mathematics<cell>::template second<1>(unit);
    });
    check_unit<cells::BackUnit>(options, x, y, z, [](auto& unit) { Mathematics<cell>::template backward<1>(unit); });
  }
}

template <class T>
void check_arithmetic() {
  using Ours = cells::Activations<Arithmetic<T>>;
  using Theirs = cells::Activations<cells::Scalar<T>>;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto check = [](T x) {
    CHECK(same_bits(Theirs::sigmoid(x), Ours::sigmoid(x)));
    CHECK(same_bits(Theirs::tanh(x), Ours::tanh(x)));
  };
  for (const T x : {T(0), T(-0.0), infinity, -infinity, std::numeric_limits<T>::denorm_min()}) check(x);
  CHECK(std::isnan(Ours::sigmoid(nan)) && std::isnan(Ours::tanh(nan)));
  for (int i = -4000; i <= 4000; ++i) {
    const T x = T(i) * T(0.01), y = T(i % 97) * T(0.03), z = T(i % 31) * T(0.1);
    check(x);
    for (int cell = 0; cell < kCellCount; ++cell)
      with_cell(static_cast<Cell>(cell), [&](auto constant) {  // devices have no normalised ones
        if constexpr (!description(decltype(constant)::value).is_normalized())
          check_cell<decltype(constant)::value>(x, y, z);
      });
  }
}

}  // namespace
}  // namespace gatedrnn::cuda

int main() {
  using namespace gatedrnn::cuda;
  check_tiling();
  check_plans();
  check_conversions<__half>(10);
  check_conversions<__nv_bfloat16>(7);
  check_arithmetic<float>();
  check_arithmetic<double>();
  return gatedrnn::test::finish("test_cuda_host");
}
