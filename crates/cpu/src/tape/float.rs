//! Loops for f32 and f64.

use super::int::compare;
use super::step::{Args, map1, map2};
use crate::math::{self, Binary, Unary};
use crate::simd::{Ahead, Simd};
use lapis_core::ops::Ew;

/// The larger; NaN when either is.
macro_rules! larger {
    ($x:ident, $y:ident) => {
        if $x > $y || $x.is_nan() { $x } else { $y }
    };
}
macro_rules! smaller {
    ($x:ident, $y:ident) => {
        if $x < $y || $x.is_nan() { $x } else { $y }
    };
}

/// What f32 and f64 share, written once: everything the compiler vectorises by itself.
macro_rules! common {
    ($t:ident, $op:ident, $n:ident, $a:ident, $b:ident, $out:ident, $($other:tt)*) => {
        match $op {
            Ew::Abs => map1($n, $a, $out, |x: $t| x.abs()),
            Ew::Negative => map1($n, $a, $out, |x: $t| -x),
            Ew::Sign => map1($n, $a, $out, |x: $t| {
                if x.is_nan() { x } else { f32::from(i8::from(x > 0.0) - i8::from(x < 0.0)) as $t }
            }),
            Ew::Square => map1($n, $a, $out, |x: $t| x * x),
            Ew::Conjugate | Ew::Real => map1($n, $a, $out, |x: $t| x),
            Ew::Imag => map1($n, $a, $out, |_: $t| 0 as $t),
            Ew::Sqrt => map1($n, $a, $out, |x: $t| x.sqrt()),
            Ew::Reciprocal => map1($n, $a, $out, |x: $t| 1.0 / x),
            Ew::Floor => map1($n, $a, $out, |x: $t| x.floor()),
            Ew::Ceil => map1($n, $a, $out, |x: $t| x.ceil()),
            Ew::Trunc => map1($n, $a, $out, |x: $t| x.trunc()),
            Ew::RoundEven => map1($n, $a, $out, |x: $t| x.round_ties_even()),
            Ew::IsNan => map1($n, $a, $out, |x: $t| u8::from(x.is_nan())),
            Ew::IsInf => map1($n, $a, $out, |x: $t| u8::from(x.is_infinite())),
            Ew::IsFinite => map1($n, $a, $out, |x: $t| u8::from(x.is_finite())),
            Ew::IsPosInf => map1($n, $a, $out, |x: $t| u8::from(x == $t::INFINITY)),
            Ew::IsNegInf => map1($n, $a, $out, |x: $t| u8::from(x == $t::NEG_INFINITY)),
            Ew::LogicalNot => map1($n, $a, $out, |x: $t| u8::from(x == 0.0)),
            Ew::Add => map2($n, $a, $b, $out, |x: $t, y: $t| x + y),
            Ew::Subtract => map2($n, $a, $b, $out, |x: $t, y: $t| x - y),
            Ew::Multiply => map2($n, $a, $b, $out, |x: $t, y: $t| x * y),
            Ew::Divide => map2($n, $a, $b, $out, |x: $t, y: $t| x / y),
            Ew::FloorDivide => map2($n, $a, $b, $out, |x: $t, y: $t| (x / y).floor()),
            Ew::Remainder => map2($n, $a, $b, $out, |x: $t, y: $t| {
                let r = x % y;
                if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
            }),
            Ew::Maximum => map2($n, $a, $b, $out, |x: $t, y: $t| larger!(x, y)),
            Ew::Minimum => map2($n, $a, $b, $out, |x: $t, y: $t| smaller!(x, y)),
            $($other)*
        }
    };
}

/// f32 instructions.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn f32_step<S: Simd>(_: S, op: Ew, n: usize, args: Args, out: *mut u8) {
    let [a, b, _] = args.map(|p| p.cast::<f32>());
    // SAFETY: passed on from the caller.
    unsafe {
        common!(f32, op, n, a, b, out, _ => match (unary(op), binary(op)) {
            (Some(f), _) => math::unary_f32(S::ISA, f, a, out.cast(), n, &Ahead::NONE),
            (_, Some(f)) => math::binary_f32(S::ISA, f, a, b, out.cast(), n),
            _ => compare(op, n, a, b, out),
        })
    }
}

/// f64 instructions.
///
/// # Safety
/// As `step::step`.
#[inline(always)]
pub(super) unsafe fn f64_step(op: Ew, n: usize, args: Args, out: *mut u8) {
    let [a, b, _] = args.map(|p| p.cast::<f64>());
    // SAFETY: passed on from the caller.
    unsafe {
        common!(f64, op, n, a, b, out, _ => match (unary(op), binary(op)) {
            (Some(f), _) => map1(n, a, out, |x: f64| math::unary_f64(f, x)),
            (_, Some(f)) => map2(n, a, b, out, |x: f64, y: f64| math::binary_f64(f, x, y)),
            _ => compare(op, n, a, b, out),
        })
    }
}

/// Rows that are functions of `math`.
pub(super) fn unary(op: Ew) -> Option<Unary> {
    Some(match op {
        Ew::Exp => Unary::Exp,
        Ew::Expm1 => Unary::Expm1,
        Ew::Log => Unary::Log,
        Ew::Log2 => Unary::Log2,
        Ew::Log10 => Unary::Log10,
        Ew::Log1p => Unary::Log1p,
        Ew::Sin => Unary::Sin,
        Ew::Cos => Unary::Cos,
        Ew::Tan => Unary::Tan,
        Ew::Sinh => Unary::Sinh,
        Ew::Cosh => Unary::Cosh,
        Ew::Tanh => Unary::Tanh,
        Ew::ArcSin => Unary::Asin,
        Ew::ArcCos => Unary::Acos,
        Ew::ArcTan => Unary::Atan,
        Ew::ArcSinh => Unary::Asinh,
        Ew::ArcCosh => Unary::Acosh,
        Ew::ArcTanh => Unary::Atanh,
        Ew::Sqrt => Unary::Sqrt,
        Ew::Rsqrt => Unary::Rsqrt,
        Ew::Reciprocal => Unary::Reciprocal,
        Ew::Erf => Unary::Erf,
        Ew::ErfInv | Ew::RandomErfInv => Unary::Erfinv,
        Ew::Sigmoid => Unary::Sigmoid,
        Ew::RandomLog => Unary::RandomLog,
        Ew::RandomExp => Unary::RandomExp,
        Ew::RandomErf => Unary::RandomErf,
        _ => return None,
    })
}

/// Rows that are functions of `math`.
pub(super) fn binary(op: Ew) -> Option<Binary> {
    Some(match op {
        Ew::Power => Binary::Pow,
        Ew::ArcTan2 => Binary::Atan2,
        Ew::LogAddExp => Binary::LogAddExp,
        _ => return None,
    })
}
