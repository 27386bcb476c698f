// What each format's product is, in plain loops: how operands and weights are rounded, and in which order sums are added up.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gatedrnn/format.h"
#include "gatedrnn/sums.h"

namespace gatedrnn {

// How a table sums up bfloat16: as AMX does, or in pairs, as AVX512-BF16.
enum class Bfloat16Order { halves, pairs };

struct Arithmetic {
  Format format = Format::float32;
  Bfloat16Order order = Bfloat16Order::halves;

  bool rounds() const { return format != Format::float32 && format != Format::float64; }
  // What multiplies so many inputs.
  Arithmetic of_inputs(Index count) const { return format == Format::int8 && count <= 16 ? Arithmetic{} : *this; }
  Index slot_stride(Index units) const { return rounds() ? round_up(units, kRoundedPart) : units; }
};

inline float nearest_bfloat16(float x) {
  if (!std::isfinite(x)) return x;
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += 0x7fff + (bits >> 16 & 1);
  bits &= 0xffff0000u;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float rest_of(float x) { return x - nearest_bfloat16(x); }

template <class Change>
std::vector<float> each(const std::vector<float>& values, Change&& change) {
  std::vector<float> changed;
  for (const float value : values) changed.push_back(change(value));
  return changed;
}

// start + x w, block by block. In each block two chains, of the even and the odd terms.
inline float add_halves(float start, const std::vector<float>& x, const std::vector<float>& w, std::size_t begin) {
  float chains[2] = {0, 0};
  for (std::size_t k = begin; k < std::min(begin + 32, x.size()); ++k)
    chains[k % 2] = std::fma(x[k], w[k], chains[k % 2]);
  return start + (chains[0] + chains[1]);
}

inline float add_bfloat16(float sum, const std::vector<float>& x, const std::vector<float>& w, Bfloat16Order order,
                          std::size_t block_terms = 2 * kBlockTerms) {
  const auto a = each(x, nearest_bfloat16), b = each(w, nearest_bfloat16);
  if (order == Bfloat16Order::halves) {
    for (std::size_t begin = 0; begin < x.size(); begin += 32) sum = add_halves(sum, a, b, begin);
    return sum;
  }
  for (std::size_t begin = 0; begin < x.size(); begin += block_terms) {
    float block = 0;
    for (std::size_t k = begin; k < std::min(begin + block_terms, x.size()); k += 2) {
      if (k + 1 < x.size()) block = std::fma(a[k + 1], b[k + 1], block);
      block = std::fma(a[k], b[k], block);
    }
    sum += block;
  }
  return sum;
}

inline float add_bfloat16x3(float sum, const std::vector<float>& x, const std::vector<float>& w) {
  const auto upper = [](float v) { return nearest_bfloat16(v); };
  const auto lower = [](float v) { return nearest_bfloat16(rest_of(v)); };
  const auto xu = each(x, upper), xl = each(x, lower), wu = each(w, upper), wl = each(w, lower);
  for (std::size_t begin = 0; begin < x.size(); begin += 32) {
    sum = add_halves(sum, xl, wu, begin);
    sum = add_halves(sum, xu, wl, begin);
    sum = add_halves(sum, xu, wu, begin);
  }
  return sum;
}

// The scale of some values, the largest of which becomes `levels`.
inline float scale_of(const std::vector<float>& values, float least, float levels, std::vector<int>& integers) {
  float range = least;
  for (const float value : values) range = std::max(range, std::fabs(value));
  for (const float value : values) integers.push_back(static_cast<int>(std::nearbyint(value * (levels / range))));
  return range / levels;
}

inline float add_int8(float sum, const std::vector<float>& x, const std::vector<float>& w, float least) {
  std::vector<int> a, b;
  const float scale_x = scale_of(x, std::max(least, 1e-30f), 127 * 256 + 127, a), scale_w = scale_of(w, 1e-30f, 127, b);
  for (std::size_t begin = 0; begin < x.size(); begin += 512) {
    std::int64_t block = 0;
    for (std::size_t k = begin; k < std::min<std::size_t>(begin + 512, x.size()); ++k)
      block += static_cast<std::int64_t>(a[k]) * b[k];
    sum = std::fma(static_cast<float>(block), scale_w * scale_x, sum);
  }
  return sum;
}

template <class T>
T add_plain(T sum, const std::vector<T>& x, const std::vector<T>& w) {
  constexpr std::size_t block_terms = kBlockTerms;
  for (std::size_t begin = 0; begin < x.size(); begin += block_terms) {
    T block = 0;
    for (std::size_t k = begin; k < std::min(begin + block_terms, x.size()); ++k) block = std::fma(x[k], w[k], block);
    sum += block;
  }
  return sum;
}

// start + the sum over k of w[k] * x[k]. `least` is the least scale of x.
inline float add_product(const Arithmetic& how, float start, const std::vector<float>& x, const std::vector<float>& w,
                         float least) {
  switch (how.format) {
    case Format::bfloat16: return add_bfloat16(start, x, w, how.order);
    case Format::bfloat16x3: return add_bfloat16x3(start, x, w);
    case Format::int8: return add_int8(start, x, w, least);
    default: return add_plain(start, x, w);
  }
}
// The same of terms that are pairs of a gradient, padded to whole parts: in blocks of a part.
inline float add_pairs(const Arithmetic& how, float start, const std::vector<float>& x, const std::vector<float>& w) {
  if (how.format == Format::bfloat16) return add_bfloat16(start, x, w, how.order, kRoundedPart);
  return add_product(how, start, x, w, 0);
}
inline double add_pairs(const Arithmetic&, double start, const std::vector<double>&, const std::vector<double>&) {
  return start;  // is never rounded
}
inline double add_product(const Arithmetic&, double start, const std::vector<double>& x, const std::vector<double>& w,
                          double) {
  return add_plain(start, x, w);
}

}  // namespace gatedrnn
