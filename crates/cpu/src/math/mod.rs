//! Mathematical functions: of `f32` vectors ([`vec`](mod@vec), for kernels to build on), of slices, of single `f64` and `c64`.
//!
//! `f32` results are within 2.5 ulp, most of them correctly rounded, and the same bits at every level of the
//! instruction set; infinities, NaN, signed zeros and subnormals as in C. `f64` goes through a port of musl's functions,
//! one number at a time; `c64` is computed in `f64` and rounded.
//!
//! Numbers a second on one core of an Emerald Rapids at 2.9 GHz (10^9, AVX-512 / AVX2, in the first-level cache, the
//! other core busy): exp 4.5 / 1.8, sigmoid 3.0 / 1.5, tanh 2.7 / 2.3, erf 2.0 / 1.4, log 1.7 / 0.7, sin 1.4 / 0.9, pow
//! 0.6 / 0.3; memory feeds 2 a core. Measure with `lapis-bench --only exp,tanh,erf` (out of memory, all cores).
//!
//! Must not know: graphs, shapes, strides.

mod complex;
mod double;
mod erf;
mod exp;
mod log;
#[cfg(test)]
mod tests;
mod trig;

pub use complex::{binary_c64, unary_c64};
pub use double::{binary_f64, unary_f64};
pub(crate) use exp::rounded;
pub(crate) use log::{INVERSE as LOG_INVERSE, LOG as LOG_TABLE, Split as LogSplit, split as log_split};

use crate::isa::Isa;
use crate::simd::{self, Ahead, Kernel, Map1, Map2, Simd};

/// Functions of vectors, to be used inside kernels.
pub mod vec {
    pub use super::erf::erf;
    pub use super::exp::{cosh, exp, exp_negative, exp2, expm1, sigmoid, sinh, tanh};
    pub use super::log::{acosh, asinh, atanh, log, log1p, log2, log10, logaddexp, pow};
    pub use super::trig::{acos, asin, atan, atan2, cos, sin, tan};
    pub use crate::random::erfinv;
    use crate::simd::{Float, Simd};

    /// The square root, correctly rounded.
    #[inline(always)]
    pub fn sqrt<S: Simd>(_: S, x: S::F32) -> S::F32 {
        x.sqrt()
    }
    /// 1/√x, at most 1.5 ulp off.
    #[inline(always)]
    pub fn rsqrt<S: Simd>(s: S, x: S::F32) -> S::F32 {
        s.f32(1.0) / x.sqrt()
    }
    /// 1/x, correctly rounded.
    #[inline(always)]
    pub fn reciprocal<S: Simd>(s: S, x: S::F32) -> S::F32 {
        s.f32(1.0) / x
    }
}

/// An expression in `f64` on both halves of the named `f32` vectors, rounded once. The text is written out twice: a
/// closure might not be inlined into the function compiled for the level.
macro_rules! in_f64 {
    ($s:ident, |$($x:ident),+| $body:expr) => {{
        $(let $x = $s.widen($x);)+
        $s.narrow([{ $(let $x = $x[0];)+ $body }, { $(let $x = $x[1];)+ $body }])
    }};
}
use in_f64;

/// A use of some unary function, compiled for each.
trait Use1 {
    fn run<F: Map1>(self, f: F);
}

/// A use of some binary function, compiled for each.
trait Use2 {
    fn run<F: Map2>(self, f: F);
}

macro_rules! functions {
    ($doc:literal $enum:ident $module:ident $map:ident $use:ident: $($what:literal $variant:ident $f:path;)*) => {
        #[doc = $doc]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $enum {
            $(#[doc = $what] $variant,)*
        }

        impl $enum {
            /// Every one.
            pub const ALL: &[$enum] = &[$($enum::$variant),*];

            fn apply(self, to: impl $use) {
                match self {
                    $($enum::$variant => to.run($module::$variant),)*
                }
            }
        }

        mod $module {
            use super::*;
            $(
                #[derive(Clone, Copy)]
                pub(super) struct $variant;
                functions!(@ $map $variant $f);
            )*
        }
    };
    (@ Map1 $variant:ident $f:path) => {
        impl Map1 for $variant {
            #[inline(always)]
            fn call<S: Simd>(self, s: S, x: S::F32) -> S::F32 {
                $f(s, x)
            }
        }
    };
    (@ Map2 $variant:ident $f:path) => {
        impl Map2 for $variant {
            #[inline(always)]
            fn call<S: Simd>(self, s: S, x: S::F32, y: S::F32) -> S::F32 {
                $f(s, x, y)
            }
        }
    };
}

