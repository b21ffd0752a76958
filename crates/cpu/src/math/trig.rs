//! sin, cos, tan, and the inverses asin, acos, atan, atan2: in `f64`, rounded once.
//!
//! Arguments up to 2^40 are reduced by multiples of π/2 in two steps of `f64`, which leaves 2^-60; larger ones lane by
//! lane with as many digits of 2/π as a `f32` can need.

use super::exp::{clamp, horner64, reciprocals, with_sign_of};
use super::in_f64;
use crate::simd::{Float, Int, LANES32, LANES64, Mask, Simd, Vector};
use std::f64::consts::{FRAC_2_PI, FRAC_PI_2, PI};

/// sin x, correctly rounded but for rare ties.
#[inline(always)]
pub fn sin<S: Simd>(s: S, x: S::F32) -> S::F32 {
    sin_cos(s, x, 0)
}

/// cos x, correctly rounded but for rare ties.
#[inline(always)]
pub fn cos<S: Simd>(s: S, x: S::F32) -> S::F32 {
    sin_cos(s, x, 1)
}

/// tan x, correctly rounded but for rare ties.
#[inline(always)]
pub fn tan<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let [a, b] = reduce(s, x);
    let ((above_a, below_a), (above_b, below_b)) = (tan_of(s, a), tan_of(s, b));
    let [p, q] = reciprocals(s, [below_a, below_b]);
    s.narrow([above_a * p, above_b * q])
}

/// The angle in [-π/2, π/2] whose sine is x; NaN for |x| > 1.
#[inline(always)]
pub fn asin<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let size = x.abs();
    let y = in_f64!(s, |size| {
        let (p, steep) = half_asin(s, size);
        S::F64::select(steep, p.fnma(s.f64(2.0), s.f64(FRAC_PI_2)), p)
    });
    with_sign_of(s, y, x)
}

/// The angle in [0, π] whose cosine is x; NaN for |x| > 1.
#[inline(always)]
pub fn acos<S: Simd>(s: S, x: S::F32) -> S::F32 {
    in_f64!(s, |x| {
        let (zero, negative) = (s.f64(0.0), x.lt(s.f64(0.0)));
        let (p, steep) = half_asin(s, x.abs());
        // 2p or π - 2p; π/2 - p or π/2 + p.
        let p = S::F64::select(steep, p + p, s.f64(FRAC_PI_2) - S::F64::select(negative, -p, p));
        let turn = steep & negative;
        S::F64::select(turn, s.f64(PI), zero) + S::F64::select(turn, -p, p)
    })
}

/// The angle in [-π/2, π/2] whose tangent is x.
#[inline(always)]
pub fn atan<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // The limit keeps the reciprocal normal and does not show in the result.
    let [a, b] = s.widen(clamp(s, x, 1e30).abs());
    let [p, q] = reciprocals(s, [a, b]);
    with_sign_of(s, s.narrow([atan64(s, a, p), atan64(s, b, q)]), x)
}

/// atan a for a >= 0, given 1/a.
#[inline(always)]
fn atan64<S: Simd>(s: S, a: S::F64, inverse: S::F64) -> S::F64 {
    let steep = s.f64(1.0).lt(a);
    let p = atan_poly(s, S::F64::select(steep, inverse, a));
    S::F64::select(steep, s.f64(FRAC_PI_2) - p, p)
}

/// The angle in [-π, π] of the point (x, y), as C's `atan2(y, x)`.
#[inline(always)]
pub fn atan2<S: Simd>(s: S, y: S::F32, x: S::F32) -> S::F32 {
    let r = in_f64!(s, |y, x| {
        let (ay, ax) = (y.abs(), x.abs());
        let (small, large) = (ay.min(ax), ay.max(ax));
        // 0/0 and infinity/infinity stand for 0 and 1.
        let ratio = S::F64::select(large.eq(s.f64(0.0)), s.f64(0.0), small / large);
        let ratio = S::F64::select(small.eq(s.f64(f64::INFINITY)), s.f64(1.0), ratio);
        let p = atan_poly(s, ratio);
        let p = S::F64::select(ax.lt(ay), s.f64(FRAC_PI_2) - p, p);
        S::F64::select(x.bits().lt(s.i64(0)), s.f64(PI) - p, p)
    });
    S::F32::select(x.is_nan() | y.is_nan(), x + y, with_sign_of(s, r, y))
}

