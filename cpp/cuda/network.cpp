#include "network.h"

namespace gatedrnn::cuda {

template <>
std::unique_ptr<Network> make_network<double>(const Spec& spec, const Parameters<double>& parameters, Storage, bool) {
  return make_typed_network<double>(spec, parameters, false);
}

template <>
std::unique_ptr<Network> make_network<float>(const Spec& spec, const Parameters<float>& parameters, Storage storage,
                                             bool tf32) {
  switch (storage) {
    case Storage::float16: return make_typed_network<__half>(spec, parameters, tf32);
    case Storage::bfloat16: return make_typed_network<__nv_bfloat16>(spec, parameters, tf32);
    default: return make_typed_network<float>(spec, parameters, tf32);
  }
}

}  // namespace gatedrnn::cuda
