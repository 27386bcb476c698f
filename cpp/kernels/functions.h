// The functions of general cells. They are not inlined: a cell calls several, of any kind, and each has them all.
#pragma once

#include "simd.h"

namespace gatedrnn::GATEDRNN_ISA {

template <class S>
__attribute__((noinline)) typename S::V activation(const Activation<typename S::T>& f, typename S::V x) noexcept {
  return cells::Activations<S>::apply(f, x);
}

template <class S>
__attribute__((noinline)) typename S::V activation_slope(const Activation<typename S::T>& f, typename S::V x,
                                                         typename S::V y) noexcept {
  return cells::Activations<S>::slope(f, x, y);
}

}  // namespace gatedrnn::GATEDRNN_ISA
