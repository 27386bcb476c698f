// The only translation unit of an instruction set. It exports one symbol, its table.
#include "fingerprint.h"
#include "formats/bfloat16.h"
#include "formats/fma.h"
#include "formats/int8.h"
#include "kernels_of.h"
#include "probe.h"

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

// Beside products: the activations by themselves, and the roofline's probes.
template <class T>
constexpr Elementwise<T> elementwise() {
  using S = Simd<T>;
  return {map<S, cells::Activations<S>::sigmoid>, map<S, cells::Activations<S>::tanh>};
}
template <class T>
constexpr Probes<T> probes() {
  return {Simd<T>::lanes, read<Simd<T>>};
}

template <class Dot>
constexpr auto dots() {
  return &kKernels<DotProduct<Dot>>;
}

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA),
                               nullptr,
                               {{dots<FmaDot<Simd<float>>>(), nullptr, dots<Bfloat16Dot<Simd<float>>>(),
                                 dots<Bfloat16x3Dot<Simd<float>>>(), dots<Int8Dot>()}},
                               {{nullptr, dots<FmaDot<Simd<double>>>()}},
                               {elementwise<float>(), probes<float>()},
                               {elementwise<double>(), probes<double>()},
                               hash_blocks};

}  // namespace gatedrnn::GATEDRNN_ISA
