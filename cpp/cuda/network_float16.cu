#include "network.cuh"

namespace gatedrnn::cuda {

template std::unique_ptr<Network> make_typed_network<__half>(const Spec&, const Parameters<Sum<__half>>&, bool);

}  // namespace gatedrnn::cuda
