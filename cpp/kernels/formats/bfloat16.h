// bfloat16: weights and operands rounded to the upper half of a float32, to the nearest and of two to the even one, denormals to zero.
//
// The order of sums is that of Intel's matrix instruction TDPBF16PS, which other machines follow: the even and the odd terms of a
// block of 32 are two chains of fused multiply-adds from zero; their sum is added to the sums of the blocks before.
#pragma once

#include "../dot_product.h"
#include "bits.h"

namespace gatedrnn::GATEDRNN_ISA {

GATEDRNN_INLINE std::uint16_t to_bfloat16(float x) {
  const std::uint32_t bits = bits_of(x), magnitude = bits & kMagnitude;
  const std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, sign = bits >> 16 & 0x8000;
  const std::uint32_t not_a_number = bits >> 16 | 0x40;
  const std::uint32_t number = magnitude < kLeastNormal ? sign : rounded;
  return static_cast<std::uint16_t>(magnitude > kInfinity ? not_a_number : number);
}

GATEDRNN_INLINE float from_bfloat16(std::uint16_t x) { return float_of(static_cast<std::uint32_t>(x) << 16); }

// What is left of x beside its upper half, if that is finite.
GATEDRNN_INLINE float rest_of_bfloat16(float x, std::uint16_t upper) {
  return (upper & 0x7f80) == 0x7f80 ? 0.0f : x - from_bfloat16(upper);
}

GATEDRNN_INLINE std::uint16_t lower_bfloat16(float x) { return to_bfloat16(rest_of_bfloat16(x, to_bfloat16(x))); }

GATEDRNN_INLINE float round_to_pairs(const float* from, Index count, Pair* to) {
  auto* const values = reinterpret_cast<std::uint16_t*>(to);
  for (Index k = 0; k < count; ++k) values[k] = to_bfloat16(from[k]);
  for (Index k = count; k < round_up(count, kRoundedPart); ++k) values[k] = 0;
  return 1;
}

// A vector of pairs: `first` and `second` have their terms, so far apart.
template <class S, class Value>
GATEDRNN_INLINE void join_pairs(const float* first, const float* second, Index stride, Pair* to, Value&& value) {
  for (Index i = 0; i < S::lanes; ++i)
    to[i] = static_cast<Pair>(value(first[i * stride])) | static_cast<Pair>(value(second[i * stride])) << 16;
}

// Pairs of weights as `value` makes them, zero where there is none. Where the terms of a unit are side by side, squares of as many pairs as
// a vector has lanes are transposed.
template <class S, class Value>
void pack_pairs(const PackWeightsArgs<float>& a, const PanelLayout& layout, unsigned char* to, Value&& value) {
  constexpr Index lanes = S::lanes;
  const Index depth = layout.pads ? round_up(a.depth, layout.part) : a.depth;
  const Index pairs = ceil_div(depth, 2), stride = a.vectors * layout.vector_bytes();
  alignas(64) float terms[2 * lanes];
  const auto load = [&](const float* from, Index count) {
    for (Index i = 0; i < 2 * lanes; i += lanes)
      S::store(terms + i, load_first<S>(from + i, count > i ? count - i : 0));
  };
  alignas(64) Pair packed[lanes][lanes];
  if (a.term_stride != 1) {
    for (Index k = 0; k < pairs; ++k, to += stride) {
      for (Index i = 0; i < 2; ++i)
        S::store(terms + i * lanes,
                 load_first<S>(a.from + (2 * k + i) * a.term_stride, 2 * k + i < a.depth ? a.units : 0));
      join_pairs<S>(terms, terms + lanes, 1, packed[0], value);
      __builtin_memcpy(to, packed[0], sizeof packed[0]);
    }
    return;
  }
  for (Index k = 0; k < pairs; k += lanes) {
    typename S::Block block;
    for (Index unit = 0; unit < lanes; ++unit) {
      load(a.from + unit * a.unit_stride + 2 * k, unit < a.units ? a.depth - 2 * k : 0);
      join_pairs<S>(terms, terms + 1, 2, packed[unit], value);
    }
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i) block.packet[i] = S::load(reinterpret_cast<const float*>(packed[i]));
    S::transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i)
      if (k + i < pairs) S::store(reinterpret_cast<float*>(to + (k + i) * stride), block.packet[i]);
  }
}

