//! What reductions keep: sums, products, extremes, logic, for each family of element types.

use crate::simd::{self, Float, Kernel, LANES32, Mask, Simd, Vector};
use lapis_core::dtype::{Dtype, bf16, c64, f16};
use num_complex::Complex;
use std::marker::PhantomData;

/// How values of a (wide) type combine.
pub(super) trait Fold: Sync {
    type In: Copy;
    type Acc: Copy + Send + Sync;
    const START: Self::Acc;
    fn push(acc: Self::Acc, x: Self::In) -> Self::Acc;
    fn merge(a: Self::Acc, b: Self::Acc) -> Self::Acc;
    /// Folds `n` elements.
    ///
    /// # Safety
    /// `n` elements can be read.
    #[inline(always)]
    unsafe fn block(p: *const Self::In, n: usize) -> Self::Acc {
        let mut acc = Self::START;
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            acc = Self::push(acc, unsafe { p.add(i).read() });
        }
        acc
    }
    /// Folds one value into each accumulator.
    ///
    /// # Safety
    /// There are as many values as accumulators.
    #[inline(always)]
    unsafe fn row(acc: &mut [Self::Acc], values: *const Self::In) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller vouches for the values.
            *acc = Self::push(*acc, unsafe { values.add(i).read() });
        }
    }
    /// Stores the result as `dtype`.
    ///
    /// # Safety
    /// `out` has room for one element.
    unsafe fn finish(acc: Self::Acc, dtype: Dtype, out: *mut u8);
}

/// Stores a double as f32, f16, bf16 or f64.
unsafe fn finish_float(x: f64, dtype: Dtype, out: *mut u8) {
    // SAFETY: the caller vouches for one element.
    unsafe {
        match dtype {
            Dtype::Float16 => out.cast::<f16>().write(f16::from_f64(x)),
            Dtype::Bfloat16 => out.cast::<bf16>().write(bf16::from_f64(x)),
            Dtype::Float32 => out.cast::<f32>().write(x as f32),
            _ => out.cast::<f64>().write(x),
        }
    }
}

pub(super) struct SumF32;
impl Fold for SumF32 {
    type In = f32;
    type Acc = f64;
    const START: f64 = 0.0;
    #[inline(always)]
    fn push(acc: f64, x: f32) -> f64 {
        acc + f64::from(x)
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a + b
    }
    unsafe fn block(p: *const f32, n: usize) -> f64 {
        simd::dispatch(SumBlock(p, n))
    }
    unsafe fn row(acc: &mut [f64], values: *const f32) {
        simd::dispatch(SumRow(acc, values));
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

/// One value added to each accumulator.
struct SumRow<'a>(&'a mut [f64], *const f32);
impl Kernel for SumRow<'_> {
    type Out = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (i, acc) in self.0.iter_mut().enumerate() {
            // SAFETY: there are as many values as accumulators.
            *acc += f64::from(unsafe { self.1.add(i).read() });
        }
    }
}

/// The sum of a block: four vectors of partial sums, combined in a fixed order.
struct SumBlock(*const f32, usize);
impl Kernel for SumBlock {
    type Out = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let SumBlock(p, n) = self;
        let mut acc = [s.f32(0.0); 4];
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements.
        unsafe {
            while i + 4 * LANES32 <= n {
                for (k, a) in acc.iter_mut().enumerate() {
                    *a = *a + S::F32::load(s, p.add(i + k * LANES32));
                }
                i += 4 * LANES32;
            }
            let mut k = 0;
            while i < n {
                acc[k] = acc[k] + S::F32::load_n(s, p.add(i), LANES32.min(n - i));
                i += LANES32;
                k += 1;
            }
        }
        f64::from(((acc[0] + acc[1]) + (acc[2] + acc[3])).reduce_add())
    }
}