functions! { "Functions of one number." Unary unary Map1 Use1:
    "e^x." Exp vec::exp;
    "2^x." Exp2 vec::exp2;
    "e^x - 1." Expm1 vec::expm1;
    "ln x." Log vec::log;
    "log2 x." Log2 vec::log2;
    "log10 x." Log10 vec::log10;
    "ln(1 + x)." Log1p vec::log1p;
    "Sine." Sin vec::sin;
    "Cosine." Cos vec::cos;
    "Tangent." Tan vec::tan;
    "Inverse sine." Asin vec::asin;
    "Inverse cosine." Acos vec::acos;
    "Inverse tangent." Atan vec::atan;
    "Hyperbolic sine." Sinh vec::sinh;
    "Hyperbolic cosine." Cosh vec::cosh;
    "Hyperbolic tangent." Tanh vec::tanh;
    "Inverse hyperbolic sine." Asinh vec::asinh;
    "Inverse hyperbolic cosine." Acosh vec::acosh;
    "Inverse hyperbolic tangent." Atanh vec::atanh;
    "Square root." Sqrt vec::sqrt;
    "1/√x." Rsqrt vec::rsqrt;
    "1/x." Reciprocal vec::reciprocal;
    "Error function." Erf vec::erf;
    "Inverse error function." Erfinv vec::erfinv;
    "1/(1 + e^-x)." Sigmoid vec::sigmoid;
    "The logarithm inside the random generator." RandomLog crate::random::log;
    "The exponential inside the random generator." RandomExp crate::random::exp;
    "The error function inside the random generator." RandomErf crate::random::erf;
}

functions! { "Functions of two numbers." Binary binary Map2 Use2:
    "x^y." Pow vec::pow;
    "The angle of the point (y, x)." Atan2 vec::atan2;
    "ln(e^x + e^y)." LogAddExp vec::logaddexp;
}

// Arguments travel by reference: a copy would be read in wider pieces than it was written in, and such a read waits until
// everything written before it has reached the cache, streaming stores included.

struct Args1<'a>(Isa, *const f32, *mut f32, usize, &'a Ahead<'a>);

impl Use1 for &Args1<'_> {
    fn run<F: Map1>(self, f: F) {
        struct Call<'a, F>(F, &'a Args1<'a>);
        impl<F: Map1> Kernel for Call<'_, F> {
            type Out = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let Call(f, &Args1(_, x, out, n, ahead)) = self;
                // SAFETY: vouched for by the caller of `unary_f32`.
                unsafe { simd::map1_raw(s, f, x, out, n, ahead) }
            }
        }
        simd::dispatch_with(self.0, Call(f, self));
    }
}

struct Args2(Isa, *const f32, *const f32, *mut f32, usize);

impl Use2 for &Args2 {
    fn run<F: Map2>(self, f: F) {
        struct Call<'a, F>(F, &'a Args2);
        impl<F: Map2> Kernel for Call<'_, F> {
            type Out = ();
            #[inline(always)]
            fn run<S: Simd>(self, s: S) {
                let Call(f, &Args2(_, x, y, out, n)) = self;
                // SAFETY: vouched for by the caller of `binary_f32`.
                unsafe { simd::map2_raw(s, f, x, y, out, n) }
            }
        }
        simd::dispatch_with(self.0, Call(f, self));
    }
}

/// `out[i] = f(x[i])` for `n` numbers, on the calling thread. `out` may be `x`, but not overlap it otherwise. What is
/// `ahead` is fetched meanwhile.
///
/// # Safety
/// `n` elements can be read from `x` on and written from `out` on.
pub unsafe fn unary_f32(isa: Isa, f: Unary, x: *const f32, out: *mut f32, n: usize, ahead: &Ahead<'_>) {
    f.apply(&Args1(isa, x, out, n, ahead));
}

/// `out[i] = f(x[i], y[i])` for `n` numbers, on the calling thread. `out` may be `x` or `y`, but not overlap them
/// otherwise.
///
/// # Safety
/// `n` elements can be read from `x` and `y` on and written from `out` on.
pub unsafe fn binary_f32(isa: Isa, f: Binary, x: *const f32, y: *const f32, out: *mut f32, n: usize) {
    f.apply(&Args2(isa, x, y, out, n));
}

/// [`unary_f32`] on slices.
///
/// # Panics
/// If the lengths differ.
pub fn unary_slice(isa: Isa, f: Unary, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    // SAFETY: both slices hold that many elements.
    unsafe { unary_f32(isa, f, x.as_ptr(), out.as_mut_ptr(), out.len(), &Ahead::NONE) }
}

/// [`binary_f32`] on slices.
///
/// # Panics
/// If the lengths differ.
pub fn binary_slice(isa: Isa, f: Binary, x: &[f32], y: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && y.len() == out.len());
    // SAFETY: all slices hold that many elements.
    unsafe { binary_f32(isa, f, x.as_ptr(), y.as_ptr(), out.as_mut_ptr(), out.len()) }
}