template <class S>
void pack_bfloat16(const PackWeightsArgs<float>& a, const PanelLayout& layout) {
  pack_pairs<S>(a, layout, static_cast<unsigned char*>(a.to), [](float w) { return to_bfloat16(w); });
}
// In each vector the upper pieces, then the lower ones.
template <class S>
void pack_bfloat16x3(const PackWeightsArgs<float>& a, const PanelLayout& layout) {
  auto* const to = static_cast<unsigned char*>(a.to);
  pack_pairs<S>(a, layout, to, [](float w) { return to_bfloat16(w); });
  pack_pairs<S>(a, layout, to + layout.vector_bytes() / 2, [](float w) { return lower_bfloat16(w); });
}

// With fused multiply-adds of float32, for which operands that are rounded stay float32.
template <class Vectors>
struct Bfloat16Dot {
  using S = Vectors;
  using V = typename S::V;
  struct Word {
    float even, odd;
  };
  struct Factor {
    V even, odd;
  };
  using Sum = Factor;
  static constexpr PanelLayout layout =
      PanelLayout{2, sizeof(float), sizeof(float), 2, S::lanes, 32, true}.at_pace(0.85);
  static constexpr bool trains = true;
  static constexpr int accumulators = kAccumulators > 12 ? 12 : 4;

  static GATEDRNN_INLINE Sum zero() { return {S::set(0), S::set(0)}; }
  static GATEDRNN_INLINE Factor set(const Word& x) { return {S::set(x.even), S::set(x.odd)}; }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) {
    const V pairs = S::load(reinterpret_cast<const float*>(w));
    return {S::template shift_left<16>(pairs), S::upper_half(pairs)};
  }
  static GATEDRNN_INLINE void multiply(const Factor& x, const Factor& w, Sum& sum) {
    sum.even = S::madd(x.even, w.even, sum.even);
    sum.odd = S::madd(x.odd, w.odd, sum.odd);
  }
  static GATEDRNN_INLINE V add(V before, const Sum& sum) { return S::add(before, S::add(sum.even, sum.odd)); }

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    float* const values = &to->even;
    for (Index k = 0; k < count; ++k) values[k] = from_bfloat16(to_bfloat16(from[k]));
    for (Index k = count; k < round_up(count, kRoundedPart); ++k) values[k] = 0;
    return 1;
  }
};

// bfloat16x3: weights and operands as two pieces, each the nearest to what the one before left; products of all but the two
// lower ones, added from the smallest to the largest, block by block.
template <class Vectors>
struct Bfloat16x3Dot {
  using S = Vectors;
  using V = typename S::V;
  using Dot = Bfloat16Dot<S>;
  struct Word {
    typename Dot::Word upper, lower;
  };
  struct Factor {
    typename Dot::Factor upper, lower;
  };
  struct Sum {
    typename Dot::Sum lower_upper, upper_lower, upper_upper;
  };
  static constexpr PanelLayout layout =
      PanelLayout{4, 2 * sizeof(float), sizeof(float), 2, S::lanes, 32, true}.at_pace(0.3);
  static constexpr bool trains = true;
  static constexpr int accumulators = 3;  // of six vectors each

