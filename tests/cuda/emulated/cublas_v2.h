// As much of cuBLAS as cpp/cuda uses: column-major products in plain loops.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_STATUS_ALLOC_FAILED = 3 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cudaDataType_t { CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F };
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT };
using cublasHandle_t = struct EmulatedBlas*;

inline const char* cublasGetStatusString(cublasStatus_t) { return "emulated"; }
inline cublasStatus_t cublasCreate(cublasHandle_t*) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasDestroy(cublasHandle_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void*, std::size_t) { return CUBLAS_STATUS_SUCCESS; }

namespace emulated {

inline double load(const void* data, cudaDataType_t type, std::ptrdiff_t at) {
  switch (type) {
    case CUDA_R_64F: return static_cast<const double*>(data)[at];
    case CUDA_R_16F: return __half2float(static_cast<const __half*>(data)[at]);
    case CUDA_R_16BF: return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
    default: return static_cast<const float*>(data)[at];
  }
}

template <class A>
void product(bool a_transposed, bool b_transposed, int m, int n, int k, const void* a, cudaDataType_t type, int lda,
             const void* b, int ldb, A beta, A* c, int ldc) {
  for (int column = 0; column < n; ++column)
    for (int row = 0; row < m; ++row) {
      A sum = 0;
      for (int i = 0; i < k; ++i) {
        const std::ptrdiff_t at_a = a_transposed ? std::ptrdiff_t(row) * lda + i : std::ptrdiff_t(i) * lda + row;
        const std::ptrdiff_t at_b = b_transposed ? std::ptrdiff_t(i) * ldb + column : std::ptrdiff_t(column) * ldb + i;
        sum = std::fma(static_cast<A>(load(a, type, at_a)), static_cast<A>(load(b, type, at_b)), sum);
      }
      A& to = c[std::ptrdiff_t(column) * ldc + row];
      to = beta == 0 ? sum : to + sum;
    }
}

}  // namespace emulated

inline cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t of_a, cublasOperation_t of_b, int m, int n, int k,
                                   const void*, const void* a, cudaDataType_t a_type, int lda, const void* b,
                                   cudaDataType_t, int ldb, const void* beta, void* c, cudaDataType_t c_type, int ldc,
                                   cublasComputeType_t, cublasGemmAlgo_t) {
  const bool a_transposed = of_a == CUBLAS_OP_T, b_transposed = of_b == CUBLAS_OP_T;
  if (c_type == CUDA_R_64F)
    emulated::product(a_transposed, b_transposed, m, n, k, a, a_type, lda, b, ldb, *static_cast<const double*>(beta),
                      static_cast<double*>(c), ldc);
  else
    emulated::product(a_transposed, b_transposed, m, n, k, a, a_type, lda, b, ldb, *static_cast<const float*>(beta),
                      static_cast<float*>(c), ldc);
  return CUBLAS_STATUS_SUCCESS;
}
