//! The exponential family: exp, exp2, expm1, sigmoid, sinh, cosh, tanh.
//!
//! `exp`, `exp2`, `sigmoid` and `tanh` are computed in `f32` (softmax and the activations of networks hang on them); the
//! others in `f64` and rounded once. With x = n·ln2 + r expm1, sinh and cosh come from cosh r - 1 and sinh r, which keep their
//! relative accuracy near 0, so that nothing cancels.

use super::in_f64;
use crate::simd::{Float, Int, Simd, Vector};

pub(super) const LN2: f64 = std::f64::consts::LN_2;
/// 1.5·2^23: adding it rounds to a whole number, which is left in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;
const LOG2_E: f64 = std::f64::consts::LOG2_E;

/// e^x, at most 1 ulp off.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Where the result is infinite anyway; NaN passes, because it is the second operand.
    exp_negative(s, s.f32(89.5).min(x))
}

/// [`exp`] of numbers up to 89.5: softmax and sigmoid have only negative ones.
#[inline(always)]
pub fn exp_negative<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Where the result is 0 anyway.
    let x = s.f32(-104.5).max(x);
    let magic = s.f32(ROUND);
    let n = x.fma(s.f32(LOG2_E as f32), magic) - magic;
    let r = n.fnma(s.f32(LN2_LOW), n.fnma(s.f32(LN2_HIGH), x));
    let q = horner32(s, &EXP, r);
    (q.fma(r * r, r) + s.f32(1.0)).scale(n)
}

/// 2^x, at most 1 ulp off.
#[inline(always)]
pub fn exp2<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let x = s.f32(129.0).min(s.f32(-151.0).max(x));
    let n = x.round();
    let r = x - n;
    horner32(s, &EXP2, r).fma(r, s.f32(1.0)).scale(n)
}

/// 1/(1 + e^-x), at most 2.5 ulp off.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.f32(1.0);
    let e = exp_negative(s, -x.abs());
    let d = one + e;
    // 1/d by Newton's method: three times as fast as a division, and within its rounding. d is from 1 to 2.
    let mut r = d.fma(d.fma(s.f32(RECIPROCAL[2]), s.f32(RECIPROCAL[1])), s.f32(RECIPROCAL[0]));
    r = r.fma(d.fnma(r, one), r);
    r = r.fma(d.fnma(r, one), r);
    let top = S::F32::select(x.lt(s.f32(0.0)), e, one);
    let q = top * r;
    r.fma(q.fnma(d, top), q)
}

/// The quadratic that is nearest to 1/d from 1 to 2, relatively: 1/99 off at most.
const RECIPROCAL: [f32; 3] = [210.0 / 99.0, -144.0 / 99.0, 32.0 / 99.0];

/// e^x - 1, correctly rounded but for rare ties.
#[inline(always)]
pub fn expm1<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let a = s.f32(100.0).min(s.f32(-104.0).max(x));
    let y = in_f64!(s, |a| {
        let Parts { cosh_m1, sinh, power, .. } = parts(s, a);
        (cosh_m1 + sinh).fma(power, power - s.f64(1.0))
    });
    with_sign_of(s, y, x)
}

/// (e^x - e^-x)/2, correctly rounded but for rare ties.
#[inline(always)]
pub fn sinh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let a = clamp(s, x, 100.0);
    with_sign_of(s, in_f64!(s, |a| hyperbolic(s, a).0), x)
}

/// (e^x + e^-x)/2, correctly rounded but for rare ties.
#[inline(always)]
pub fn cosh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let a = clamp(s, x, 100.0);
    in_f64!(s, |a| hyperbolic(s, a).1)
}

/// (1 - e^-2|x|)/(1 + e^-2|x|) with the sign of x, at most 2 ulp off.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // From 9.1 on the result rounds to 1.
    let (m, power) = exp_parts(s, s.f32(9.1).min(x.abs()) * s.f32(-2.0));
    let one = s.f32(1.0);
    with_sign_of(s, m.fnma(power, one - power) / m.fma(power, one + power), x)
}

/// e^x = (1 + m)·p as m and p = 2^n, for |x| below 80: exact enough that e^x - 1 = m·p + (p - 1) does not cancel.
#[inline(always)]
pub(super) fn exp_parts<S: Simd>(s: S, x: S::F32) -> (S::F32, S::F32) {
    let magic = s.f32(ROUND);
    let sum = x.fma(s.f32(LOG2_E as f32), magic);
    let n = sum - magic;
    let r = n.fnma(s.f32(LN2_LOW), n.fnma(s.f32(LN2_HIGH), x));
    let m = horner32(s, &EXP, r).fma(r * r, r);
    (m, S::F32::from_bits(sum.bits().shl(23) + s.f32(1.0).bits()))
}

/// e^x in `f64` to 2^-34, for |x| up to 700.
#[inline(always)]
pub(super) fn exp64<S: Simd>(s: S, x: S::F64) -> S::F64 {
    let Parts { cosh_m1, sinh, power, .. } = parts(s, x);
    (cosh_m1 + sinh).fma(power, power)
}

