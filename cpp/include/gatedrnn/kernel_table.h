// The border between the engine (compiled once, for any machine) and the kernels (compiled once per instruction set).
// Only plain structs and function pointers cross it.
#pragma once

#include "gatedrnn/back_step_args.h"
#include "gatedrnn/gradient_args.h"
#include "gatedrnn/rows_in_lanes.h"
#include "gatedrnn/step_args.h"

namespace gatedrnn {

// Packs the weights of the units of one vector, for one gate of a panel. Either units or terms are side by side.
template <class T>
struct PackWeightsArgs {
  const T* from;
  Index unit_stride, term_stride;
  Index units;  // that exist, the rest of the lanes being zero
  Index depth;
  void* to;       // the gate's first vector in the panel
  Index vectors;  // of the panel
  void* scales;   // of the units of this vector, where the format has them
};

// For each cell one of each stage, in their order; and kLinear, backward for all products without a cell's mathematics.
template <class Args>
struct StageKernels {
  using Kernel = void (*)(const Args&) noexcept;
  struct OfCell {
    Kernel stages[kMostStages + 1];
  };
  OfCell cells[kCellCount];

  void operator()(Cell cell, int stage, const Args& args) const { cells[static_cast<int>(cell)].stages[stage](args); }
};

// The gradients of parameters.
template <class T>
struct GradientKernels {
  void (*pack_rows)(const PackRowsArgs<T>&) noexcept;
  void (*pack_columns)(const PackColumnsArgs<T>&) noexcept;
  void (*transposed_gemm)(const TransposedGemmArgs<T>&) noexcept;
  void (*sum_columns)(const ColumnArgs<T>&) noexcept;
};

// The kernels of one format, whose states and sums are of T.
template <class T>
struct Kernels {
  PanelLayout layout;
  StageKernels<InputGemmArgs<T>> input_gemm;
  StageKernels<StepArgs<T>> step;
  StageKernels<StepArgs<T>> step_keeping;  // the same for training
  StageKernels<BackStepArgs<T>> back_step;
  // The mathematics of general cells, for which the kernels above multiply and no more.
  StageKernels<StepArgs<T>> cells, cells_keeping;
  StageKernels<BackStepArgs<T>> cells_back;
  void (*pack_weights)(const PackWeightsArgs<T>&) noexcept;
  GradientKernels<T> gradients;
  LaneKernels<T> rows_in_lanes;
  double (*multiply_rate_probe)(Index count, T* sink) noexcept;  // see Probes

  int lanes() const { return layout.lanes; }
};

// n values: the activations exactly as the cells compute them.
template <class T>
struct Elementwise {
  void (*sigmoid)(const T* x, T* y, Index n) noexcept;
  void (*tanh)(const T* x, T* y, Index n) noexcept;
};

// What the roofline measures beside the formats' own probes, which multiply zeros in `count` rounds of independent sums and return
// how many multiplications and additions that was: vectors read in one round. A sink has room for as many vectors; a probe of
// a format takes the first kProbeBytes of its for operands and weights.
constexpr int kReadVectors = 8;
constexpr Index kProbeBytes = 8192;

template <class T>
struct Probes {
  int lanes;
  void (*read)(const T* data, Index n, T* sink) noexcept;
};

constexpr int kHashBlock = 256;  // bytes

// Of a piece of memory, so far.
struct Hash {
  std::uint64_t key = 0x9e3779b97f4a7c15u;  // of the next block
  std::uint64_t all = 0;
  std::uint64_t sums[kHashBlock / sizeof(std::uint64_t)] = {};
};

struct KernelTable {
  template <class T>
  struct ByFormat {
    const Kernels<T>* kernels[kFormatCount];  // null where the table, or T, has none
  };
  template <class T>
  struct OfType {
    Elementwise<T> elementwise;
    Probes<T> probes;
  };

  const char* name;
  const KernelTable* base;  // has what this one has not: it adds formats to that; or null
  ByFormat<float> with_float;
  ByFormat<double> with_double;
  OfType<float> of_float;
  OfType<double> of_double;
  // Goes on with some blocks; the same on every machine.
  void (*hash_blocks)(const unsigned char* data, Index blocks, Hash& hash) noexcept;

  // The table that has the kernels of a format: this one or one that it adds to. Null where none has.
  template <class T>
  const KernelTable* with(Format format) const {
    if (by_format<T>().kernels[static_cast<int>(format)]) return this;
    return base ? base->with<T>(format) : nullptr;
  }
  // Null where there are none.
  template <class T>
  const Kernels<T>* find(Format format) const {
    const KernelTable* const table = with<T>(format);
    return table ? table->by_format<T>().kernels[static_cast<int>(format)] : nullptr;
  }
  // That which has all that is not of a format.
  const KernelTable& whole() const { return base ? base->whole() : *this; }
  template <class T>
  const OfType<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float))
      return whole().of_float;
    else
      return whole().of_double;
  }

 private:
  template <class T>
  const ByFormat<T>& by_format() const {
    if constexpr (sizeof(T) == sizeof(float))
      return with_float;
    else
      return with_double;
  }
};

}  // namespace gatedrnn
