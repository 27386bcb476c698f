#include "reference.h"

#include "gatedrnn/flush_denormals.h"
#include "reference_backward.h"
#include "reference_forward.h"

namespace gatedrnn {

template <class T>
void run_reference(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                   const Arithmetic& arithmetic) {
  const FlushDenormals flush;
  ReferenceForward<T>(spec, parameters, sequence, arithmetic).run();
}

template <class T>
void run_reference_backward(const Spec& spec, const Parameters<T>& parameters, const Sequence<T>& sequence,
                            const BackwardCall<T>& call, const Arithmetic& arithmetic) {
  const FlushDenormals flush;
  ReferenceBackward<T>(spec, parameters, sequence, call, arithmetic).run();
}

template void run_reference_backward(const Spec&, const Parameters<float>&, const Sequence<float>&,
                                     const BackwardCall<float>&, const Arithmetic&);
template void run_reference_backward(const Spec&, const Parameters<double>&, const Sequence<double>&,
                                     const BackwardCall<double>&, const Arithmetic&);
template void run_reference(const Spec&, const Parameters<float>&, const Sequence<float>&, const Arithmetic&);
template void run_reference(const Spec&, const Parameters<double>&, const Sequence<double>&, const Arithmetic&);

}  // namespace gatedrnn
