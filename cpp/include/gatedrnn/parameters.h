// Where a module's parameters are, in torch.nn's layout, for one layer and direction.
#pragma once

#include <vector>

#include "gatedrnn/spec.h"

namespace gatedrnn {

template <class T>
struct LayerParameters {
  const T* weight_ih = nullptr;  // [G * H][I]
  const T* weight_hh = nullptr;  // [G * H][P or H]
  const T* bias_ih = nullptr;    // [G * H], or null
  const T* bias_hh = nullptr;    // [G * H], or null
  const T* weight_hr = nullptr;  // [P][H], with a projection
  const T* peephole[3] = {};     // i, f, o: [H] each, with peepholes
};

// By layer, and within it by direction.
template <class T>
using Parameters = std::vector<LayerParameters<T>>;

// What a candidate or gate starts from: the two biases added once. The reset-after GRU's candidate keeps them apart.
template <class T>
T bias_sum(const LayerParameters<T>& layer, Index row) {
  return layer.bias_ih ? layer.bias_ih[row] + layer.bias_hh[row] : T(0);
}

}  // namespace gatedrnn
