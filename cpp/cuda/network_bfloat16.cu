#include "network.cuh"

namespace gatedrnn::cuda {

template std::unique_ptr<Network> make_typed_network<__nv_bfloat16>(const Spec&, const Parameters<Sum<__nv_bfloat16>>&,
                                                                    bool);

}  // namespace gatedrnn::cuda
