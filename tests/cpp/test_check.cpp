// That checks can fail. CTest expects this program to fail, with these words.
#include <stdexcept>

#include "check.h"
#include "networks.h"

int main(int argc, char** argv) {
  using namespace gatedrnn::test;
  const std::string which = argc == 2 ? argv[1] : "";
  const auto throw_other = [] { throw std::runtime_error("other"); };
  if (which == "condition") CHECK(1 + 1 == 3);
  if (which == "equal") CHECK_EQUAL(3, 1 + 1);
  if (which == "complaint") CHECK_NOTHING_WRONG("it is wrong", "here");
  if (which == "throws_nothing") CHECK_THROWS(std::invalid_argument, 1 + 1);
  if (which == "throws_other") CHECK_THROWS(std::invalid_argument, throw_other());
  if (which == "last_bit") {
    Results<float> a, b;
    a.y = {1.0f, 2.0f};
    b.y = {1.0f, std::nextafter(2.0f, 3.0f)};
    CHECK_NOTHING_WRONG(a.difference(b), "values");
  }
  if (which == "not_a_number") {
    Results<float> a, b;
    a.y = {1.0f, 2.0f};
    b.y = {1.0f, std::numeric_limits<float>::quiet_NaN()};
    CHECK_NOTHING_WRONG(a.difference(b, 1e9), "values");
  }
  return finish("test_check");
}
