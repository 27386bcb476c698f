// The floating-point mode of a call.
#pragma once

namespace gatedrnn {

// Denormal numbers are treated as zero while an instance lives, on this thread.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned long long saved_;
};

}  // namespace gatedrnn
