// Random networks with inputs, and results that can be compared bit by bit.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "gatedrnn/dispatch.h"
#include "gatedrnn/network.h"
#include "reference.h"
#include "some_options.h"

#ifdef GATEDRNN_TEST_WIDE
namespace gatedrnn::wide {
extern const KernelTable table;  // vectors of 64 bytes made of scalars: the tiles of AVX-512 on any machine
}
namespace gatedrnn::wide_amx {
extern const KernelTable table;  // an emulated matrix unit beside it
}
#endif

namespace gatedrnn::test {

// Those that have kernels of their own for a format.
inline std::vector<const KernelTable*> tested_tables(Format format = Format::float32) {
  std::vector<const KernelTable*> tables;
  const auto add = [&](const KernelTable* table) {
    const bool is_double = format == Format::float64;
    if ((is_double ? table->with<double>(format) : table->with<float>(format)) == table) tables.push_back(table);
  };
  for (const KernelTable* table : available_tables()) add(table);
#ifdef GATEDRNN_TEST_WIDE
  for (const KernelTable* table : {&wide::table, &wide_amx::table}) add(table);
#endif
  return tables;
}

struct NamedCell {
  const char* name;
  Cell cell;
  bool projection;
};

// Every cell, and an LSTM with a projection.
inline std::vector<NamedCell> every_cell() {
  std::vector<NamedCell> all;
  for (int cell = 0; cell < kCellCount; ++cell) all.push_back({kCellNames[cell], static_cast<Cell>(cell), false});
  all.push_back({"lstm with projection", Cell::lstm, true});
  return all;
}

#ifdef __SANITIZE_ADDRESS__  // takes ten times as long, and looks at memory
constexpr bool kForMemory = true;
#else
constexpr bool kForMemory = false;
#endif

// Of general cells, which are alike in memory and in their products, two: one with a c and peepholes, and one with two stages. Of
// normalised ones, those with products of their own, and one with peepholes. For memory, of other cells too only those that have
// what others have and more.
inline bool is_typical(const NamedCell& named) {
  const Cell cell = named.cell;
  if (description(cell).is_normalized())
    return cell == Cell::lstm_norm_products ||
           (!kForMemory && (cell == Cell::gru_norm_products || cell == Cell::lstm_coupled_peephole_norm_gates));
  if (description(cell).is_general())
    return cell == Cell::lstm_coupled_peephole_general || cell == Cell::gru_reset_before_general;
  return !kForMemory || (cell != Cell::lstm_peephole && cell != Cell::lstm_coupled && cell != Cell::rnn_relu);
}
inline std::vector<NamedCell> typical_cells() {
  std::vector<NamedCell> typical;
  for (const NamedCell& cell : every_cell())
    if (is_typical(cell)) typical.push_back(cell);
  return typical;
}
inline std::vector<NamedCell> all_cells() { return kForMemory ? typical_cells() : every_cell(); }

struct Shape {
  Index input_size, hidden_size, steps, batch;
  Index layers = 1, directions = 1;
  std::vector<Index> lengths = {};
  bool bias = true;
  bool states = true;    // initial states are given
  bool reverse = false;  // the one direction runs from the end
};

// So many lengths in 0 .. steps.
inline std::vector<Index> ragged(Index batch, Index steps) {
  std::vector<Index> lengths;
  for (Index b = 0; b < batch; ++b) lengths.push_back((b * 97 + 5) % (steps + 1));
  return lengths;
}

template <class T>
constexpr const char* type_name() {
  return sizeof(T) == 4 ? "float" : "double";
}

// Does this table round once for a multiplication and an addition, and so promise the reference's bits?
inline bool has_fused_multiply_add(const KernelTable& table) { return std::string(table.name) != "baseline"; }

// How a table computes a format.
inline Arithmetic arithmetic_of(const KernelTable& table, Format format) {
  const bool pairs = std::string(table.name) == "avx512_bf16" && format == Format::bfloat16;
  return {format, pairs ? Bfloat16Order::pairs : Bfloat16Order::halves};
}

// How far off one is without fused operations: an operand that lies between two numbers of the format may become either.
inline double operand_tolerance(Format format) {
  if (format == Format::float32 || format == Format::float64) return 0;
  return format == Format::bfloat16 ? 4.0 / 256 : 4.0 / 32768;
}

// What a call writes. Rows stand apart, and what lies between and behind them has to stay as it was.
template <class T>
struct Results {
  std::vector<T> y, h_n, c_n;

