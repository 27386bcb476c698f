// Activations as fixed sequences of fused multiply-adds, one correctly rounded division and bit operations, so that
// every machine and every vector width gives the same bits. `S` names the arithmetic: S::V is the value (a scalar or a
// vector), S::T its element. Everything is constexpr so that a compiler for devices takes it too.
//
// exp(-x): -x = n ln 2 - r with n an integer and |r| <= ln 2 / 2; exp(-r) = 1 - r + r^2 q(r) with a minimax polynomial q.
// (Cody and Waite, Software Manual for the Elementary Functions, 1980, chapter 6.)
//
// tanh(x) for x >= 0: x = n ln 2 + r with n an integer. With s = 4^-n and T = tanh(r) = r + r^3 t(r^2), by the addition theorem,
//
//     tanh(x) = N / D,    D = (1 + s) + (1 - s) T,    N = (1 - s) + (1 + s) T = D - 2 s + 2 s T
//
// N is made from the rounded D: then most of D's rounding error is in N as well and falls out of the quotient, the more the
// nearer tanh(x) is to 1. Below 1/2 it would do harm, so n = 0 there, where D = 2 and N = 2 T have no error but that of T.
//
// q and t are our own minimax fits (Remez's algorithm) of the relative error of exp(-r) and tanh(r). Coefficients were rounded from
// the constant one on, and after each the rest fitted anew.
//
// log(1 + u) = 2 atanh(u / (2 + u)), with the series of atanh, whose argument is at most 1/3.
#pragma once

#include "gatedrnn/cell.h"

namespace gatedrnn::cells {

template <class T>
struct ActivationConstants;

template <>
struct ActivationConstants<float> {
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

  // The same for even integers -2n, and with the exponent of 2 s = 2 * 4^-n.
  static constexpr float even_rounder = 25165824.0f + 128.0f;
  // n becomes 1 at this + ln 2 / 2, where tanh is a little more than 1/2. Near it any value would do; with this one tanh does not
  // fall by a rounding error from the last argument with an n to the first with n + 1, for any n.
  static constexpr float n_offset = 0.203f;
  static constexpr float largest_for_tanh = 8.8672f;  // from here on it is 1
  static constexpr float t[] = {-0.33332946896553039551f, 0.1332072913646697998f, -0.052671998739242553711f,
                                0.016437817364931106567f};
  static constexpr float atanh[] = {1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9, 1.0f / 11, 1.0f / 13, 1.0f / 15};
};

template <>
struct ActivationConstants<double> {
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

  static constexpr double even_rounder = 13510798882111488.0 + 1024.0;
  static constexpr double n_offset = 0.240139;
  static constexpr double largest_for_tanh = 18.714973875118531;  // just above 27 ln 2, so that r > 0, also without fma
  static constexpr double t[] = {-0.33333333333333198256,   0.13333333333310420921,     -0.053968253954769992986,
                                 0.021869488140162533785,   -0.0088632287587995829681,  0.0035920549717169954033,
                                 -0.0014553149270349905256, 0.00058754835456753496618,  -0.00023120128645905967698,
                                 0.00008032635554023114324, -0.000017727242372039825205};
  static constexpr double atanh[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13, 1.0 / 15, 1.0 / 17,
                                     1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33};
};

template <class S>
struct Activations {
  using V = typename S::V;
  using T = typename S::T;
  using C = ActivationConstants<T>;

  // exp(-x) = scale * value, where value is 1 + rest
  struct Exp {
    V scale, value, rest;
  };

  // value = numerator / denominator; cells merge several of these into one division.
  struct Ratio {
    V numerator, denominator;
  };

  // -x / ln 2, rounded and with the exponent's bias in the low bits of the mantissa
  static constexpr V shifted(V x) { return S::madd(x, S::set(-C::log2e), S::set(C::rounder)); }
  static constexpr V unshifted(V n) { return S::sub(n, S::set(C::rounder)); }
  static constexpr V power_of_two(V n) { return S::template shift_left<C::mantissa_bits>(n); }

  // c[i] + x (c[i + 1] + x (...))
  template <const auto& c, int i = 0>
  static constexpr V polynomial(V x) {
    if constexpr (i + 1 == sizeof(c) / sizeof(T))
      return S::set(c[i]);
    else
      return S::madd(polynomial<c, i + 1>(x), x, S::set(c[i]));
  }

  // exp(-x), with x held above a limit so that products of the result stay finite.
  static constexpr Exp exp_negated(V x, T limit) {
    x = S::min(S::max(x, S::set(limit)), S::set(C::largest));
    const V n = shifted(x), whole = unshifted(n);
    const V r = S::madd(whole, S::set(C::ln2_low), S::madd(whole, S::set(C::ln2_high), x));
    const V factor = S::madd(polynomial<C::q>(r), r, S::set(-1));
    return {power_of_two(n), S::madd(factor, r, S::set(1)), S::mul(factor, r)};
  }

  // sigmoid(x) = 1 / (1 + exp(-x)): the denominator.
  static constexpr V sigmoid_denominator(V x, T limit = C::smallest) {
    const Exp e = exp_negated(x, limit);
    return S::madd(e.scale, e.value, S::set(1));
  }

