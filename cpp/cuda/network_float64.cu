#include "network.cuh"

namespace gatedrnn::cuda {

template std::unique_ptr<Network> make_typed_network<double>(const Spec&, const Parameters<Sum<double>>&, bool);

}  // namespace gatedrnn::cuda
