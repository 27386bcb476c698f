// All kernels of a format.
#pragma once

#include "back_step.h"
#include "general_cells.h"
#include "gradients.h"
#include "input_gemm.h"
#include "layer_norm.h"
#include "rounded_gradients.h"
#include "rows_in_lanes.h"
#include "step.h"

namespace gatedrnn::GATEDRNN_ISA {

// Stages of the same layout share a kernel. The linear stage starts from zero, so no inputs are multiplied for it.
template <class Product>
struct InputGemmOf {
  template <class Stage>
  static constexpr auto of() -> typename StageKernels<InputGemmArgs<typename Product::T>>::Kernel {
    constexpr StageDescription stage = Stage::description;
    if constexpr (std::is_same_v<Stage, LinearStage>)
      return nullptr;
    else
      return input_gemm<Product, stage.gates, stage.slots, stage.unit_vectors()>;
  }
};

template <class Product, bool keeping>
struct StepOf {
  template <class Stage>
  static constexpr auto of() {
    constexpr bool keeps = keeping && Stage::Plain::keeps;
    return step<Product, typename Stage::Plain, keeps>;
  }
};

template <class Product>
struct BackStepOf {
  template <class Stage>
  static constexpr auto of() {
    // A general cell's leaves the mathematics, and may be any stage's.
    return back_step<Product, std::conditional_t<Stage::is_general, LinearStage, Stage>>;
  }
};

template <class S, bool keeping>
struct GeneralCellsOf {
  template <class Stage>
  static constexpr auto of() -> typename StageKernels<StepArgs<typename S::T>>::Kernel {
    if constexpr (Stage::is_normalized)
      return layer_norm_cells<S, Stage, keeping>;
    else if constexpr (Stage::is_general)
      return general_cells<S, Stage, keeping>;
    else
      return nullptr;
  }
};

template <class S>
struct GeneralCellsBackOf {
  template <class Stage>
  static constexpr auto of() -> typename StageKernels<BackStepArgs<typename S::T>>::Kernel {
    if constexpr (Stage::is_normalized)
      return layer_norm_cells_back<S, Stage>;
    else if constexpr (Stage::is_general)
      return general_cells_back<S, Stage>;
    else
      return nullptr;
  }
};

template <class Product>
constexpr auto back_steps() {
  using Args = BackStepArgs<typename Product::T>;
  if constexpr (Product::trains)
    return by_stage<BackStepOf<Product>, Args>();
  else
    return StageKernels<Args>{};
}

template <class Product>
constexpr GradientKernels<typename Product::T> gradient_kernels() {
  using S = typename Product::S;
  if constexpr (!Product::trains)
    return {};
  else if constexpr (Product::layout.rounds)
    return {RoundedGradients<Product>::pack_rows, RoundedGradients<Product>::pack_columns,
            RoundedGradients<Product>::transposed_gemm, sum_columns<S>};
  else
    return {pack_rows<S>, pack_columns<S>, transposed_gemm<S>, sum_columns<S>};
}

template <class Product>
constexpr Kernels<typename Product::T> kernels() {
  using S = typename Product::S;
  using T = typename Product::T;
  return {Product::layout,
          by_stage<InputGemmOf<Product>, InputGemmArgs<T>>(),
          by_stage<StepOf<Product, false>, StepArgs<T>>(),
          Product::trains ? by_stage<StepOf<Product, Product::trains>, StepArgs<T>>() : StageKernels<StepArgs<T>>{},
          back_steps<Product>(),
          by_stage<GeneralCellsOf<S, false>, StepArgs<T>>(),
          by_stage<GeneralCellsOf<S, true>, StepArgs<T>>(),
          by_stage<GeneralCellsBackOf<S>, BackStepArgs<T>>(),
          Product::pack,
          gradient_kernels<Product>(),
          lane_kernels<T>(std::make_integer_sequence<int, kCellCount>()),
          Product::multiply_rate_probe};
}

template <class Product>
constexpr auto kKernels = kernels<Product>();

#define GATEDRNN_STRING_(name) #name
#define GATEDRNN_STRING(name) GATEDRNN_STRING_(name)

}  // namespace gatedrnn::GATEDRNN_ISA
