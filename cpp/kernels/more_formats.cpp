// Like kernels.cpp, for instructions that only some formats gain from: the rest is the table's of GATEDRNN_BASE.
#include "formats/bfloat16.h"
#include "formats/int8.h"
#include "kernels_of.h"

namespace gatedrnn {
namespace GATEDRNN_BASE {
extern const KernelTable table;
}

namespace GATEDRNN_ISA {

#ifdef __AVX512BF16__
constexpr const Kernels<float>* kBfloat16 = &kKernels<Bfloat16PairDot<Simd<float>>>;
#else
constexpr const Kernels<float>* kBfloat16 = nullptr;
#endif

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA),
                               &GATEDRNN_BASE::table,
                               {{nullptr, nullptr, kBfloat16, nullptr, &kKernels<Int8Dot>}},
                               {},
                               {},
                               {},
                               nullptr};

}  // namespace GATEDRNN_ISA
}  // namespace gatedrnn