  // tanh(x) = sign(x) N / D; the denominator lies in 0.8 .. 2. The larger n, the less the result depends on r, so that ln 2 needs no
  // second part.
  static constexpr Ratio tanh_ratio(V x) {
    const V y = S::min(S::abs(x), S::set(C::largest_for_tanh));
    const V shifted = S::madd(S::sub(y, S::set(C::n_offset)), S::set(-2 * C::log2e), S::set(C::even_rounder));
    const V s2 = S::template shift_left<C::mantissa_bits + 1>(shifted);  // 2 s
    const V r = S::madd(S::sub(shifted, S::set(C::even_rounder)), S::set(C::ln2 / 2), y);
    const V square = S::mul(r, r), tanh_r = S::madd(polynomial<C::t>(square), S::mul(square, r), r);
    const V plus = S::madd(s2, S::set(T(0.5)), S::set(1)), minus = S::madd(s2, S::set(T(-0.5)), S::set(1));
    const V denominator = S::madd(minus, tanh_r, plus);
    const V numerator = S::madd(s2, tanh_r, S::sub(denominator, s2));
    return {S::copy_sign(numerator, x), denominator};
  }

  static constexpr V reciprocal(V x) { return S::div(S::set(1), x); }

  static constexpr V sigmoid(V x) { return reciprocal(sigmoid_denominator(x)); }

  static constexpr V tanh(V x) {
    const Ratio t = tanh_ratio(x);
    return S::div(t.numerator, t.denominator);
  }

  // exp(x) - 1 for x <= 0, right also where that is small.
  GATEDRNN_CELL V expm1(V x) {
    const Exp e = exp_negated(S::negate(x), T(0));
    return S::madd(e.scale, e.rest, S::sub(e.scale, S::set(1)));
  }

  // log(1 + u) for 0 <= u <= 1.
  GATEDRNN_CELL V log1p(V u) {
    const V s = S::div(u, S::add(u, S::set(2))), square = S::mul(s, s), twice = S::add(s, s);
    return S::madd(S::mul(polynomial<C::atanh>(square), square), twice, twice);
  }

  GATEDRNN_CELL V softplus(V x) {
    const Exp e = exp_negated(S::abs(x), T(0));
    return S::add(S::max(x, S::set(0)), log1p(S::mul(e.scale, e.value)));
  }

  // The derivatives, from the activations' values: y (1 - y) and 1 - y^2, rounded once.
  static constexpr V sigmoid_slope(V y) { return S::madd(S::negate(y), y, y); }
  static constexpr V tanh_slope(V y) { return S::madd(S::negate(y), y, S::set(1)); }

  // A function that is data.
  GATEDRNN_CELL V apply(const Activation<T>& f, V x) {
    const V zero = S::set(0), one = S::set(1), alpha = S::set(f.alpha), beta = S::set(f.beta);
    switch (f.kind) {
      case ActivationKind::sigmoid: return sigmoid(x);
      case ActivationKind::tanh: return tanh(x);
      case ActivationKind::relu: return S::max(x, zero);
      case ActivationKind::hard_sigmoid: return S::min(S::max(S::madd(x, alpha, beta), zero), one);
      case ActivationKind::leaky_relu: return S::madd(S::min(x, zero), alpha, S::max(x, zero));
      case ActivationKind::elu: return S::madd(expm1(S::min(x, zero)), alpha, S::max(x, zero));
      case ActivationKind::softsign: return S::div(x, S::add(S::abs(x), one));
      case ActivationKind::softplus: return softplus(x);
      case ActivationKind::scaled_tanh: return S::mul(tanh(S::mul(x, beta)), alpha);
      case ActivationKind::affine: return S::madd(x, alpha, beta);
      case ActivationKind::thresholded_relu: return S::where_positive(S::sub(x, alpha), x);
    }
    return x;
  }

  // The derivative of that at x, where its value is y. At a corner it is 0, or that of the side where x is smaller.
  GATEDRNN_CELL V slope(const Activation<T>& f, V x, V y) {
    const V zero = S::set(0), one = S::set(1), alpha = S::set(f.alpha), beta = S::set(f.beta);
    switch (f.kind) {
      case ActivationKind::sigmoid: return sigmoid_slope(y);
      case ActivationKind::tanh: return tanh_slope(y);
      case ActivationKind::relu: return S::where_positive(x, one);
      case ActivationKind::hard_sigmoid: return S::where_positive(y, S::where_positive(S::sub(one, y), alpha));
      case ActivationKind::leaky_relu: return S::add(alpha, S::where_positive(x, S::sub(one, alpha)));
      case ActivationKind::elu:
        return S::add(S::madd(expm1(S::min(x, zero)), alpha, alpha), S::where_positive(x, S::sub(one, alpha)));
      case ActivationKind::softsign: {
        const V shrunk = reciprocal(S::add(S::abs(x), one));
        return S::mul(shrunk, shrunk);
      }
      case ActivationKind::softplus: return sigmoid(x);
      case ActivationKind::scaled_tanh: return S::mul(tanh_slope(tanh(S::mul(x, beta))), S::mul(alpha, beta));
      case ActivationKind::affine: return alpha;
      case ActivationKind::thresholded_relu: return S::where_positive(S::sub(x, alpha), one);
    }
    return one;
  }

  // Held within -limit .. limit; and the derivative of that.
  GATEDRNN_CELL V clipped(V x, T limit) { return S::max(S::min(x, S::set(limit)), S::set(-limit)); }
  GATEDRNN_CELL V clipped_slope(V x, T limit, V d) { return S::where_positive(S::sub(S::set(limit), S::abs(x)), d); }
};

}  // namespace gatedrnn::cells
