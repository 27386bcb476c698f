// Matrix products of row-major matrices by cuBLAS.
#pragma once

#include <cublas_v2.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "scratch.h"
#include "types.h"

namespace gatedrnn::cuda {

void check(cublasStatus_t status, const char* doing);

// A matrix whose rows are `stride` values apart.
template <class T>
struct Matrix {
  T* data;
  Index stride;
};

// One caller at a time.
class Blas {
 public:
  Blas();
  ~Blas();
  Blas(const Blas&) = delete;
  Blas& operator=(const Blas&) = delete;

  // tf32: whether products of float32 may round their factors to 10 bits.
  void begin(cudaStream_t stream, bool tf32);
  void end() { scratch_.end(); }
  // For what a call needs between the two.
  Scratch& scratch() { return scratch_; }

  // C = A B^T (+ C): (m, k) times (n, k)
  template <class S>
  void multiply_transposed(Index m, Index n, Index k, Matrix<const S> a, Matrix<const S> b, bool add,
                           Matrix<Sum<S>> c) const {
    product<S>(CUBLAS_OP_T, CUBLAS_OP_N, m, n, k, a, b, add, c);
  }
  // C = A B (+ C): (m, k) times (k, n)
  template <class S>
  void multiply(Index m, Index n, Index k, Matrix<const S> a, Matrix<const S> b, bool add, Matrix<Sum<S>> c) const {
    product<S>(CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, a, b, add, c);
  }
  // C = A^T B (+ C): (k, m) times (k, n)
  template <class S>
  void multiply_columns(Index m, Index n, Index k, Matrix<const S> a, Matrix<const S> b, bool add,
                        Matrix<Sum<S>> c) const {
    product<S>(CUBLAS_OP_N, CUBLAS_OP_T, m, n, k, a, b, add, c);
  }

 private:
  // cuBLAS sees row-major matrices transposed, and so computes C^T = B^T A^T.
  template <class S>
  void product(cublasOperation_t of_b, cublasOperation_t of_a, Index m, Index n, Index k, Matrix<const S> a,
               Matrix<const S> b, bool add, Matrix<Sum<S>> c) const {
    if (m == 0 || n == 0 || (k == 0 && add)) return;
    const Sum<S> one = 1, zero = 0;
    check(cublasGemmEx(handle_, of_b, of_a, static_cast<int>(n), static_cast<int>(m), static_cast<int>(k), &one, b.data,
                       type_of<S>(), static_cast<int>(b.stride), a.data, type_of<S>(), static_cast<int>(a.stride),
                       add ? &one : &zero, c.data, type_of<Sum<S>>(), static_cast<int>(c.stride), compute_of<S>(),
                       CUBLAS_GEMM_DEFAULT),
          "a matrix product");
  }

  template <class S>
  static cudaDataType_t type_of() {
    switch (storage_of<S>) {
      case Storage::float64: return CUDA_R_64F;
      case Storage::float16: return CUDA_R_16F;
      case Storage::bfloat16: return CUDA_R_16BF;
      default: return CUDA_R_32F;
    }
  }
  template <class S>
  cublasComputeType_t compute_of() const {
    if (storage_of<S> == Storage::float64) return CUBLAS_COMPUTE_64F;
    return storage_of<S> == Storage::float32 && tf32_ ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  }

  cublasHandle_t handle_ = nullptr;
  Scratch scratch_;
  bool tf32_ = false;
};

// Handles and memory, which are slow to make: one for each call that runs at the same time, or whose stream is still at work.
class BlasPool {
 public:
  class Borrowed {
   public:
    Borrowed(BlasPool& pool, std::unique_ptr<Blas> blas) : pool_(pool), blas_(std::move(blas)) {}
    ~Borrowed() { pool_.give_back(std::move(blas_)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    Blas& operator*() const { return *blas_; }

   private:
    BlasPool& pool_;
    std::unique_ptr<Blas> blas_;
  };

  Borrowed borrow(cudaStream_t stream) {
    const std::lock_guard lock(mutex_);
    const auto found = std::find_if(free_.rbegin(), free_.rend(), [stream](const std::unique_ptr<Blas>& blas) {
      return blas->scratch().is_free_for(stream);
    });
    if (found == free_.rend()) return {*this, std::make_unique<Blas>()};
    std::unique_ptr<Blas> blas = std::move(*found);
    free_.erase(std::next(found).base());
    return {*this, std::move(blas)};
  }

 private:
  void give_back(std::unique_ptr<Blas> blas) {
    blas->end();
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(blas));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Blas>> free_;
};

// Shared by all networks of a device, which come and go as parameters change. Never destroyed: when a process ends the runtime may be
// gone before.
BlasPool& blas_pool_of(int device);

}  // namespace gatedrnn::cuda
