// The meaning of the library in plain loops: torch.nn's weights as they are, one row, one unit and one fused multiply-add at a
// time. On machines with fused multiply-add, every kernel gives exactly these bits.
#pragma once

#include "gatedrnn/network.h"
#include "gatedrnn/tape.h"
#include "reference_products.h"

namespace gatedrnn {

template <class T>
void run_reference(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                   const Arithmetic& arithmetic = {});

// The gradients of what run_reference computes, which it does first: the sequence's results are written too. No dropout.
template <class T>
void run_reference_backward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                            const BackwardCall<T>& call, const Arithmetic& arithmetic = {});

}  // namespace gatedrnn
