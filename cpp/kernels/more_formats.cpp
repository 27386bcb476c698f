// Like kernels.cpp, for instructions that only some formats gain from: the rest is the table's of GATEDRNN_BASE.
#if defined(__AMX_TILE__) || defined(GATEDRNN_TEST_TILES)
#define GATEDRNN_MATRIX_UNIT
#endif

#ifdef GATEDRNN_MATRIX_UNIT
#include "formats/amx.h"
#else
#include "dot_product.h"
#include "formats/bfloat16.h"
#include "formats/int8.h"
#endif
#include "kernels_of.h"

namespace gatedrnn {
namespace GATEDRNN_BASE {
extern const KernelTable table;
}

namespace GATEDRNN_ISA {

constexpr KernelTable::ByFormat<float> formats() {
#if defined(GATEDRNN_MATRIX_UNIT)
  return {{nullptr, nullptr, &kKernels<MatrixProduct<AmxBfloat16>>, &kKernels<MatrixProduct<AmxBfloat16x3>>,
           &kKernels<MatrixProduct<AmxInt8>>}};
#elif defined(__AVX512BF16__)
  return {
      {nullptr, nullptr, &kKernels<DotProduct<Bfloat16PairDot<Simd<float>>>>, nullptr, &kKernels<DotProduct<Int8Dot>>}};
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  return {{nullptr, nullptr, &kKernels<DotProduct<Bfloat16HalvesDot<Simd<float>>>>, nullptr,
           &kKernels<DotProduct<Int8BytesDot>>}};
#elif defined(__ARM_FEATURE_DOTPROD)
  return {{nullptr, nullptr, nullptr, nullptr, &kKernels<DotProduct<Int8BytesDot>>}};
#else
  return {{nullptr, nullptr, nullptr, nullptr, &kKernels<DotProduct<Int8Dot>>}};
#endif
}

extern const KernelTable table;
constexpr KernelTable table = {GATEDRNN_STRING(GATEDRNN_ISA), &GATEDRNN_BASE::table, formats(), {}, {}, {}, nullptr};

}  // namespace GATEDRNN_ISA
}  // namespace gatedrnn
