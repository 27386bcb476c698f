// exp, sigmoid and tanh as fixed sequences of fused multiply-adds, one correctly rounded division and bit operations, so that
// every machine and every vector width gives the same bits. `S` names the arithmetic: S::V is the value (a scalar or a
// vector), S::T its element. Everything is constexpr so that a compiler for devices takes it too.
//
// exp(-x): -x = n ln 2 - r with n an integer and |r| <= ln 2 / 2; exp(-r) = 1 - r + r^2 q(r) with a minimax polynomial q.
// (Cody and Waite, Software Manual for the Elementary Functions, 1980, chapter 6; the coefficients are our own fit.)
#pragma once

namespace gatedrnn::cells {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  // Adding 1.5 * 2^23 rounds to an integer that then stands in the low bits of the mantissa; the exponent's bias comes along.
  static constexpr float rounder = 12582912.0f + 127.0f;
  static constexpr int mantissa_bits = 23;
  static constexpr float log2e = 1.44269504088896341f;
  static constexpr float ln2 = 0.693147180559945309f;
  static constexpr float ln2_high = 0.693145751953125f;  // 16 bits, so n * ln2_high is exact
  static constexpr float ln2_low = 1.42860682030941723212e-6f;
  static constexpr float largest = 87.33f;             // exp(-x) stays a normal number
  static constexpr float smallest = -88.37f;           // n stays below 128
  static constexpr float smallest_for_ratio = -86.0f;  // and some products of exp(-x) finite
  static constexpr float q[] = {0.5f, -0.16666576845993976311f, 0.041666554437685938899f, -0.0083632029715758549465f,
                                0.0013926213466332443037f};
};

template <>
struct ExpConstants<double> {
  static constexpr double rounder = 6755399441055744.0 + 1023.0;
  static constexpr int mantissa_bits = 52;
  static constexpr double log2e = 1.44269504088896340736;
  static constexpr double ln2 = 0.693147180559945309417;
  static constexpr double ln2_high = 0.693147180559890330187045;  // 42 bits
  static constexpr double ln2_low = 5.497923018708371174712472e-14;
  static constexpr double largest = 708.39;
  static constexpr double smallest = -709.43;
  static constexpr double smallest_for_ratio = -706.0;
  static constexpr double q[] = {0.50000000000000010262,     -0.16666666666666667456,   0.041666666666623991516,
                                 -0.0083333333333300513464,  0.0013888888917281793308,  -0.00019841269863105968748,
                                 0.000024801521190217727651, -2.7557268378684192873e-6, 2.7620138719733995569e-7,
                                 -2.5100424157005066788e-8};
};

template <class S>
struct Activations {
  using V = typename S::V;
  using T = typename S::T;
  using C = ExpConstants<T>;

  // exp(-x) = scale * value
  struct Exp {
    V scale, value;
  };

  // value = numerator / denominator; cells merge several of these into one division.
  struct Ratio {
    V numerator, denominator;
  };

  // -x / ln 2, rounded and with the exponent's bias in the low bits of the mantissa
  static constexpr V shifted(V x) { return S::madd(x, S::set(-C::log2e), S::set(C::rounder)); }
  static constexpr V unshifted(V n) { return S::sub(n, S::set(C::rounder)); }
  static constexpr V power_of_two(V n) { return S::template shift_left<C::mantissa_bits>(n); }

  // q[i] + r (q[i + 1] + r (...))
  template <int i = 0>
  static constexpr V q(V r) {
    constexpr T coefficient = C::q[i];
    if constexpr (i + 1 == sizeof(C::q) / sizeof(T))
      return S::set(coefficient);
    else
      return S::madd(q<i + 1>(r), r, S::set(coefficient));
  }

  // exp(-x), with x held above a limit so that products of the result stay finite.
  static constexpr Exp exp_negated(V x, T limit) {
    x = S::min(S::max(x, S::set(limit)), S::set(C::largest));
    const V n = shifted(x), whole = unshifted(n);
    const V r = S::madd(whole, S::set(C::ln2_low), S::madd(whole, S::set(C::ln2_high), x));
    return {power_of_two(n), S::madd(S::madd(q(r), r, S::set(-1)), r, S::set(1))};
  }

  // sigmoid(x) = 1 / (1 + exp(-x)): the denominator.
  static constexpr V sigmoid_denominator(V x, T limit = C::smallest) {
    const Exp e = exp_negated(x, limit);
    return S::madd(e.scale, e.value, S::set(1));
  }

  // tanh(x) = sign(x) * -expm1(-2|x|) / (2 + expm1(-2|x|)); the denominator lies in 1 .. 2. The larger n, the less the result
  // depends on r, so that ln 2 needs no second part.
  static constexpr Ratio tanh_ratio(V x) {
    const V y = S::min(S::mul(S::abs(x), S::set(2)), S::set(C::largest));
    const V n = shifted(y), scale = power_of_two(n), r = S::madd(unshifted(n), S::set(C::ln2), y);
    const V fraction = S::madd(S::mul(r, r), q(r), S::negate(r));
    const V distance = S::madd(S::negate(scale), fraction, S::sub(S::set(1), scale));  // 1 - exp(-y)
    return {S::copy_sign(distance, x), S::sub(S::set(2), distance)};
  }

  static constexpr V reciprocal(V x) { return S::div(S::set(1), x); }

  static constexpr V sigmoid(V x) { return reciprocal(sigmoid_denominator(x)); }

  static constexpr V tanh(V x) {
    const Ratio t = tanh_ratio(x);
    return S::div(t.numerator, t.denominator);
  }

  // The derivatives, from the activations' values: y (1 - y) and 1 - y^2, rounded once.
  static constexpr V sigmoid_slope(V y) { return S::madd(S::negate(y), y, y); }
  static constexpr V tanh_slope(V y) { return S::madd(S::negate(y), y, S::set(1)); }
};

}  // namespace gatedrnn::cells
