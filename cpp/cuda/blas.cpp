#include "blas.h"

#include <map>

namespace gatedrnn::cuda {

void check(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw std::bad_alloc();
  throw std::runtime_error(std::string("cuBLAS: ") + doing + ": " + cublasGetStatusString(status));
}

Blas::Blas() { check(cublasCreate(&handle_), "starting"); }

Blas::~Blas() {
  if (handle_) cublasDestroy(handle_);
}

// A workspace of our own: with cuBLAS's, which all streams share, two streams at once could change each other's order of sums.
void Blas::begin(cudaStream_t stream, bool tf32) {
  constexpr Index bytes = Index(32) << 20;
  tf32_ = tf32;
  check(cublasSetStream(handle_, stream), "choosing the stream");
  scratch_.begin(stream);
  check(cublasSetWorkspace(handle_, scratch_.take<char>(bytes).data(), static_cast<std::size_t>(bytes)),
        "setting the workspace");
}

BlasPool& blas_pool_of(int device) {
  static std::mutex mutex;
  static auto& pools = *new std::map<int, BlasPool>;
  const std::lock_guard lock(mutex);
  return pools[device];
}

}  // namespace gatedrnn::cuda
