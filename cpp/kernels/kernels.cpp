// The only translation unit of an instruction set. It exports one symbol, its table.
#include "back_step.h"
#include "fingerprint.h"
#include "gradients.h"
#include "pack.h"
#include "probe.h"
#include "project.h"
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

// Stages of the same layout share a kernel. The linear stage starts from zero, so nothing projects into it.
template <class S>
struct ProjectOf {
  template <class Stage>
  static constexpr auto of() -> typename StageKernels<ProjectArgs<typename S::T>>::Kernel {
    constexpr StageDescription stage = Stage::description;
    if constexpr (std::is_same_v<Stage, LinearStage>)
      return nullptr;
    else
      return project<S, stage.gates, stage.slots, stage.unit_vectors()>;
  }
};

template <class S, bool keeping>
struct StepOf {
  template <class Stage>
  static constexpr auto of() {
    return step < S, Stage, keeping && Stage::keeps > ;
  }
};

template <class S>
struct BackStepOf {
  template <class Stage>
  static constexpr auto of() {
    return back_step<S, Stage>;
  }
};

template <class T>
constexpr Kernels<T> kernels() {
  using S = Simd<T>;
  return {S::lanes,
          by_stage<ProjectOf<S>, ProjectArgs<T>>(),
          by_stage<StepOf<S, false>, StepArgs<T>>(),
          by_stage<StepOf<S, true>, StepArgs<T>>(),
          by_stage<BackStepOf<S>, BackStepArgs<T>>(),
          pack_units<S>,
          pack_rows<S>,
          pack_columns<S>,
          outer<S>,
          sum_columns<S>,
          lane_kernels<T>(std::make_integer_sequence<int, kCellCount>()),
          map<S, cells::Activations<S>::sigmoid>,
          map<S, cells::Activations<S>::tanh>,
          fma_chain<S>,
          read<S>};
}

#define GATEDRNN_STRING_(name) #name
#define GATEDRNN_STRING(name) GATEDRNN_STRING_(name)

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA), kernels<float>(), kernels<double>(), hash_blocks};

}  // namespace gatedrnn::GATEDRNN_ISA
