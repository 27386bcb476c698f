// What tests tell general cells.
#pragma once

#include "gatedrnn/cells.h"

namespace gatedrnn::test {

// Functions of a general cell, other ones for each cell, so that all of them have every kind; and clips that some values reach,
// and that keep the states of all from growing.
inline CellOptions<double> some_options(Cell cell) {
  constexpr double alphas[] = {0.6, 0.3, 0.8}, betas[] = {0.4, 0.7, -0.1};
  CellOptions<double> options;
  const int count = description(cell).activation_count, first = static_cast<int>(cell) * 4;
  for (int i = 0; i < count; ++i)
    options.activations[i] = {static_cast<ActivationKind>((first + i) % kActivationKinds), alphas[i % 3], betas[i % 3]};
  if (count == 0) return options;
  options.clip = 0.5;
  options.cell_clip = 0.75;
  options.layer_norm_eps = 1e-3;
  return options;
}

}  // namespace gatedrnn::test
