//! The few vector operations the attention kernels need, on each instruction set.
//!
//! Knows nothing of attention. Two conventions matter to the callers: `max` and `min` answer their *second* argument
//! when either one is NaN, and `exp` gives exactly 1 for 0 and exactly 0 for everything below -87, so that a masked
//! score has a weight of exactly zero.

use super::kernels::Ahead;
use half::{bf16, f16};

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod portable;

/// Vectors of `N` f32 lanes.
///
/// # Safety
/// Every method needs the instruction set of its implementation; pointers need as many elements as the name says.
pub(super) trait Lanes: Copy + 'static {
    /// Lanes of one vector.
    const N: usize;
    /// The vector.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the machine can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; `b` when either is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; `b` when either is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `p * 2^n` for integral `n` in -126 ..= 127 and `p` near 1.
    unsafe fn scale2(p: Self::V, n: Self::V) -> Self::V;
    /// `v` where `x >= limit` or `x` is NaN, else 0.
    unsafe fn zero_below(x: Self::V, limit: f32, v: Self::V) -> Self::V;
    /// `v` in the lanes `lo .. hi`, minus infinity in the others; `lo` and `hi` may lie outside `0 ..= N`.
    unsafe fn only(v: Self::V, lo: isize, hi: isize) -> Self::V;
    /// `|a|` with the sign of `b`.
    unsafe fn copysign(a: Self::V, b: Self::V) -> Self::V;
    /// The largest lane (no lane is NaN).
    unsafe fn largest(v: Self::V) -> f32;
    /// The sum of the lanes, in a fixed order.
    unsafe fn sum(v: Self::V) -> f32;

    /// `N` elements as f32.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    /// `N` elements rounded to nearest even, NaN kept.
    unsafe fn store_f16(p: *mut f16, v: Self::V);
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);

    /// Elements 0, 2, 4 .. and 1, 3, 5 .. of `2 N` bf16.
    unsafe fn load_bf16_even_odd(p: *const bf16) -> [Self::V; 2];
    /// `2 N` lanes in order to their even and odd lanes.
    unsafe fn to_even_odd(v: [Self::V; 2]) -> [Self::V; 2];
    /// The inverse of [`Lanes::to_even_odd`].
    unsafe fn from_even_odd(v: [Self::V; 2]) -> [Self::V; 2];

    /// Writes `keys <= N` rows of `dim` elements, `stride` elements apart, as columns: `to[place(d) * ld + key]`.
    /// All `N` lanes of a column are written; those from `keys` on hold some row's values.
    unsafe fn transpose_f32(from: *const f32, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize);
    unsafe fn transpose_f16(from: *const f16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize);
    unsafe fn transpose_bf16(from: *const bf16, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize);

    /// Brings a cache line into the first-level cache.
    unsafe fn prefetch(p: *const u8);
    /// Brings a cache line into the second-level cache.
    unsafe fn prefetch_far(p: *const u8);

    /// Floats of a row of spread queries; 0 where there is no `dot_in_place`.
    fn spread_len(_dim: usize) -> usize {
        0
    }
    /// Rearranges a row of queries for `dot_in_place`.
    unsafe fn spread(_q: *const f32, _dim: usize, _to: *mut f32) {
        unreachable!("spread_len is 0")
    }
    /// Scores of `M` rows of spread queries against `keys` keys of elements of two bytes, times `scale`.
    unsafe fn dot_in_place<T: Elem, const M: usize>(
        _q: *const f32,
        _from: *const T,
        _stride: isize,
        _keys: usize,
        _dim: usize,
        _scale: f32,
        _scores: *mut f32,
        _ahead: &Ahead,
    ) {
        unreachable!("spread_len is 0")
    }
}

/// Below this argument `exp` is 0: the last value whose result is a normal number, and denormals are slow.
pub(super) const EXP_MIN: f32 = -87.0;

/// `(n, exp(r) - 1)` with `x = n ln 2 + r`, within 1e-8 of `exp(r)`.
#[inline(always)]
unsafe fn split_exp<L: Lanes>(x: L::V) -> (L::V, L::V) {
    // SAFETY: the caller runs on L's instruction set.
    unsafe {
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let r = L::fma(n, L::splat(-std::f32::consts::LN_2), x);
        let r = L::fma(n, L::splat(1.904_654_2e-9), r);
        let mut p = L::splat(0.001_392_618_4);
        for c in [0.008_363_179, 0.041_666_556, 0.166_665_76, 0.5, 1.0] {
            p = L::fma(p, r, L::splat(c));
        }
        (n, L::mul(p, r))
    }
}