/// 1/x to 2^-45, for x whose reciprocal is a normal `f32`: one division in `f32` and a step of Newton's in `f64` cost a
/// third of two divisions in `f64`.
#[inline(always)]
pub(super) fn reciprocals<S: Simd>(s: S, x: [S::F64; 2]) -> [S::F64; 2] {
    let [a, b] = s.widen(s.f32(1.0) / s.narrow(x));
    let one = s.f64(1.0);
    [x[0].fnma(a, one).fma(a, a), x[1].fnma(b, one).fma(b, b)]
}

/// x cut to ±`limit`; NaN passes.
#[inline(always)]
pub(super) fn clamp<S: Simd>(s: S, x: S::F32, limit: f32) -> S::F32 {
    s.f32(limit).min(s.f32(-limit).max(x))
}

/// The magnitude of `x` with the sign of `sign`.
#[inline(always)]
pub(super) fn with_sign_of<S: Simd>(s: S, x: S::F32, sign: S::F32) -> S::F32 {
    S::F32::from_bits(x.abs().bits() | (sign.bits() & s.u32(0x8000_0000)))
}

/// The polynomial with these coefficients, highest power last.
#[inline(always)]
pub(super) fn horner32<S: Simd, const N: usize>(s: S, c: &[f32; N], x: S::F32) -> S::F32 {
    let mut p = s.f32(c[N - 1]);
    for i in (0..N - 1).rev() {
        p = p.fma(x, s.f32(c[i]));
    }
    p
}

/// The polynomial with these coefficients, highest power last.
#[inline(always)]
pub(super) fn horner64<S: Simd, const N: usize>(s: S, c: &[f64; N], x: S::F64) -> S::F64 {
    if N < 6 {
        return chain(s, c, x, 0, 1);
    }
    // Even and odd powers apart: one long chain would leave the processor waiting.
    let square = x * x;
    chain(s, c, square, 1, 2).fma(x, chain(s, c, square, 0, 2))
}

/// The polynomial with every `step`th coefficient from `from` on.
#[inline(always)]
fn chain<S: Simd, const N: usize>(s: S, c: &[f64; N], x: S::F64, from: usize, step: usize) -> S::F64 {
    let mut i = from + (N - 1 - from) / step * step;
    let mut p = s.f64(c[i]);
    while i > from {
        i -= step;
        p = p.fma(x, s.f64(c[i]));
    }
    p
}

/// Coefficients with the digits they are known by, rounded to `f32`.
pub(crate) const fn rounded<const N: usize>(digits: [f64; N]) -> [f32; N] {
    let mut r = [0.0; N];
    let mut i = 0;
    while i < N {
        r[i] = digits[i] as f32;
        i += 1;
    }
    r
}

/// x = n·ln2 + r with |r| <= ln2/2.
struct Parts<S: Simd> {
    cosh_m1: S::F64,
    sinh: S::F64,
    /// 2^n.
    power: S::F64,
    /// 2^-n.
    inverse: S::F64,
}

#[inline(always)]
fn parts<S: Simd>(s: S, x: S::F64) -> Parts<S> {
    let n = (x * s.f64(LOG2_E)).round();
    let r = n.fnma(s.f64(LN2), x);
    let z = r * r;
    let (n, bias) = (n.to_int(), s.i64(1023));
    Parts {
        cosh_m1: horner64(s, &COSH, z) * z,
        sinh: (horner64(s, &SINH, z) * z).fma(r, r),
        power: S::F64::from_bits((bias + n).shl(52)),
        inverse: S::F64::from_bits((bias - n).shl(52)),
    }
}

/// sinh x and cosh x by the addition theorems.
#[inline(always)]
fn hyperbolic<S: Simd>(s: S, x: S::F64) -> (S::F64, S::F64) {
    let Parts { cosh_m1, sinh, power, inverse } = parts(s, x);
    let (half, cosh) = (s.f64(0.5), cosh_m1 + s.f64(1.0));
    let (sinh_n, cosh_n) = ((power - inverse) * half, (power + inverse) * half);
    (cosh.fma(sinh_n, sinh * cosh_n), sinh.fma(sinh_n, cosh * cosh_n))
}

/// 0x1.62e43p-1: few digits, so that the first step of the reduction is exact.
const LN2_HIGH: f32 = f32::from_bits(0x3f31_7218);
/// ln 2 less that.
const LN2_LOW: f32 = -1.904_654_2e-9;

// Minimax coefficients (Remez), lowest power first, and their largest errors.
/// (e^r - 1 - r)/r² on |r| <= ln2/2; e^r to 2^-28.
const EXP: [f32; 5] =
    rounded([0.5, 0.16666515991226882, 0.04166619701697893, 0.008369232528142137, 0.0013951081160267064]);
/// (2^r - 1)/r on |r| <= 1/2; 2^r to 2^-29.
const EXP2: [f32; 6] = rounded([
    0.6931472064677017,
    0.24022651352849023,
    0.055503272435089374,
    0.009618002973451558,
    0.001340050254630635,
    0.00015476570991129312,
]);
/// (cosh √z - 1)/z; 2^-34 of cosh.
const COSH: [f64; 3] = [0.5000000083959937, 0.041666250995020145, 0.0013947373144696958];
/// (sinh √z/√z - 1)/z; 2^-37 of sinh.
const SINH: [f64; 3] = [0.16666666759904936, 0.008333287169300683, 0.00019906229815265948];
