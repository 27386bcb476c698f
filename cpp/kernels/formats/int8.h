// int8: weights of 8 bits with a scale for each unit, operands of 16 bits with a scale for each row.
//
// A block's sum is an integer below 2^31, so the order of its terms does not matter: every instruction set gives the same bits.
#pragma once

#include "../dot_product.h"
#include "bits.h"

namespace gatedrnn::GATEDRNN_ISA {

// An operand may be two bytes with signs, 256 * upper + lower, the largest of which are 127.
constexpr float kLargestWeight = 127, kLargestOperand = 127 * 256 + 127;
constexpr Index kMostInt8Terms = 512;  // whose sum is below 2^31
constexpr float kLeastScale = 1e-30f;  // of values so small that their reciprocals would overflow

// A vector's lanes of integers: load 16 bits for each pair of weights, multiply pairs and add.
#if defined(__AVX512BW__) && !defined(GATEDRNN_TEST_SIMD)
struct Integers {
  __m512i v;
  static constexpr double pace = 2;

  static GATEDRNN_INLINE Integers zero() { return {_mm512_setzero_si512()}; }
  static GATEDRNN_INLINE Integers set(Pair pair) { return {_mm512_set1_epi32(static_cast<int>(pair))}; }
  static GATEDRNN_INLINE Integers load(const unsigned char* w) {
    return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)))};
  }
  GATEDRNN_INLINE void add(Integers x, Integers w) {
#ifdef __AVX512VNNI__
    v = _mm512_dpwssd_epi32(v, x.v, w.v);
#else
    v = _mm512_add_epi32(v, _mm512_madd_epi16(x.v, w.v));
#endif
  }
  GATEDRNN_INLINE __m512 value() const { return _mm512_cvtepi32_ps(v); }
};
#elif defined(__AVX2__) && !defined(GATEDRNN_TEST_SIMD)
struct Integers {
  __m256i v;
  static constexpr double pace = 1.7;

  static GATEDRNN_INLINE Integers zero() { return {_mm256_setzero_si256()}; }
  static GATEDRNN_INLINE Integers set(Pair pair) { return {_mm256_set1_epi32(static_cast<int>(pair))}; }
  static GATEDRNN_INLINE Integers load(const unsigned char* w) {
    return {_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)))};
  }
  GATEDRNN_INLINE void add(Integers x, Integers w) {
#ifdef __AVXVNNI__
    v = _mm256_dpwssd_avx_epi32(v, x.v, w.v);
#else
    v = _mm256_add_epi32(v, _mm256_madd_epi16(x.v, w.v));
#endif
  }
  GATEDRNN_INLINE __m256 value() const { return _mm256_cvtepi32_ps(v); }
};
#elif defined(__ARM_NEON) && !defined(GATEDRNN_TEST_SIMD)
struct Integers {
  int32x4_t v;  // or pairs of 16 bits, where these are factors
  static constexpr double pace = 1;

  static GATEDRNN_INLINE Integers zero() { return {vdupq_n_s32(0)}; }
  static GATEDRNN_INLINE Integers set(Pair pair) { return {vreinterpretq_s32_u32(vdupq_n_u32(pair))}; }
  static GATEDRNN_INLINE Integers load(const unsigned char* w) {
    return {vreinterpretq_s32_s16(vmovl_s8(vld1_s8(reinterpret_cast<const std::int8_t*>(w))))};
  }
  GATEDRNN_INLINE void add(Integers x, Integers w) {
    const int16x8_t a = vreinterpretq_s16_s32(x.v), b = vreinterpretq_s16_s32(w.v);
    v = vaddq_s32(v, vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b)));
  }
  GATEDRNN_INLINE float32x4_t value() const { return vcvtq_f32_s32(v); }
};
#else
struct Integers {
  static constexpr double pace = 0.5;
  static constexpr int lanes = Simd<float>::lanes;
  std::int32_t v[lanes], other[lanes];  // the second of each pair, where these are factors

  static Integers zero() { return {}; }
  static Integers set(Pair pair) {
    Integers all;
    for (int i = 0; i < lanes; ++i) {
      all.v[i] = static_cast<std::int16_t>(pair);
      all.other[i] = static_cast<std::int16_t>(pair >> 16);
    }
    return all;
  }
  static Integers load(const unsigned char* w) {
    Integers pairs;
    for (int i = 0; i < lanes; ++i) {
      pairs.v[i] = static_cast<std::int8_t>(w[2 * i]);
      pairs.other[i] = static_cast<std::int8_t>(w[2 * i + 1]);
    }
    return pairs;
  }
  void add(const Integers& x, const Integers& w) {
    for (int i = 0; i < lanes; ++i) v[i] += x.v[i] * w.v[i] + x.other[i] * w.other[i];
  }
  Simd<float>::V value() const {
    alignas(64) float values[lanes];
    for (int i = 0; i < lanes; ++i) values[i] = static_cast<float>(v[i]);
    return Simd<float>::load(values);
  }
};
#endif

// Not a number where a value is not finite.
GATEDRNN_INLINE float scale_of(const Magnitude& largest, float least, float levels, float& reciprocal) {
  const float range = largest.finite() && largest.value() > least ? largest.value() : least;
  reciprocal = levels / range;
  return largest.finite() ? range / levels : float_of(kInfinity | 0x400000);
}

GATEDRNN_INLINE float operand_scale(const float* from, Index count, float least, float& reciprocal) {
  Magnitude largest;
  for (Index k = 0; k < count; ++k) largest.add(from[k]);
  return scale_of(largest, least > kLeastScale ? least : kLeastScale, kLargestOperand, reciprocal);
}

