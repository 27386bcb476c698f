// sigmoid and tanh of every table: special values, tails of vectors, accuracy, and the same bits from all fused tables.
#include <algorithm>

#include "check.h"
#include "networks.h"

namespace gatedrnn::test {
namespace {

template <class T>
using Function = void (*)(const T*, T*, Index) noexcept;

template <class T>
T apply(Function<T> function, T x) {
  T y = T(-9);
  function(&x, &y, 1);
  return y;
}

template <class T>
bool same_bits(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

template <class T>
void check_special_values(const Elementwise<T>& k) {
  constexpr T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  constexpr T largest = std::numeric_limits<T>::max(), smallest = std::numeric_limits<T>::min();
  for (const T zero : {T(0), T(-0.0)}) {
    CHECK_EQUAL(T(0.5), apply(k.sigmoid, zero));
    CHECK(same_bits(zero, apply(k.tanh, zero)));  // with its sign
  }
  for (const T x : {infinity, largest, T(1000)}) {
    CHECK_EQUAL(T(1), apply(k.sigmoid, x));
    CHECK_EQUAL(T(1), apply(k.tanh, x));
    CHECK_EQUAL(T(-1), apply(k.tanh, -x));
    const T least = apply(k.sigmoid, -x);  // below any normal number
    CHECK(least >= 0 && least < smallest);
  }
  for (const T x : {nan, -nan}) {
    CHECK(std::isnan(apply(k.sigmoid, x)));
    CHECK(std::isnan(apply(k.tanh, x)));
  }
  for (const T x : {smallest, T(2) * smallest, std::numeric_limits<T>::epsilon()}) {
    CHECK_EQUAL(x, apply(k.tanh, x));
    CHECK_EQUAL(-x, apply(k.tanh, -x));
  }
}

// Each count of values up to a few vectors: exactly those are written, with the bits they have alone.
template <class T>
void check_tails(Function<T> function) {
  constexpr T untouched = T(-9);
  for (Index n = 0; n <= 37; ++n) {
    std::vector<T> x(n), y(n + 3, untouched);
    for (Index i = 0; i < n; ++i) x[i] = T(0.37) * T(i) - T(5);
    function(x.data(), y.data(), n);
    for (Index i = 0; i < n; ++i) CHECK(same_bits(apply(function, x[i]), y[i]));
    for (Index i = n; i < n + 3; ++i) CHECK_EQUAL(untouched, y[i]);
  }
}

// Both signs, from far below where the functions change to where they have long been constant.
template <class T>
std::vector<T> samples() {
  std::mt19937_64 random(1);
  std::vector<T> x;
  for (int exponent = -40; exponent <= 12; ++exponent)
    for (int i = 0; i < 400; ++i) {
      const T value = static_cast<T>(std::ldexp(1.0 + std::ldexp(double(random() >> 11), -53), exponent));
      x.push_back(i % 2 ? value : -value);
    }
  return x;
}

// Where the result is a normal number, it is this close to the truth: the bounds that the documentation gives.
constexpr double kSigmoidUlp = 2.5, kTanhUlp = 1.55;

template <class T, class Truth>
void check_accuracy(Function<T> function, Truth&& truth, double bound, const char* name) {
  const std::vector<T> x = samples<T>();
  std::vector<T> y(x.size());
  function(x.data(), y.data(), static_cast<Index>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) {
    const long double exact = truth(static_cast<long double>(x[i]));
    if (std::fabs(exact) < 2 * std::numeric_limits<T>::min()) continue;  // the flushed range: special values, above
    int exponent = 0;
    std::frexp(exact, &exponent);
    const long double ulp = std::ldexp(1.0L, exponent - std::numeric_limits<T>::digits);
    const double error = static_cast<double>(std::fabs(y[i] - exact) / ulp);
    std::string complaint;
    if (!(error <= bound)) complaint = "off by " + std::to_string(error) + " ulp at " + std::to_string(double(x[i]));
    CHECK_NOTHING_WRONG(complaint, name);
  }
}

template <class T>
void check_same_bits(Function<T> expected, Function<T> got) {
  const std::vector<T> x = samples<T>();
  std::vector<T> a(x.size()), b(x.size());
  expected(x.data(), a.data(), static_cast<Index>(x.size()));
  got(x.data(), b.data(), static_cast<Index>(x.size()));
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(same_bits(a[i], b[i]));
}

template <class T>
void check_table(const KernelTable& table) {
  const Elementwise<T>& k = table.of<T>().elementwise;
  check_special_values(k);
  check_tails(k.sigmoid);
  check_tails(k.tanh);
  check_accuracy(k.sigmoid, [](long double x) { return 1 / (1 + std::exp(-x)); }, kSigmoidUlp, "sigmoid");
  check_accuracy(k.tanh, [](long double x) { return std::tanh(x); }, kTanhUlp, "tanh");
  for (const KernelTable* other : available_tables())
    if (has_fused_multiply_add(table) && has_fused_multiply_add(*other)) {
      check_same_bits(k.sigmoid, other->of<T>().elementwise.sigmoid);
      check_same_bits(k.tanh, other->of<T>().elementwise.tanh);
    }
}

}  // namespace
}  // namespace gatedrnn::test

int main() {
  using namespace gatedrnn;
  for (const KernelTable* table : available_tables()) {
    std::printf("%s: tested\n", table->name);
    test::check_table<float>(*table);
    test::check_table<double>(*table);
  }
  return test::finish("test_activations");
}
