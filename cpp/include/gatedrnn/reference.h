// The meaning of the library in plain loops: torch.nn's weights as they are, one row, one unit and one fused multiply-add at a
// time. On machines with fused multiply-add, every kernel gives exactly these bits.
#pragma once

#include "gatedrnn/network.h"

namespace gatedrnn {

template <class T>
void run_reference(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence);

}  // namespace gatedrnn
