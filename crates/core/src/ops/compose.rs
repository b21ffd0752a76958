//! Elementwise functions made of rows of the table.

use crate::array::Array;
use crate::dtype::finfo;
use crate::error::{Error, Result};
use crate::ops::{
    Operand, astype, equal, floor_divide, isfinite, isinf, isnan, isneginf, isposinf, less_equal, logical_and,
    logical_or, maximum, minimum, multiply, operand::Arg, remainder, select, subtract,
};
use crate::scalar::Scalar;
use crate::shape;

/// Quotient and remainder of a floored division (`mx.divmod`).
///
/// # Errors
/// As [`floor_divide`] and [`remainder`].
pub fn divmod(a: impl Operand, b: impl Operand) -> Result<[Array; 2]> {
    Ok([floor_divide(&a, &b)?, remainder(&a, &b)?])
}

/// `a` held between `low` and `high`, either of which may be absent (`mx.clip`). NaN stays.
///
/// # Errors
/// Shapes that do not broadcast; both bounds absent.
pub fn clip(a: &Array, low: Option<&dyn Operand>, high: Option<&dyn Operand>) -> Result<Array> {
    match (low, high) {
        (None, None) => Err(Error::value("[clip] needs a lower or an upper bound")),
        (Some(low), None) => maximum(a, low),
        (None, Some(high)) => minimum(a, high),
        (Some(low), Some(high)) => minimum(maximum(a, low)?, high),
    }
}

/// Radians to degrees.
///
/// # Errors
/// None today; `Result` like every op.
pub fn degrees(a: &Array) -> Result<Array> {
    multiply(astype(a, a.dtype().to_inexact())?, 180.0 / std::f64::consts::PI)
}

/// Degrees to radians.
///
/// # Errors
/// None today; `Result` like every op.
pub fn radians(a: &Array) -> Result<Array> {
    multiply(astype(a, a.dtype().to_inexact())?, std::f64::consts::PI / 180.0)
}

/// `a` itself: unary plus.
///
/// # Errors
/// None today; `Result` like every op.
pub fn positive(a: &Array) -> Result<Array> {
    Ok(a.clone())
}

/// Replaces NaN by `nan`, infinities by `posinf` and `neginf`, by default the largest and lowest finite value
/// (`mx.nan_to_num`). Parts of complex numbers are replaced one by one.
///
/// # Errors
/// None today; `Result` like every op.
pub fn nan_to_num(a: &Array, nan: f64, posinf: Option<f64>, neginf: Option<f64>) -> Result<Array> {
    let dtype = a.dtype();
    if !dtype.is_inexact() {
        return Ok(a.clone());
    }
    let limits = finfo(dtype)?;
    let (high, low) = (posinf.unwrap_or(limits.max), neginf.unwrap_or(limits.min));
    let replace = |a: &Array| -> Result<Array> {
        let a = select(&isnan(a)?, nan, a)?;
        let a = select(&isposinf(&a)?, high, &a)?;
        select(&isneginf(&a)?, low, &a)
    };
    if dtype.is_complex() {
        let (re, im) = (replace(&super::real(a)?)?, replace(&super::imag(a)?)?);
        let i = Scalar::Complex(crate::dtype::c64::new(0.0, 1.0));
        return super::add(astype(&re, dtype)?, multiply(astype(&im, dtype)?, i)?);
    }
    replace(a)
}

/// `|a - b| <= atol + rtol * |b|`, equal infinities included (`mx.isclose`).
///
/// # Errors
/// Shapes that do not broadcast.
pub fn isclose(a: impl Operand, b: impl Operand, rtol: f64, atol: f64, equal_nan: bool) -> Result<Array> {
    let (a, b) = pair("isclose", a.arg(), b.arg())?;
    let bound = super::add(multiply(super::abs(&b)?, rtol)?, atol)?;
    let near = less_equal(super::abs(&subtract(&a, &b)?)?, bound)?;
    // Infinities are close only when they are the same.
    let infinite = logical_or(isinf(&a)?, isinf(&b)?)?;
    let finite_near = logical_and(near, super::logical_not(&infinite)?)?;
    let close = logical_or(finite_near, equal(&a, &b)?)?;
    if !equal_nan {
        return Ok(close);
    }
    logical_or(close, logical_and(isnan(&a)?, isnan(&b)?)?)
}

/// Whether all pairs are close, as a bool array of one element (`mx.allclose`).
///
/// # Errors
/// Shapes that do not broadcast.
pub fn allclose(a: impl Operand, b: impl Operand, rtol: f64, atol: f64, equal_nan: bool) -> Result<Array> {
    super::all(&isclose(a, b, rtol, atol, equal_nan)?, (), false)
}

/// Whether two arrays have one shape and equal values, as a bool array of one element (`mx.array_equal`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn array_equal(a: &Array, b: &Array, equal_nan: bool) -> Result<Array> {
    if a.shape() != b.shape() {
        return Ok(crate::array(false));
    }
    let mut same = equal(a, b)?;
    if equal_nan {
        same = logical_or(same, logical_and(isnan(a)?, isnan(b)?)?)?;
    }
    super::all(&same, (), false)
}

fn pair(op: &str, a: Arg<'_>, b: Arg<'_>) -> Result<(Array, Array)> {
    let dtype = Arg::promote(op, a, b)?.to_inexact();
    let shape = shape::broadcast(op, a.shape(), b.shape())?;
    Ok((a.materialize(dtype, &shape)?, b.materialize(dtype, &shape)?))
}

impl Array {
    /// Whether every element is finite, evaluated now.
    ///
    /// # Errors
    /// Faults found while computing.
    pub fn all_finite(&self) -> Result<bool> {
        super::all(&isfinite(self)?, (), false)?.item()
    }

    /// `self` held between two bounds; see [`clip`].
    #[track_caller]
    pub fn clip(&self, low: impl Operand, high: impl Operand) -> Array {
        crate::or_panic(clip(self, Some(&low), Some(&high)))
    }
}