  static GATEDRNN_INLINE Sum zero() { return {Dot::zero(), Dot::zero(), Dot::zero()}; }
  static GATEDRNN_INLINE Factor set(const Word& x) { return {Dot::set(x.upper), Dot::set(x.lower)}; }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) {
    return {Dot::load(w), Dot::load(w + Dot::layout.vector_bytes())};
  }
  static GATEDRNN_INLINE void multiply(const Factor& x, const Factor& w, Sum& sum) {
    Dot::multiply(x.lower, w.upper, sum.lower_upper);
    Dot::multiply(x.upper, w.lower, sum.upper_lower);
    Dot::multiply(x.upper, w.upper, sum.upper_upper);
  }
  static GATEDRNN_INLINE V add(V before, const Sum& sum) {
    return Dot::add(Dot::add(Dot::add(before, sum.lower_upper), sum.upper_lower), sum.upper_upper);
  }

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16x3<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    float* const values = &to->upper.even;  // [pair][piece][term]
    for (Index k = 0; k < round_up(count, kRoundedPart); ++k) {
      const float x = k < count ? from[k] : 0.0f;
      float* const pieces = values + k / 2 * 4 + k % 2;
      pieces[0] = from_bfloat16(to_bfloat16(x));
      pieces[2] = from_bfloat16(lower_bfloat16(x));
    }
    return 1;
  }
};

#ifdef __AVX512BF16__
// With the instruction of AVX512-BF16, which sums up in an order of its own: one chain, of each pair first the odd term.
template <class Vectors>
struct Bfloat16PairDot {
  using S = Vectors;
  using V = typename S::V;
  using Word = Pair;
  using Factor = V;
  using Sum = V;
  static constexpr PanelLayout layout = PanelLayout{2, 2, sizeof(float), 2, S::lanes, 2 * kBlockTerms, true}.at_pace(2);
  static constexpr bool trains = true;
  static constexpr int accumulators = kAccumulators;

  static GATEDRNN_INLINE Sum zero() { return S::set(0); }
  static GATEDRNN_INLINE Factor set(Word x) { return S::set(float_of(x)); }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) { return S::load(reinterpret_cast<const float*>(w)); }
  static GATEDRNN_INLINE void multiply(Factor x, Factor w, Sum& sum) {
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static GATEDRNN_INLINE V add(V before, Sum sum) { return S::add(before, sum); }

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    return round_to_pairs(from, count, to);
  }
};
#endif

#ifdef __ARM_FEATURE_BF16_VECTOR_ARITHMETIC
// With Arm's multiplications of the even and of the odd terms, which are the common order's two chains.
template <class Vectors>
struct Bfloat16HalvesDot {
  using S = Vectors;
  using V = typename S::V;
  using Word = Pair;
  using Factor = bfloat16x8_t;
  using Sum = typename Bfloat16Dot<S>::Sum;
  static constexpr PanelLayout layout = {2, 2, sizeof(float), 2, S::lanes, 32, true};
  static constexpr bool trains = true;
  static constexpr int accumulators = Bfloat16Dot<S>::accumulators;

  static GATEDRNN_INLINE Sum zero() { return Bfloat16Dot<S>::zero(); }
  static GATEDRNN_INLINE Factor set(Word x) { return vreinterpretq_bf16_u32(vdupq_n_u32(x)); }
  static GATEDRNN_INLINE Factor load(const unsigned char* w) {
    return vld1q_bf16(reinterpret_cast<const bfloat16_t*>(w));
  }
  static GATEDRNN_INLINE void multiply(Factor x, Factor w, Sum& sum) {
    sum.even = vbfmlalbq_f32(sum.even, x, w);
    sum.odd = vbfmlaltq_f32(sum.odd, x, w);
  }
  static GATEDRNN_INLINE V add(V before, const Sum& sum) { return Bfloat16Dot<S>::add(before, sum); }

  static void pack(const PackWeightsArgs<float>& a) { pack_bfloat16<S>(a, layout); }
  static GATEDRNN_INLINE float round(const float* from, Index count, float, Word* to) {
    return round_to_pairs(from, count, to);
  }
};
#endif

}  // namespace gatedrnn::GATEDRNN_ISA
