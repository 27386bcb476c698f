// What the mathematics of a general cell (cells/general.h) is told, as data: the function of each gate, where values are clipped, and
// what layer normalisation adds to variances.
#pragma once

#include <limits>

namespace gatedrnn {

enum class ActivationKind {
  sigmoid,  // 1 / (1 + exp(-x))
  tanh,
  relu,              // max(x, 0)
  hard_sigmoid,      // min(max(alpha x + beta, 0), 1)
  leaky_relu,        // x > 0 ? x : alpha x
  elu,               // x > 0 ? x : alpha (exp(x) - 1)
  softsign,          // x / (1 + |x|)
  softplus,          // log(1 + exp(x))
  scaled_tanh,       // alpha tanh(beta x)
  affine,            // alpha x + beta
  thresholded_relu,  // x > alpha ? x : 0
};

struct ActivationDescription {
  const char* name;
  int parameters;      // alpha, or alpha and beta
  double alpha, beta;  // unless others are given
};

// By kind. Defaults are ONNX's.
inline constexpr ActivationDescription kActivationDescriptions[] = {
    {"sigmoid", 0, 0, 0},
    {"tanh", 0, 0, 0},
    {"relu", 0, 0, 0},
    {"hard_sigmoid", 2, 0.2, 0.5},
    {"leaky_relu", 1, 0.01, 0},
    {"elu", 1, 1, 0},
    {"softsign", 0, 0, 0},
    {"softplus", 0, 0, 0},
    {"scaled_tanh", 2, 1, 1},
    {"affine", 2, 1, 0},
    {"thresholded_relu", 1, 1, 0},
};
constexpr int kActivationKinds = sizeof(kActivationDescriptions) / sizeof(kActivationDescriptions[0]);
static_assert(kActivationKinds == static_cast<int>(ActivationKind::thresholded_relu) + 1);

template <class T>
struct Activation {
  ActivationKind kind = ActivationKind::sigmoid;
  T alpha = 0, beta = 0;

  bool operator==(const Activation& other) const {
    return kind == other.kind && alpha == other.alpha && beta == other.beta;
  }
};

constexpr int kMostActivations = 5;

template <class T>
struct CellOptions {
  static constexpr T never = std::numeric_limits<T>::infinity();

  Activation<T> activations[kMostActivations] = {};  // in the order of the cell's description
  T clip = never;                                    // of pre-activations, to -clip .. clip (ONNX)
  T cell_clip = never;                               // of c, likewise (TensorFlow)
  T layer_norm_eps = 0;                              // added to variances

  template <class To>
  CellOptions<To> as() const {
    CellOptions<To> to;
    for (int i = 0; i < kMostActivations; ++i)
      to.activations[i] = {activations[i].kind, static_cast<To>(activations[i].alpha),
                           static_cast<To>(activations[i].beta)};
    to.clip = static_cast<To>(clip);
    to.cell_clip = static_cast<To>(cell_clip);
    to.layer_norm_eps = static_cast<To>(layer_norm_eps);
    return to;
  }
  bool operator==(const CellOptions& other) const {
    for (int i = 0; i < kMostActivations; ++i)
      if (!(activations[i] == other.activations[i])) return false;
    return clip == other.clip && cell_clip == other.cell_clip && layer_norm_eps == other.layer_norm_eps;
  }
};

}  // namespace gatedrnn
