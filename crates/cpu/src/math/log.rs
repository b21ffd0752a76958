//! The logarithms and what is made of them: log, log2, log10, log1p, asinh, acosh, atanh, logaddexp, pow.
//!
//! All in `f64`, rounded once. The core looks up 1/c for the sixteenth of an octave that x lies in; with r = x/c - 1 a
//! short polynomial does the rest. The interval around 1 has c = 1, so that results near 0 keep their accuracy.

use super::exp::{LN2, exp64, horner64, reciprocals, with_sign_of};
use super::in_f64;
use crate::simd::{Float, Int, Simd, Vector};

/// ln x, correctly rounded but for rare ties.
#[inline(always)]
pub fn log<S: Simd>(s: S, x: S::F32) -> S::F32 {
    scaled_log(s, x, 1.0)
}

/// log2 x, correctly rounded but for rare ties; exact for powers of two.
#[inline(always)]
pub fn log2<S: Simd>(s: S, x: S::F32) -> S::F32 {
    scaled_log(s, x, std::f64::consts::LOG2_E)
}

/// log10 x, correctly rounded but for rare ties; exact for powers of ten.
#[inline(always)]
pub fn log10<S: Simd>(s: S, x: S::F32) -> S::F32 {
    scaled_log(s, x, std::f64::consts::LOG10_E)
}

/// ln(1 + x), correctly rounded but for rare ties.
#[inline(always)]
pub fn log1p<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let y = in_f64!(s, |x| log1p64(s, x));
    edges(s, with_sign_of(s, y, x), x, -1.0)
}

/// The inverse of sinh, correctly rounded but for rare ties.
#[inline(always)]
pub fn asinh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let size = x.abs();
    let y = in_f64!(s, |size| {
        let z = size * size;
        let small = (horner64(s, &ASINH, z) * z).fma(size, size);
        let large = log64(s, size + (z + s.f64(1.0)).sqrt());
        S::F64::select(size.lt(s.f64(SMALL)), small, large)
    });
    S::F32::select(size.lt(s.f32(f32::INFINITY)), with_sign_of(s, y, x), x)
}

/// The inverse of cosh for x >= 1, correctly rounded but for rare ties.
#[inline(always)]
pub fn acosh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let y = in_f64!(s, |x| log64(s, x + x.fms(x, s.f64(1.0)).sqrt()));
    let y = S::F32::select(x.lt(s.f32(1.0)), s.f32(f32::NAN), y);
    S::F32::select(x.lt(s.f32(f32::INFINITY)), y, x)
}

/// The inverse of tanh for |x| <= 1, correctly rounded but for rare ties.
#[inline(always)]
pub fn atanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let (size, one) = (x.abs(), s.f32(1.0));
    let [a, b] = s.widen(size);
    let [p, q] = reciprocals(s, [s.f64(1.0) - a, s.f64(1.0) - b]);
    let y = s.narrow([atanh64(s, a, p), atanh64(s, b, q)]);
    let edge = S::F32::select(size.eq(one), s.f32(f32::INFINITY), s.f32(f32::NAN));
    with_sign_of(s, S::F32::select(size.lt(one), y, edge), x)
}

/// atanh a, given 1/(1 - a).
#[inline(always)]
fn atanh64<S: Simd>(s: S, a: S::F64, inverse: S::F64) -> S::F64 {
    let z = a * a;
    let small = (horner64(s, &ATANH, z) * z).fma(a, a);
    let large = log64(s, (s.f64(1.0) + a) * inverse) * s.f64(0.5);
    S::F64::select(a.lt(s.f64(SMALL)), small, large)
}

/// ln(e^x + e^y), correctly rounded but for rare ties.
#[inline(always)]
pub fn logaddexp<S: Simd>(s: S, x: S::F32, y: S::F32) -> S::F32 {
    let larger = x.max(y);
    let sum = in_f64!(s, |x, y| {
        let gap = s.f64(-700.0).max(-(x - y).abs());
        x.max(y) + log1p64(s, exp64(s, gap))
    });
    let finite = larger.abs().lt(s.f32(f32::INFINITY));
    let r = S::F32::select(finite, sum, larger);
    S::F32::select(x.is_nan() | y.is_nan(), x + y, r)
}

/// x^y as C's `pow`, correctly rounded but for rare ties.
#[inline(always)]
pub fn pow<S: Simd>(s: S, x: S::F32, y: S::F32) -> S::F32 {
    let (zero, one, infinity) = (s.f32(0.0), s.f32(1.0), s.f32(f32::INFINITY));
    let size = x.abs();
    // ln of 0, of infinity and of NaN, for which the core has none.
    let edge = S::F32::select(size.eq(zero), -infinity, size);
    let inside = zero.lt(size) & size.lt(infinity);
    let edge = S::F32::select(inside, zero, edge);
    let r = in_f64!(s, |size, edge, y| {
        let log = S::F64::select(edge.eq(s.f64(0.0)), log64(s, size), edge);
        exp64(s, s.f64(200.0).min(s.f64(-200.0).max(log * y)))
    });

    let whole = y.trunc().eq(y);
    let half = y * s.f32(0.5);
    let odd = whole & !half.trunc().eq(half);
    let negative = x.bits().lt(s.i32(0));
    let r = S::F32::select(negative & odd, -r, r);
    let r = S::F32::select(!whole & x.lt(zero) & size.lt(infinity), s.f32(f32::NAN), r);
    let is_one = y.eq(zero) | x.eq(one) | (size.eq(one) & y.abs().eq(infinity));
    S::F32::select(is_one, one, r)
}