/// sin(x + `turn`·π/2).
#[inline(always)]
fn sin_cos<S: Simd>(s: S, x: S::F32, turn: i64) -> S::F32 {
    let [a, b] = reduce(s, x);
    s.narrow([sin_of(s, a, turn), sin_of(s, b, turn)])
}

/// sin(r + (n + `turn`)·π/2).
#[inline(always)]
fn sin_of<S: Simd>(s: S, (r, n): (S::F64, S::I64), turn: i64) -> S::F64 {
    let n = n + s.i64(turn);
    let p = S::F64::select(is_odd(s, n), cos_poly(s, r), sin_poly(s, r));
    // The third and fourth quadrant change the sign.
    S::F64::from_bits(p.bits() ^ n.shr(1).shl(63))
}

/// tan(r + n·π/2) as numerator and denominator.
#[inline(always)]
fn tan_of<S: Simd>(s: S, (r, n): (S::F64, S::I64)) -> (S::F64, S::F64) {
    let (sin, cos) = (sin_poly(s, r), cos_poly(s, r));
    let odd = is_odd(s, n);
    // In odd quadrants it is -cot of the rest.
    (S::F64::select(odd, -cos, sin), S::F64::select(odd, sin, cos))
}

#[inline(always)]
fn is_odd<S: Simd>(s: S, n: S::I64) -> S::M64 {
    (n & s.i64(1)).eq(s.i64(1))
}

/// sin r for |r| <= π/4.
#[inline(always)]
fn sin_poly<S: Simd>(s: S, r: S::F64) -> S::F64 {
    let z = r * r;
    // As a product, so that -0 stays.
    r * horner64(s, &SIN, z).fma(z, s.f64(1.0))
}

/// cos r for |r| <= π/4.
#[inline(always)]
fn cos_poly<S: Simd>(s: S, r: S::F64) -> S::F64 {
    let z = r * r;
    horner64(s, &COS, z).fma(z, s.f64(-0.5)).fma(z, s.f64(1.0))
}

/// asin a for 0 <= a <= 1/2; for larger a half of acos a, and true.
#[inline(always)]
fn half_asin<S: Simd>(s: S, a: S::F64) -> (S::F64, S::M64) {
    let half = s.f64(0.5);
    let steep = half.lt(a);
    let z = S::F64::select(steep, (s.f64(1.0) - a) * half, a * a);
    let a = S::F64::select(steep, z.sqrt(), a);
    ((horner64(s, &ASIN, z) * z).fma(a, a), steep)
}

/// atan a for 0 <= a <= 1.
#[inline(always)]
fn atan_poly<S: Simd>(s: S, a: S::F64) -> S::F64 {
    let z = a * a;
    (horner64(s, &ATAN, z) * z).fma(a, a)
}

/// For each half, x = n·π/2 + r with |r| <= π/4, and n modulo 4 or more.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: S::F32) -> [(S::F64, S::I64); 2] {
    let [a, b] = s.widen(x);
    let (a, b) = (reduce_small(s, a), reduce_small(s, b));
    let large = s.f32(1.0995116e12).lt(x.abs()) & x.abs().lt(s.f32(f32::INFINITY));
    if large.any() { reduce_large(s, x, large.bits(), [a, b]) } else { [a, b] }
}

/// [`reduce`] for |x| <= 2^40; NaN for infinities.
#[inline(always)]
fn reduce_small<S: Simd>(s: S, x: S::F64) -> (S::F64, S::I64) {
    // Adding 0 makes -0 positive, which keeps the sign of x = -0 below.
    let n = (x * s.f64(FRAC_2_PI)).round() + s.f64(0.0);
    // The first step is exact, because n·π/2 and x share their leading digits.
    let r = n.fnma(s.f64(PI_2_LOW), n.fnma(s.f64(FRAC_PI_2), x));
    (r, n.to_int())
}