// As bytes: in each part of so many terms first the upper ones.
GATEDRNN_INLINE float round_to_bytes(const float* from, Index count, float least, Index part, Index padded,
                                     std::int8_t* to) {
  float reciprocal;
  const float scale = operand_scale(from, count, least, reciprocal);
  for (Index k = 0; k < padded; ++k) {
    const std::int32_t value = k < count ? nearest(from[k] * reciprocal) : 0, upper = (value + 128) >> 8;
    std::int8_t* const bytes = to + k / part * 2 * part + k % part;
    bytes[0] = static_cast<std::int8_t>(upper);
    bytes[part] = static_cast<std::int8_t>(value - 256 * upper);
  }
  return scale;
}

// A vector's weights, and the scales of its units.
template <class S>
void pack_int8(const PackWeightsArgs<float>& a, const PanelLayout& layout) {
  float reciprocals[S::lanes] = {};
  for (Index unit = 0; unit < S::lanes; ++unit) {
    Magnitude largest;
    for (Index k = 0; unit < a.units && k < a.depth; ++k) largest.add(a.from[unit * a.unit_stride + k * a.term_stride]);
    const float scale = scale_of(largest, kLeastScale, kLargestWeight, reciprocals[unit]);
    __builtin_memcpy(static_cast<unsigned char*>(a.scales) + unit * sizeof scale, &scale, sizeof scale);
  }
  auto* to = static_cast<std::int8_t*>(a.to);
  const Index depth = layout.pads ? round_up(a.depth, layout.part) : a.depth;
  for (Index k = 0; k < depth; k += layout.terms, to += a.vectors * layout.vector_bytes())
    for (Index unit = 0; unit < S::lanes; ++unit)
      for (Index i = 0; i < layout.terms; ++i) {
        const bool there = unit < a.units && k + i < a.depth;
        const float weight = there ? a.from[unit * a.unit_stride + (k + i) * a.term_stride] : 0.0f;
        to[layout.terms * unit + i] = static_cast<std::int8_t>(nearest(weight * reciprocals[unit]));
      }
}

struct Int8Dot {
  using S = Simd<float>;
  using V = S::V;
  using Word = Pair;
  using Factor = Integers;
  using Sum = Integers;
  static constexpr PanelLayout layout =
      PanelLayout{1, 2, sizeof(float), 2, S::lanes, kMostInt8Terms, true, true}.at_pace(Integers::pace);
  static constexpr bool trains = false;  // gradients need more range
  static constexpr int accumulators = kAccumulators;

  static GATEDRNN_INLINE Sum zero() { return Integers::zero(); }
  static GATEDRNN_INLINE Factor set(Word x) { return Integers::set(x); }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) { return Integers::load(w); }
  static GATEDRNN_INLINE void multiply(const Factor& x, const Factor& w, Sum& sum) { sum.add(x, w); }
  static GATEDRNN_INLINE V value(const Sum& sum) { return sum.value(); }

  static void pack(const PackWeightsArgs<float>& a) { pack_int8<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float least, Word* to) {
    float reciprocal;
    const float scale = operand_scale(from, count, least, reciprocal);
    auto* const values = reinterpret_cast<std::int16_t*>(to);
    for (Index k = 0; k < count; ++k) values[k] = static_cast<std::int16_t>(nearest(from[k] * reciprocal));
    for (Index k = count; k < round_up(count, kRoundedPart); ++k) values[k] = 0;
    return scale;
  }
};

#ifdef __ARM_FEATURE_DOTPROD
// With an instruction that multiplies four bytes by four. Upper and lower bytes of operands have sums of their own.
struct Int8BytesDot {
  using S = Simd<float>;
  using V = S::V;
  struct Word {
    Pair upper, lower;  // of four terms
  };
  struct Factor {
    int8x16_t upper, lower;  // the same where these are weights
  };
  struct Sum {
    int32x4_t upper, lower;
  };
  static constexpr PanelLayout layout =
      PanelLayout{1, 2, sizeof(float), 4, S::lanes, kMostInt8Terms, true, true}.at_pace(2);
  static constexpr bool trains = false;
  static constexpr int accumulators = kAccumulators / 2;  // of two vectors each

  static GATEDRNN_INLINE Sum zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static GATEDRNN_INLINE Factor set(const Word& x) {
    return {vreinterpretq_s8_u32(vdupq_n_u32(x.upper)), vreinterpretq_s8_u32(vdupq_n_u32(x.lower))};
  }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) {
    const int8x16_t weights = vld1q_s8(reinterpret_cast<const std::int8_t*>(w));
    return {weights, weights};
  }
  static GATEDRNN_INLINE void multiply(const Factor& x, const Factor& w, Sum& sum) {
    sum.upper = vdotq_s32(sum.upper, x.upper, w.upper);
    sum.lower = vdotq_s32(sum.lower, x.lower, w.lower);
  }
  static GATEDRNN_INLINE V value(const Sum& sum) {
    return vcvtq_f32_s32(vaddq_s32(vshlq_n_s32(sum.upper, 8), sum.lower));
  }

  static void pack(const PackWeightsArgs<float>& a) { pack_int8<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float least, Word* to) {
    return round_to_bytes(from, count, least, layout.terms, round_up(count, kRoundedPart),
                          reinterpret_cast<std::int8_t*>(to));
  }
};
#endif

}  // namespace gatedrnn::GATEDRNN_ISA
