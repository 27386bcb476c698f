// Dropout between layers, for training: each value of a layer's output is kept with probability 1 - rate, and then divided by
// that. Which ones depends on the seed and on the place (layer, time step, row, feature) alone.
#pragma once

#include <cstdint>

namespace gatedrnn {

struct Dropout {
  double rate = 0;
  std::uint64_t seed = 0;
};

// Whether the value at a place stays: a hash of the place (Steele, Lea and Flood, Fast splittable pseudorandom number
// generators, 2014), whose upper bits are compared with the rate.
constexpr bool stays(std::uint64_t place, const Dropout& dropout) {
  std::uint64_t bits = dropout.seed + (place + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  bits ^= bits >> 31;
  return static_cast<double>(bits >> 11) * 0x1p-53 >= dropout.rate;
}

}  // namespace gatedrnn
