//! complex64 loops: computed in double precision per element, rounded once.

use super::float::{binary, unary};
use super::step::{map1, map2};
use crate::math::{binary_c64, unary_c64};
use lapis_core::dtype::c64;
use lapis_core::ops::Ew;
use num_complex::Complex;
use std::cmp::Ordering;

type C = Complex<f64>;

#[inline(always)]
fn up(z: c64) -> C {
    C::new(f64::from(z.re), f64::from(z.im))
}

#[inline(always)]
fn down(z: C) -> c64 {
    c64::new(z.re as f32, z.im as f32)
}

/// By real part, then imaginary part; unordered with NaN.
fn order(a: c64, b: c64) -> Option<Ordering> {
    match a.re.partial_cmp(&b.re)? {
        Ordering::Equal => a.im.partial_cmp(&b.im),
        other => Some(other),
    }
}

fn is_nan(z: c64) -> bool {
    z.re.is_nan() || z.im.is_nan()
}

fn pick(a: c64, b: c64, keep: Ordering) -> c64 {
    if is_nan(a) {
        a
    } else if is_nan(b) || order(a, b) != Some(keep) {
        b
    } else {
        a
    }
}

fn sign(z: c64) -> c64 {
    let z = up(z);
    let r = z.norm();
    if r == 0.0 { c64::new(0.0, 0.0) } else { down(z / r) }
}

/// Complex instructions.
///
/// # Safety
/// As `step::step`.
#[inline(never)]
pub(super) unsafe fn step(op: Ew, n: usize, [a, b, _]: [*const c64; 3], out: *mut u8) {
    let nonzero = |z: c64| z.re != 0.0 || z.im != 0.0;
    // SAFETY: passed on from the caller.
    unsafe {
        match op {
            Ew::Abs => map1(n, a, out, |z| up(z).norm() as f32),
            Ew::Real => map1(n, a, out, |z| z.re),
            Ew::Imag => map1(n, a, out, |z| z.im),
            Ew::Negative => map1(n, a, out, |z| -z),
            Ew::Conjugate => map1(n, a, out, |z| z.conj()),
            Ew::Sign => map1(n, a, out, sign),
            Ew::Square => map1(n, a, out, |z| down(up(z) * up(z))),
            Ew::RoundEven => map1(n, a, out, |z| c64::new(z.re.round_ties_even(), z.im.round_ties_even())),
            Ew::IsNan => map1(n, a, out, |z| u8::from(is_nan(z))),
            Ew::IsInf => map1(n, a, out, |z| u8::from(z.re.is_infinite() || z.im.is_infinite())),
            Ew::IsFinite => map1(n, a, out, |z| u8::from(z.re.is_finite() && z.im.is_finite())),
            Ew::IsPosInf => map1(n, a, out, |z| u8::from(z.re == f32::INFINITY)),
            Ew::IsNegInf => map1(n, a, out, |z| u8::from(z.re == f32::NEG_INFINITY)),
            Ew::LogicalNot => map1(n, a, out, |z| u8::from(!nonzero(z))),
            Ew::Add => map2(n, a, b, out, |x, y| x + y),
            Ew::Subtract => map2(n, a, b, out, |x, y| x - y),
            Ew::Multiply => map2(n, a, b, out, |x, y| down(up(x) * up(y))),
            Ew::Divide => map2(n, a, b, out, |x, y| down(up(x) / up(y))),
            Ew::Maximum => map2(n, a, b, out, |x, y| pick(x, y, Ordering::Greater)),
            Ew::Minimum => map2(n, a, b, out, |x, y| pick(x, y, Ordering::Less)),
            Ew::Equal => map2(n, a, b, out, |x, y| u8::from(x == y)),
            Ew::NotEqual => map2(n, a, b, out, |x, y| u8::from(x != y)),
            Ew::Less => map2(n, a, b, out, |x, y| u8::from(order(x, y) == Some(Ordering::Less))),
            Ew::LessEqual => map2(n, a, b, out, |x, y| u8::from(order(x, y).is_some_and(Ordering::is_le))),
            Ew::Greater => map2(n, a, b, out, |x, y| u8::from(order(x, y) == Some(Ordering::Greater))),
            Ew::GreaterEqual => map2(n, a, b, out, |x, y| u8::from(order(x, y).is_some_and(Ordering::is_ge))),
            Ew::LogicalAnd => map2(n, a, b, out, |x, y| u8::from(nonzero(x) & nonzero(y))),
            Ew::LogicalOr => map2(n, a, b, out, |x, y| u8::from(nonzero(x) | nonzero(y))),
            Ew::LogicalXor => map2(n, a, b, out, |x, y| u8::from(nonzero(x) ^ nonzero(y))),
            _ => match (unary(op), binary(op)) {
                (Some(f), _) => map1(n, a, out, |z| unary_c64(f, z)),
                (_, Some(f)) => map2(n, a, b, out, |x, y| binary_c64(f, x, y)),
                _ => unreachable!("{op:?} has no loop for complex64"),
            },
        }
    }
}