/// [`reduce`] with the lanes in `large` done one by one.
#[inline(always)]
fn reduce_large<S: Simd>(s: S, x: S::F32, large: u32, easy: [(S::F64, S::I64); 2]) -> [(S::F64, S::I64); 2] {
    let (mut xs, mut rs, mut ns) = ([0.0; LANES32], [0.0; LANES32], [0; LANES32]);
    // SAFETY: the arrays hold the lanes of one `f32` and of two `f64` vectors.
    unsafe {
        x.store(xs.as_mut_ptr());
        for (i, (r, n)) in easy.into_iter().enumerate() {
            r.store(rs.as_mut_ptr().add(i * LANES64));
            n.store(ns.as_mut_ptr().add(i * LANES64));
        }
    }
    for i in (0..LANES32).filter(|i| large >> i & 1 == 1) {
        (rs[i], ns[i]) = reduce_one(xs[i]);
    }
    // SAFETY: as above.
    unsafe {
        let (r, n) = (rs.as_ptr(), ns.as_ptr());
        [(S::F64::load(s, r), S::I64::load(s, n)), (S::F64::load(s, r.add(LANES64)), S::I64::load(s, n.add(LANES64)))]
    }
}

/// The reduction of Payne and Hanek for one finite number of at least 2^24: x = m·2^e with whole m, and of m·2^e·2/π
/// only the digits below 4 count, so a window of 128 digits of 2/π is multiplied.
fn reduce_one(x: f32) -> (f64, i64) {
    let bits = x.to_bits();
    let (m, e) = ((bits & 0x7f_ffff | 0x80_0000) as u128, (bits >> 23 & 0xff) as i32 - 150);
    // The digit of weight 2^-1 is the first; the window starts at weight 2^(1 - e).
    let start = (e - 2).max(0) as usize;
    let (word, shift) = (start / 64, start % 64);
    let wide = (TWO_OVER_PI[word] as u128) << 64 | TWO_OVER_PI[word + 1] as u128;
    let next = TWO_OVER_PI[word + 2] as u128;
    let window = wide << shift | (next << shift) >> 64;
    // In units of 2^-126 quarter turns.
    let product = m.wrapping_mul(window);
    let n = product.wrapping_add(1 << 125) >> 126;
    let rest = product.wrapping_sub(n << 126) as i128 as f64;
    let r = rest * (FRAC_PI_2 / (1u128 << 126) as f64);
    if x < 0.0 { (-r, -(n as i64)) } else { (r, n as i64) }
}

/// π/2 less `FRAC_PI_2`.
const PI_2_LOW: f64 = 6.123233995736766e-17;
/// The first 320 binary digits of 2/π.
const TWO_OVER_PI: [u64; 5] =
    [0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041, 0xfe5163abdebbc561, 0xb7246e3a424dd2e0];

// Minimax coefficients (Remez) in the square of the argument, lowest power first, and their largest errors.
/// (sin r/r - 1)/r²; 2^-37.
const SIN: [f64; 4] = [-0.16666666640588126, 0.008333329280518543, -0.00019839304414027504, 2.7180464602240466e-06];
/// ((cos r - 1)/r² + 1/2)/r²; 2^-43.
const COS: [f64; 4] = [0.04166666661910654, -0.0013888883467220565, 2.479945153983422e-05, -2.7205045442671784e-07];
/// (asin a/a - 1)/a² up to 1/2; 2^-40.
const ASIN: [f64; 8] = [
    0.16666666627188997,
    0.07500004998120868,
    0.0446407017228401,
    0.030426631946785285,
    0.02186468509560447,
    0.02065174010049843,
    0.0019647515314521924,
    0.032927203506050315,
];
/// (atan a/a - 1)/a² up to 1; 2^-36.
const ATAN: [f64; 12] = [
    -0.3333333311112604,
    0.1999998422286331,
    -0.14285320904613685,
    0.11106143596594115,
    -0.09053630412980844,
    0.07510513788205925,
    -0.06056961134127413,
    0.04417916373832412,
    -0.026547827004080645,
    0.011778665416155036,
    -0.003326492829500834,
    0.00044069363622531216,
];
