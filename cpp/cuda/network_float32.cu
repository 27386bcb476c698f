#include "network.cuh"

namespace gatedrnn::cuda {

template std::unique_ptr<Network> make_typed_network<float>(const Spec&, const Parameters<Sum<float>>&, bool);

}  // namespace gatedrnn::cuda