/// ln x · `scale` with the edges of a logarithm.
#[inline(always)]
fn scaled_log<S: Simd>(s: S, x: S::F32, scale: f64) -> S::F32 {
    edges(s, in_f64!(s, |x| log64(s, x) * s.f64(scale)), x, 0.0)
}

/// `y`, but -inf at `pole`, NaN below it, and x where x is infinite or NaN.
#[inline(always)]
fn edges<S: Simd>(s: S, y: S::F32, x: S::F32, pole: f32) -> S::F32 {
    let pole = s.f32(pole);
    let y = S::F32::select(x.eq(pole), s.f32(f32::NEG_INFINITY), y);
    let y = S::F32::select(x.lt(s.f32(f32::INFINITY)), y, x);
    S::F32::select(x.lt(pole), s.f32(f32::NAN), y)
}

/// ln x for positive normal x, to 2^-37 relative.
#[inline(always)]
pub(super) fn log64<S: Simd>(s: S, x: S::F64) -> S::F64 {
    let Split { z, k, i } = split(s, x);
    let r = s.lookup16_f64(&INVERSE, i).fma(z, s.f64(-1.0));
    let base = k.fma(s.f64(LN2), s.lookup16_f64(&LOG, i));
    base + (horner64(s, &LOG1P, r) * r).fma(r, r)
}

/// ln(1 + x) for x > -1: what the sum loses is added to its logarithm.
#[inline(always)]
fn log1p64<S: Simd>(s: S, x: S::F64) -> S::F64 {
    let one = s.f64(1.0);
    let sum = x + one;
    log64(s, sum) + (x - (sum - one))
}

/// x = 2^k z with z in [0.699, 1.398), and the sixteenth that z lies in.
pub(crate) struct Split<S: Simd> {
    pub(crate) z: S::F64,
    pub(crate) k: S::F64,
    pub(crate) i: S::I64,
}

/// For positive normal x.
#[inline(always)]
pub(crate) fn split<S: Simd>(s: S, x: S::F64) -> Split<S> {
    let offset = x.bits() - s.u64(0x3fe6_6000_0000_0000);
    let z = x.bits() - (offset & s.u64(0xfff0_0000_0000_0000));
    Split { z: S::F64::from_bits(z), k: S::F64::from_int(offset.sar(52)), i: offset.shr(48) & s.i64(15) }
}

/// Below this the inverse hyperbolic functions are polynomials.
const SMALL: f64 = 1.0 / 64.0;

/// 1/c.
pub(crate) const INVERSE: [f64; 16] = [
    f64::from_bits(0x3ff661ec79f8f3be),
    f64::from_bits(0x3ff571ed4aaf883d),
    f64::from_bits(0x3ff49539f0f010b0),
    f64::from_bits(0x3ff3c995b0b80385),
    f64::from_bits(0x3ff30d190c8864a5),
    f64::from_bits(0x3ff25e227b0b8ea0),
    f64::from_bits(0x3ff1bb4a4a1a343f),
    f64::from_bits(0x3ff12358f08ae5ba),
    f64::from_bits(0x3ff0953f419900a7),
    1.0,
    f64::from_bits(0x3fee608cfd9a47ac),
    f64::from_bits(0x3feca4b31f026aa0),
    f64::from_bits(0x3feb2036576afce6),
    f64::from_bits(0x3fe9c2d163a1aa2d),
    f64::from_bits(0x3fe886e6037841ed),
    f64::from_bits(0x3fe767dcf5534862),
];
/// ln c.
pub(crate) const LOG: [f64; 16] = [
    f64::from_bits(0xbfd57bf7808caade),
    f64::from_bits(0xbfd2bef0a7c06ddb),
    f64::from_bits(0xbfd01eae7f513a67),
    f64::from_bits(0xbfcb31d8a68224e9),
    f64::from_bits(0xbfc6574f0ac07758),
    f64::from_bits(0xbfc1aa2bc79c8100),
    f64::from_bits(0xbfba4e76ce8c0e5e),
    f64::from_bits(0xbfb1973c5a611ccc),
    f64::from_bits(0xbfa252f438e10c1e),
    0.0,
    f64::from_bits(0x3faaa5aa5df25984),
    f64::from_bits(0x3fbc5e53aa362eb4),
    f64::from_bits(0x3fc526e57720db08),
    f64::from_bits(0x3fcbc2860d224770),
    f64::from_bits(0x3fd1058bc8a07ee1),
    f64::from_bits(0x3fd4043057b6ee09),
];

// Coefficients, lowest power first, and their largest errors.
/// (ln(1 + r) - r)/r² for r up to 1/32; minimax (Remez), 2^-38 of ln(1 + r).
const LOG1P: [f64; 5] =
    [-0.4999999998936161, 0.33333328494572345, -0.25000075192034005, 0.2001758075625792, -0.1658464895036126];
/// (asinh(a)/a - 1)/a² in a² below 1/64²: Taylor, 2^-44.
const ASINH: [f64; 3] = [-1.0 / 6.0, 3.0 / 40.0, -15.0 / 336.0];
/// (atanh(a)/a - 1)/a² in a² below 1/64²: Taylor, 2^-44.
const ATANH: [f64; 3] = [1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0];