pub(super) struct SumF64;
impl Fold for SumF64 {
    type In = f64;
    type Acc = f64;
    const START: f64 = 0.0;
    #[inline(always)]
    fn push(acc: f64, x: f64) -> f64 {
        acc + x
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a + b
    }
    unsafe fn block(p: *const f64, n: usize) -> f64 {
        let mut lanes = [0.0; 16];
        for i in 0..n {
            // SAFETY: the caller vouches for `n` elements.
            lanes[i % 16] += unsafe { p.add(i).read() };
        }
        lanes.chunks_exact(4).map(|c| (c[0] + c[1]) + (c[2] + c[3])).sum()
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

pub(super) struct ProdFloat<T>(PhantomData<T>);
impl<T: Copy + Into<f64> + Sync> Fold for ProdFloat<T> {
    type In = T;
    type Acc = f64;
    const START: f64 = 1.0;
    #[inline(always)]
    fn push(acc: f64, x: T) -> f64 {
        acc * x.into()
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        a * b
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

type C = Complex<f64>;
pub(super) struct SumC64;
impl Fold for SumC64 {
    type In = c64;
    type Acc = C;
    const START: C = C::new(0.0, 0.0);
    #[inline(always)]
    fn push(acc: C, x: c64) -> C {
        C::new(acc.re + f64::from(x.re), acc.im + f64::from(x.im))
    }
    #[inline(always)]
    fn merge(a: C, b: C) -> C {
        a + b
    }
    unsafe fn finish(acc: C, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.cast::<c64>().write(c64::new(acc.re as f32, acc.im as f32)) }
    }
}
pub(super) struct ProdC64;
impl Fold for ProdC64 {
    type In = c64;
    type Acc = C;
    const START: C = C::new(1.0, 0.0);
    #[inline(always)]
    fn push(acc: C, x: c64) -> C {
        acc * C::new(f64::from(x.re), f64::from(x.im))
    }
    #[inline(always)]
    fn merge(a: C, b: C) -> C {
        a * b
    }
    unsafe fn finish(acc: C, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { SumC64::finish(acc, dtype, out) }
    }
}

/// Sums and products of integers wrap, so they may be taken in any width.
pub(super) trait Whole: Copy + Ord + Sync + Send {
    const LOWEST: Self;
    const HIGHEST: Self;
    fn bits(self) -> u64;
}
macro_rules! whole {
    ($($t:ident)*) => {$(
        impl Whole for $t {
            const LOWEST: $t = $t::MIN;
            const HIGHEST: $t = $t::MAX;
            #[inline(always)]
            fn bits(self) -> u64 {
                self as i64 as u64
            }
        }
    )*};
}
whole!(u8 u16 u32 u64 i8 i16 i32 i64);

unsafe fn finish_int(acc: u64, dtype: Dtype, out: *mut u8) {
    let bytes = acc.to_le_bytes();
    // SAFETY: the caller vouches for one element of `dtype`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), out, dtype.size()) }
}

macro_rules! integer_fold {
    ($name:ident, $acc:ty, $start:expr, |$a:ident, $x:ident| $push:expr, |$p:ident, $q:ident| $merge:expr, $bits:expr) => {
        pub(super) struct $name<T>(PhantomData<T>);
        impl<T: Whole> Fold for $name<T> {
            type In = T;
            type Acc = $acc;
            const START: $acc = $start;
            #[inline(always)]
            fn push($a: $acc, $x: T) -> $acc {
                $push
            }
            #[inline(always)]
            fn merge($p: $acc, $q: $acc) -> $acc {
                $merge
            }
            unsafe fn finish(acc: $acc, dtype: Dtype, out: *mut u8) {
                // SAFETY: passed on.
                unsafe { finish_int($bits(acc), dtype, out) }
            }
        }
    };
}
integer_fold!(SumInt, u64, 0, |a, x| a.wrapping_add(x.bits()), |p, q| p.wrapping_add(q), |b: u64| b);
integer_fold!(ProdInt, u64, 1, |a, x| a.wrapping_mul(x.bits()), |p, q| p.wrapping_mul(q), |b: u64| b);
integer_fold!(MaxInt, T, T::LOWEST, |a, x| a.max(x), |p, q| p.max(q), |b: T| b.bits());
integer_fold!(MinInt, T, T::HIGHEST, |a, x| a.min(x), |p, q| p.min(q), |b: T| b.bits());

/// Largest (or smallest) value; NaN once one was seen.
pub(super) struct MaxF32<const MAX: bool>;
impl<const MAX: bool> Fold for MaxF32<MAX> {
    type In = f32;
    type Acc = f32;
    const START: f32 = if MAX { f32::NEG_INFINITY } else { f32::INFINITY };
    #[inline(always)]
    fn push(acc: f32, x: f32) -> f32 {
        let better = if MAX { x > acc } else { x < acc };
        if better || x.is_nan() { x } else { acc }
    }
    #[inline(always)]
    fn merge(a: f32, b: f32) -> f32 {
        if a.is_nan() { a } else { Self::push(a, b) }
    }
    unsafe fn block(p: *const f32, n: usize) -> f32 {
        simd::dispatch(MaxBlock::<MAX>(p, n))
    }
    unsafe fn finish(acc: f32, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(f64::from(acc), dtype, out) }
    }
}

struct MaxBlock<const MAX: bool>(*const f32, usize);
impl<const MAX: bool> Kernel for MaxBlock<MAX> {
    type Out = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let MaxBlock(p, n) = self;
        let start = MaxF32::<MAX>::START;
        let mut acc = [s.f32(start); 2];
        let mut nan = s.f32(0.0).is_nan();
        let mut i = 0;
        // SAFETY: whoever made this vouches for `n` elements.
        unsafe {
            while i < n {
                let m = LANES32.min(n - i);
                let mut v = if m == LANES32 { S::F32::load(s, p.add(i)) } else { S::F32::load_n(s, p.add(i), m) };
                if m < LANES32 {
                    v = S::F32::select(S::M32::first(s, m), v, s.f32(start));
                }
                nan = nan | v.is_nan();
                let a = &mut acc[i / LANES32 % 2];
                *a = if MAX { v.max(*a) } else { v.min(*a) };
                i += LANES32;
            }
        }
        if nan.any() {
            return f32::NAN;
        }
        if MAX { acc[0].max(acc[1]).reduce_max() } else { acc[0].min(acc[1]).reduce_min() }
    }
}

pub(super) struct MaxF64<const MAX: bool>;
impl<const MAX: bool> Fold for MaxF64<MAX> {
    type In = f64;
    type Acc = f64;
    const START: f64 = if MAX { f64::NEG_INFINITY } else { f64::INFINITY };
    #[inline(always)]
    fn push(acc: f64, x: f64) -> f64 {
        let better = if MAX { x > acc } else { x < acc };
        if (better || x.is_nan()) && !acc.is_nan() { x } else { acc }
    }
    #[inline(always)]
    fn merge(a: f64, b: f64) -> f64 {
        Self::push(a, b)
    }
    unsafe fn finish(acc: f64, dtype: Dtype, out: *mut u8) {
        // SAFETY: passed on.
        unsafe { finish_float(acc, dtype, out) }
    }
}

/// By real part, then imaginary part.
pub(super) struct MaxC64<const MAX: bool>;
impl<const MAX: bool> Fold for MaxC64<MAX> {
    type In = c64;
    type Acc = Option<c64>;
    const START: Option<c64> = None;
    fn push(acc: Option<c64>, x: c64) -> Option<c64> {
        let Some(a) = acc else { return Some(x) };
        let nan = |z: c64| z.re.is_nan() || z.im.is_nan();
        let better = if MAX { (x.re, x.im) > (a.re, a.im) } else { (x.re, x.im) < (a.re, a.im) };
        Some(if !nan(a) && (nan(x) || better) { x } else { a })
    }
    fn merge(a: Option<c64>, b: Option<c64>) -> Option<c64> {
        b.map_or(a, |b| Self::push(a, b))
    }
    unsafe fn finish(acc: Option<c64>, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.cast::<c64>().write(acc.unwrap_or_default()) }
    }
}

/// All (or any) of bytes 0 and 1.
pub(super) struct Logic<const ALL: bool>;
impl<const ALL: bool> Fold for Logic<ALL> {
    type In = u8;
    type Acc = u8;
    const START: u8 = ALL as u8;
    #[inline(always)]
    fn push(acc: u8, x: u8) -> u8 {
        if ALL { acc & x } else { acc | x }
    }
    #[inline(always)]
    fn merge(a: u8, b: u8) -> u8 {
        Self::push(a, b)
    }
    unsafe fn finish(acc: u8, _: Dtype, out: *mut u8) {
        // SAFETY: the caller vouches for one element.
        unsafe { out.write(acc) }
    }
}
