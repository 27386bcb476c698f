// The only translation unit of an instruction set. It exports one symbol, its table.
#include "probe.h"
#include "project.h"
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

// In the order of enum Stage. The linear stage starts from zero, so nothing projects into it.
template <class T>
constexpr Kernels<T> kernels() {
  using S = Simd<T>;
  return {S::lanes,
          {project<S, Stage::lstm>, project<S, Stage::lstm_peephole>, project<S, Stage::gru>,
           project<S, Stage::gru_before_gates>, project<S, Stage::gru_before_candidate>, project<S, Stage::rnn_tanh>,
           project<S, Stage::rnn_relu>, nullptr},
          {step<S, Stage::lstm>, step<S, Stage::lstm_peephole>, step<S, Stage::gru>, step<S, Stage::gru_before_gates>,
           step<S, Stage::gru_before_candidate>, step<S, Stage::rnn_tanh>, step<S, Stage::rnn_relu>,
           step<S, Stage::linear>},
          map<S, cells::Activations<S>::sigmoid>,
          map<S, cells::Activations<S>::tanh>,
          fma_chain<S>,
          read<S>};
}

#define GATEDRNN_STRING_(name) #name
#define GATEDRNN_STRING(name) GATEDRNN_STRING_(name)

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA), kernels<float>(), kernels<double>()};

}  // namespace gatedrnn::GATEDRNN_ISA