  // Empty if all bits are equal, else the first difference.
  std::string difference(const Results& got) const {
    for (const auto& [name, mine, theirs] :
         {std::tuple("y", &y, &got.y), std::tuple("h_n", &h_n, &got.h_n), std::tuple("c_n", &c_n, &got.c_n)}) {
      if (mine->size() != theirs->size()) return std::string(name) + ": sizes differ";
      for (std::size_t i = 0; i < mine->size(); ++i)
        if (std::memcmp(&(*mine)[i], &(*theirs)[i], sizeof(T)) != 0) return text(name, i, (*mine)[i], (*theirs)[i]);
    }
    return {};
  }

  // Empty if no value is further off than `tolerance`.
  std::string difference(const Results& got, double tolerance) const {
    for (const auto& [name, mine, theirs] :
         {std::tuple("y", &y, &got.y), std::tuple("h_n", &h_n, &got.h_n), std::tuple("c_n", &c_n, &got.c_n)}) {
      if (mine->size() != theirs->size()) return std::string(name) + ": sizes differ";
      for (std::size_t i = 0; i < mine->size(); ++i)
        if (!(std::fabs(double((*mine)[i]) - double((*theirs)[i])) <= tolerance))  // also where one is NaN
          return text(name, i, (*mine)[i], (*theirs)[i]) + ", allowed error " + std::to_string(tolerance);
    }
    return {};
  }

  double largest() const {
    double most = 0;
    for (const auto* values : {&y, &h_n, &c_n})
      for (const T value : *values) most = std::max(most, std::fabs(double(value)));
    return most;
  }

 private:
  static std::string text(const char* name, std::size_t i, T expected, T got) {
    std::ostringstream out;
    out.precision(std::numeric_limits<T>::max_digits10);
    out << name << "[" << i << "]: expected " << expected << ", got " << got;
    return out.str();
  }
};

// A network's parameters and one call's inputs. Inputs are uniform in -1 .. 1; each matrix keeps the size of what it multiplies.
template <class T>
class Problem {
 public:
  Problem(const NamedCell& cell, const Shape& shape, unsigned seed = 1) : cell_(cell), shape_(shape), random_(seed) {
    spec.cell = cell.cell;
    spec.input_size = shape.input_size;
    spec.hidden_size = shape.hidden_size;
    spec.num_layers = shape.layers;
    spec.directions = shape.directions;
    spec.options = some_options(cell.cell);
    spec.reverse = shape.reverse;
    spec.proj_size = cell.projection ? std::max<Index>(1, shape.hidden_size / 2) : 0;
    const Index states = shape.layers * shape.directions;
    values_.reserve(12 * states);  // so that their addresses stay
    for (Index i = 0; i < states; ++i) parameters.push_back(layer(i / shape.directions));
    x_.assign(x_size(), std::numeric_limits<T>::quiet_NaN());
    for (Index t = 0; t < shape.steps; ++t)
      for (Index b = 0; b < shape.batch; ++b)
        for (Index k = 0; k < shape.input_size; ++k) x(t, b)[k] = next();
    if (shape.states) {
      h_0_ = random_values(states * shape.batch * spec.state_size(), 1);
      if (spec.description().has_c) c_0_ = random_values(states * shape.batch * shape.hidden_size, 1);
    }
  }

  Spec spec;
  Parameters<T> parameters;

  T* x(Index step, Index row) { return x_.data() + step * x_step() + row * x_row(); }
  std::vector<T>& matrix(int which) { return values_[which]; }  // of the first layer: weight_ih, weight_hh
  // Makes the last weight of each of its sums wrong, in turns: what all units have more is normalised away.
  void spoil(int which) {
    std::vector<T>& weights = matrix(which);
    const std::size_t depth = which == 0 ? spec.input_size : spec.state_size();
    for (std::size_t row = 0; row < weights.size() / depth; ++row)
      weights[(row + 1) * depth - 1] += row % 2 == 0 ? T(0.25) : T(-0.25);
  }

  // A call that writes to `results`, which are prepared for it.
  Sequence<T> sequence(Results<T>& results) const {
    constexpr T untouched = T(0.4375);  // in the range of results, so that tolerances stay small
    const Index states = shape_.layers * shape_.directions * shape_.batch;
    results.y.assign(shape_.steps * y_step() + 1, untouched);
    results.h_n.assign(states * spec.state_size() + guard, untouched);
    results.c_n.assign(spec.description().has_c ? states * spec.hidden_size + guard : 0, untouched);
    Sequence<T> s;
    s.steps = shape_.steps;
    s.batch = shape_.batch;
    s.x = x_.data();
    s.x_step = x_step();
    s.x_row = x_row();
    s.y = results.y.data();
    s.y_step = y_step();
    s.y_row = y_row();
    s.lengths = shape_.lengths.empty() ? nullptr : shape_.lengths.data();
    s.h_0 = h_0_.empty() ? nullptr : h_0_.data();
    s.c_0 = c_0_.empty() ? nullptr : c_0_.data();
    s.h_n = results.h_n.data();
    s.c_n = spec.description().has_c ? results.c_n.data() : nullptr;
    return s;
  }

