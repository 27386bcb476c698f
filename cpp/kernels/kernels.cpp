// The only translation unit of an instruction set. It exports one symbol, its table.
#include "back_step.h"
#include "fingerprint.h"
#include "fma_product.h"
#include "gradients.h"
#include "input_gemm.h"
#include "pack.h"
#include "probe.h"
#include "rows_in_lanes.h"
#include "step.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class S, typename S::V (*activation)(typename S::V)>
void map(const typename S::T* x, typename S::T* y, Index n) noexcept {
  for (Index i = 0; i < n; i += S::lanes) {
    const Index count = n - i < S::lanes ? n - i : S::lanes;
    alignas(64) typename S::T values[S::lanes] = {};
    for (Index k = 0; k < count; ++k) values[k] = x[i + k];
    S::store(values, activation(S::load(values)));
    for (Index k = 0; k < count; ++k) y[i + k] = values[k];
  }
}

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
    return step < Product, Stage, keeping && Stage::keeps > ;
  }
};

template <class Product>
struct BackStepOf {
  template <class Stage>
  static constexpr auto of() {
    return back_step<Product, Stage>;
  }
};

template <class Product>
constexpr Kernels<typename Product::T> kernels() {
  using S = typename Product::S;
  using T = typename Product::T;
  return {Product::layout,
          by_stage<InputGemmOf<Product>, InputGemmArgs<T>>(),
          by_stage<StepOf<Product, false>, StepArgs<T>>(),
          by_stage<StepOf<Product, true>, StepArgs<T>>(),
          by_stage<BackStepOf<Product>, BackStepArgs<T>>(),
          Product::pack,
          pack_rows<S>,
          pack_columns<S>,
          transposed_gemm<S>,
          sum_columns<S>,
          lane_kernels<T>(std::make_integer_sequence<int, kCellCount>())};
}

// Beside products: the activations by themselves, and the roofline's probes.
template <class T>
constexpr Elementwise<T> elementwise() {
  using S = Simd<T>;
  return {map<S, cells::Activations<S>::sigmoid>, map<S, cells::Activations<S>::tanh>};
}
template <class T>
constexpr Probes<T> probes() {
  return {Simd<T>::lanes, fma_chain<Simd<T>>, read<Simd<T>>};
}

#define GATEDRNN_STRING_(name) #name
#define GATEDRNN_STRING(name) GATEDRNN_STRING_(name)

constexpr Kernels<float> kFloat32 = kernels<FmaProduct<Simd<float>>>();
constexpr Kernels<double> kFloat64 = kernels<FmaProduct<Simd<double>>>();

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA),
                               {{&kFloat32}},  // by format
                               {{nullptr, &kFloat64}},
                               {elementwise<float>(), probes<float>()},
                               {elementwise<double>(), probes<double>()},
                               hash_blocks};

}  // namespace gatedrnn::GATEDRNN_ISA
