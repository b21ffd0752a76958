//! Loops for f32 and f64.

use super::int::compare;
use super::step::{Args, map1, map2};
use crate::simd::Simd;
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
pub(super) unsafe fn f32_step<S: Simd>(_s: S, op: Ew, n: usize, args: Args, out: *mut u8) {
    let [a, b, _] = args.map(|p| p.cast::<f32>());
    // SAFETY: passed on from the caller.
    unsafe {
        common!(f32, op, n, a, b, out, _ => match unary_f64(op) {
            Some(f) => map1(n, a, out, |x: f32| f(f64::from(x)) as f32),
            None => match binary_f64(op) {
                Some(f) => map2(n, a, b, out, |x: f32, y: f32| f(f64::from(x), f64::from(y)) as f32),
                None => compare(op, n, a, b, out),
            }
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
        common!(f64, op, n, a, b, out, _ => match unary_f64(op) {
            Some(f) => map1(n, a, out, f),
            None => match binary_f64(op) {
                Some(f) => map2(n, a, b, out, f),
                None => compare(op, n, a, b, out),
            }
        })
    }
}

/// Functions of one double.
fn unary_f64(op: Ew) -> Option<fn(f64) -> f64> {
    Some(match op {
        Ew::Exp => f64::exp,
        Ew::Expm1 => f64::exp_m1,
        Ew::Log => f64::ln,
        Ew::Log2 => f64::log2,
        Ew::Log10 => f64::log10,
        Ew::Log1p => f64::ln_1p,
        Ew::Sin => f64::sin,
        Ew::Cos => f64::cos,
        Ew::Tan => f64::tan,
        Ew::Sinh => f64::sinh,
        Ew::Cosh => f64::cosh,
        Ew::Tanh => f64::tanh,
        Ew::ArcSin => f64::asin,
        Ew::ArcCos => f64::acos,
        Ew::ArcTan => f64::atan,
        Ew::ArcSinh => f64::asinh,
        Ew::ArcCosh => f64::acosh,
        Ew::ArcTanh => f64::atanh,
        Ew::Rsqrt => |x| 1.0 / x.sqrt(),
        Ew::Sigmoid => |x| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) },
        _ => return None,
    })
}

/// Functions of two doubles.
fn binary_f64(op: Ew) -> Option<fn(f64, f64) -> f64> {
    Some(match op {
        Ew::Power => f64::powf,
        Ew::ArcTan2 => f64::atan2,
        Ew::LogAddExp => |x, y| {
            if x.is_nan() || y.is_nan() {
                return f64::NAN;
            }
            let (hi, lo) = if x > y { (x, y) } else { (y, x) };
            if hi.is_infinite() || lo == f64::NEG_INFINITY { hi } else { hi + (lo - hi).exp().ln_1p() }
        },
        _ => return None,
    })
}
