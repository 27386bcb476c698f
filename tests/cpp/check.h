// Checks for test programs: a failed one prints where it stands, what was expected and what came, and the program goes on and
// ends with a non-zero status. A program that checked nothing fails too.
#pragma once

#include <cstdio>
#include <sstream>
#include <string>

namespace gatedrnn::test {

struct Tally {
  long checks = 0, failures = 0;
};

inline Tally& tally() {
  static Tally counts;
  return counts;
}

// Counts a check. The first failures are printed, the rest only counted. A check that passes allocates nothing.
inline bool record(bool passed, const char* file, int line, const char* message) {
  constexpr long printed = 25;
  ++tally().checks;
  if (passed) return true;
  if (++tally().failures <= printed) std::fprintf(stderr, "%s:%d: %s\n", file, line, message);
  return false;
}

template <class A, class B>
bool record_equal(const A& expected, const B& got, const char* text, const char* file, int line) {
  if (expected == got) return record(true, file, line, "");
  std::ostringstream message;
  message << text << ": expected " << expected << ", got " << got;
  return record(false, file, line, message.str().c_str());
}

// Nothing to say about a thing that is as it should be; else what is wrong with it.
inline bool record_nothing_wrong(const std::string& complaint, const std::string& where, const char* file, int line) {
  if (complaint.empty()) return record(true, file, line, "");
  return record(false, file, line, (where + ": " + complaint).c_str());
}

// What main() returns.
inline int finish(const char* program) {
  const Tally& counts = tally();
  std::printf("%s: %ld checks, %ld failed\n", program, counts.checks, counts.failures);
  if (counts.checks == 0) std::fprintf(stderr, "%s: nothing was checked\n", program);
  return counts.failures > 0 || counts.checks == 0 ? 1 : 0;
}

}  // namespace gatedrnn::test

#define CHECK(condition) \
  ::gatedrnn::test::record((condition), __FILE__, __LINE__, "expected true, got false: " #condition)

#define CHECK_EQUAL(expected, got) ::gatedrnn::test::record_equal((expected), (got), #got, __FILE__, __LINE__)

// `complaint` is a std::string, empty where all is well; `where` says which case this is.
#define CHECK_NOTHING_WRONG(complaint, where) \
  ::gatedrnn::test::record_nothing_wrong((complaint), (where), __FILE__, __LINE__)

#define CHECK_THROWS(exception, ...)                                                                       \
  do {                                                                                                     \
    std::string came = "nothing";                                                                          \
    try {                                                                                                  \
      static_cast<void>(__VA_ARGS__);                                                                      \
    } catch (const exception&) {                                                                           \
      came.clear();                                                                                        \
    } catch (...) {                                                                                        \
      came = "another exception";                                                                          \
    }                                                                                                      \
    ::gatedrnn::test::record(came.empty(), __FILE__, __LINE__,                                             \
                             (#__VA_ARGS__ ": expected it to throw " #exception ", got " + came).c_str()); \
  } while (false)