  Results<T> reference(const Arithmetic& arithmetic = {}) const {
    Results<T> results;
    run_reference(spec, parameters, sequence(results), arithmetic);
    return results;
  }

  Index valid() const {
    Index sum = 0;
    for (const Index length : shape_.lengths) sum += length;
    return shape_.lengths.empty() ? shape_.steps * shape_.batch : sum;
  }

  // How far two correct computations may lie apart when they round in different places. A pre-activation is a chain of n
  // operations, each off by at most eps / 2 of a sum of order one, in either direction: sqrt(n) eps for the largest of many.
  // The activations (at most 2.5 ulp each, 5 in a cell) and the cell's own arithmetic come on top; steps and layers add up; and
  // both sides may be off. Without fused operations the products round too, which doubles n.
  double tolerance(double largest) const {
    const double n = 2.0 * double(2 + spec.layer_input_size(spec.num_layers > 1 ? 1 : 0) + spec.input_size +
                                  spec.hidden_size + spec.proj_size);
    const double per_step = std::sqrt(n) + 5 * 2.5 + 7;
    return 2 * double(std::numeric_limits<T>::epsilon()) * std::max(1.0, largest) * per_step *
           double(shape_.steps * shape_.layers);
  }

  std::string name() const {
    std::ostringstream out;
    out << cell_.name << " " << type_name<T>() << " I=" << spec.input_size << " H=" << spec.hidden_size
        << " P=" << spec.proj_size << " L=" << spec.num_layers << " D=" << spec.directions << " T=" << shape_.steps
        << " B=" << shape_.batch << (shape_.lengths.empty() ? "" : " ragged") << (shape_.bias ? "" : " no bias")
        << (shape_.reverse ? " reverse" : "");
    return out.str();
  }

 private:
  static constexpr Index guard = 5;

  Index x_row() const { return spec.input_size + 2; }
  Index x_step() const { return shape_.batch * x_row() + 3; }
  Index x_size() const {  // ends with the last feature, so that a sanitizer sees what reads on
    const bool empty = shape_.steps == 0 || shape_.batch == 0;
    return empty ? 1 : (shape_.steps - 1) * x_step() + (shape_.batch - 1) * x_row() + spec.input_size;
  }
  Index y_row() const { return spec.output_size() + 3; }
  Index y_step() const { return shape_.batch * y_row() + 1; }

  T next() { return static_cast<T>(static_cast<double>(random_()) / 2147483648.0 - 1.0); }  // 32 random bits

  std::vector<T> random_values(Index count, double scale) {
    std::vector<T> values(count);
    for (T& value : values) value = static_cast<T>(scale) * next();
    return values;
  }

  const T* parameter(Index count, Index depth) {
    values_.push_back(random_values(count, 1 / std::sqrt(double(depth))));
    return values_.back().data();
  }

  LayerParameters<T> layer(Index index) {
    const Index rows = spec.description().gates * spec.hidden_size, I = spec.layer_input_size(index);
    LayerParameters<T> p;
    p.weight_ih = parameter(rows * I, I);
    p.weight_hh = parameter(rows * spec.state_size(), spec.state_size());
    if (shape_.bias) p.bias_ih = parameter(rows, 1);
    if (shape_.bias) p.bias_hh = parameter(rows, 1);
    if (spec.proj_size > 0) p.weight_hr = parameter(spec.proj_size * spec.hidden_size, spec.hidden_size);
    for (int i = 0; i < spec.description().peephole_count; ++i) p.peephole[i] = parameter(spec.hidden_size, 1);
    visit_norm_parameters(spec.description(), shape_.bias, p, [&](const char*, int blocks, const T*& place) {
      place = parameter(blocks * spec.hidden_size, 1);
    });
    return p;
  }

  NamedCell cell_;
  Shape shape_;
  std::mt19937 random_;
  std::vector<std::vector<T>> values_;
  std::vector<T> x_, h_0_, c_0_;
};

}  // namespace gatedrnn::test