/// `exp(x)` for `x <= 88`, within an ulp or so; NaN stays, everything below -87 is 0.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: the caller runs on L's instruction set.
    unsafe {
        let (n, p) = split_exp::<L>(L::max(L::splat(EXP_MIN), x));
        L::zero_below(x, EXP_MIN, L::scale2(L::add(p, L::splat(1.0)), n))
    }
}

/// `tanh(x)`, accurate also near 0.
#[inline(always)]
pub(super) unsafe fn tanh<L: Lanes>(x: L::V) -> L::V {
    // SAFETY: the caller runs on L's instruction set.
    unsafe {
        // With y = exp(2|x|) - 1: tanh |x| = y / (y + 2); from 10 on that is 1 in f32.
        let one = L::splat(1.0);
        let twice = L::copysign(L::add(x, x), one);
        let (n, p) = split_exp::<L>(L::min(L::splat(20.0), twice));
        let power = L::scale2(one, n);
        let y = L::fma(p, power, L::sub(power, one));
        L::copysign(L::div(y, L::add(y, L::splat(2.0))), x)
    }
}

/// An element type of keys, values, queries and results.
///
/// # Safety
/// As for [`Lanes`].
pub(super) trait Elem: Copy + 'static {
    /// The even (low) and odd elements of words of two, on AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn split512(words: std::arch::x86_64::__m512i) -> [std::arch::x86_64::__m512; 2];
    /// The same on AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn split256(words: std::arch::x86_64::__m256i) -> [std::arch::x86_64::__m256; 2];
    /// Whether [`Elem::load2`] gives even and odd lanes.
    const PAIRED: bool;
    fn get(self) -> f32;
    fn from_f64(x: f64) -> Self;
    unsafe fn load<L: Lanes>(p: *const Self) -> L::V;
    unsafe fn store<L: Lanes>(p: *mut Self, v: L::V);
    /// `2 N` elements, in the order that is cheapest to load: see [`Elem::PAIRED`].
    unsafe fn load2<L: Lanes>(p: *const Self) -> [L::V; 2];
    unsafe fn transpose<L: Lanes>(from: *const Self, stride: isize, keys: usize, dim: usize, to: *mut f32, ld: usize);
}

macro_rules! elem {
    ($t:ty, $paired:literal, $get:expr, $from:expr, $load:ident, $store:ident, $transpose:ident, $split:ident, |$p:ident| $load2:expr) => {
        impl Elem for $t {
            const PAIRED: bool = $paired;
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn split512(words: std::arch::x86_64::__m512i) -> [std::arch::x86_64::__m512; 2] {
                // SAFETY: the same contract.
                unsafe { avx512::$split(words) }
            }
            #[cfg(target_arch = "x86_64")]
            #[inline(always)]
            unsafe fn split256(words: std::arch::x86_64::__m256i) -> [std::arch::x86_64::__m256; 2] {
                // SAFETY: the same contract.
                unsafe { avx2::$split(words) }
            }
            #[inline(always)]
            fn get(self) -> f32 {
                $get(self)
            }
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            #[inline(always)]
            unsafe fn load<L: Lanes>(p: *const Self) -> L::V {
                // SAFETY: the same contract.
                unsafe { L::$load(p) }
            }
            #[inline(always)]
            unsafe fn store<L: Lanes>(p: *mut Self, v: L::V) {
                // SAFETY: the same contract.
                unsafe { L::$store(p, v) }
            }
            #[inline(always)]
            unsafe fn load2<L: Lanes>($p: *const Self) -> [L::V; 2] {
                // SAFETY: the same contract.
                unsafe { $load2 }
            }
            #[inline(always)]
            unsafe fn transpose<L: Lanes>(f: *const Self, s: isize, keys: usize, dim: usize, to: *mut f32, ld: usize) {
                // SAFETY: the same contract.
                unsafe { L::$transpose(f, s, keys, dim, to, ld) }
            }
        }
    };
}
elem!(f32, false, |x| x, |x| x as f32, load, store, transpose_f32, split_none, |p| [L::load(p), L::load(p.add(L::N))]);
elem!(f16, false, f16::to_f32, f16::from_f64, load_f16, store_f16, transpose_f16, split_f16, |p| [
    L::load_f16(p),
    L::load_f16(p.add(L::N))
]);
elem!(bf16, true, bf16::to_f32, bf16::from_f64, load_bf16, store_bf16, transpose_bf16, split_bf16, |p| {
    L::load_bf16_even_odd(p)
});
