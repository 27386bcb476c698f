// The only translation unit of an instruction set. It exports one symbol, its table.
#include "back_step.h"
#include "fingerprint.h"
#include "gradients.h"
#include "pack.h"
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

// In the order of the enumerations. The linear stage starts from zero, so nothing projects into it.
template <class T>
constexpr Kernels<T> kernels() {
  using S = Simd<T>;
  return {S::lanes,
          {project<S, Stage::lstm>, project<S, Stage::lstm_peephole>, project<S, Stage::gru>,
           project<S, Stage::gru_before_gates>, project<S, Stage::gru_before_candidate>, project<S, Stage::rnn_tanh>,
           project<S, Stage::rnn_relu>, nullptr},
          {step<S, Stage::lstm, false>, step<S, Stage::lstm_peephole, false>, step<S, Stage::gru, false>,
           step<S, Stage::gru_before_gates, false>, step<S, Stage::gru_before_candidate, false>,
           step<S, Stage::rnn_tanh, false>, step<S, Stage::rnn_relu, false>, step<S, Stage::linear, false>},
          {step<S, Stage::lstm, true>, step<S, Stage::lstm_peephole, true>, step<S, Stage::gru, true>,
           step<S, Stage::gru_before_gates, true>, step<S, Stage::gru_before_candidate, true>,
           step<S, Stage::rnn_tanh, false>, step<S, Stage::rnn_relu, false>, step<S, Stage::linear, false>},
          {back_step<S, BackStage::lstm>, back_step<S, BackStage::lstm_peephole>, back_step<S, BackStage::gru>,
           back_step<S, BackStage::gru_before_candidate>, back_step<S, BackStage::gru_before_reset>,
           back_step<S, BackStage::rnn_tanh>, back_step<S, BackStage::rnn_relu>, back_step<S, BackStage::linear>},
          pack_units<S>,
          pack_rows<S>,
          pack_columns<S>,
          outer<S>,
          sum_columns<S>,
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
