//! Arrays from nothing: constants, fills and ranges.

use crate::array::Array;
use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Op, Operand, Rule, expect, operand::Arg};
use crate::scalar::{Real, Scalar};
use crate::shape::{self, Shape};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// Data that exists already; never evaluated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Constant;

impl Rule for Constant {
    fn name(&self) -> &'static str {
        "array"
    }
    fn infer(&self, _: &[Array]) -> Result<Avals> {
        Err(Error::unsupported("[array] a constant has no inference"))
    }
}

/// One number in every place.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Full {
    /// The number, cast to `dtype`.
    pub value: Scalar,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Shape,
}

impl Rule for Full {
    fn name(&self) -> &'static str {
        "full"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count("full", inputs, 0)?;
        Ok(SmallVec::from_buf([Aval::new(self.shape.clone(), self.dtype)]))
    }
}

/// A full array; the shape is known to be valid.
pub(crate) fn full_of(value: Scalar, dtype: Dtype, shape: &[usize]) -> Array {
    let shape: Shape = shape.into();
    let outs = SmallVec::from_buf([Aval::new(shape.clone(), dtype)]);
    Array::inferred(Op::Full(Full { value, dtype, shape }), Inputs::new(), outs)
}

/// An array of `shape` filled with `value` (`mx.full`): a number, or an array that broadcasts. Without a dtype the
/// value's own is used.
///
/// # Errors
/// Overflow of the shape; a shape error when the values do not broadcast.
pub fn full(shape: &[usize], value: impl Operand, dtype: Option<Dtype>) -> Result<Array> {
    shape::elements("full", shape)?;
    match value.arg() {
        Arg::Scalar(s) => Ok(full_of(s, dtype.unwrap_or(s.dtype()), shape)),
        Arg::Array(a) => super::broadcast_to(&super::astype(a, dtype.unwrap_or(a.dtype()))?, shape),
    }
}

/// Zeros of type `T`: `zeros::<f32>(&[2, 3])`.
///
/// # Errors
/// Overflow of the shape.
pub fn zeros<T: Element>(shape: &[usize]) -> Result<Array> {
    full(shape, 0, Some(T::DTYPE))
}

/// Ones of type `T`.
///
/// # Errors
/// Overflow of the shape.
pub fn ones<T: Element>(shape: &[usize]) -> Result<Array> {
    full(shape, 1, Some(T::DTYPE))
}

/// Zeros with the shape of `a` and its dtype, or another one.
///
/// # Errors
/// None for valid arrays.
pub fn zeros_like(a: &Array, dtype: Option<Dtype>) -> Result<Array> {
    full(a.shape(), 0, Some(dtype.unwrap_or(a.dtype())))
}

/// Ones with the shape of `a` and its dtype, or another one.
///
/// # Errors
/// None for valid arrays.
pub fn ones_like(a: &Array, dtype: Option<Dtype>) -> Result<Array> {
    full(a.shape(), 1, Some(dtype.unwrap_or(a.dtype())))
}

/// `start + i * step`, computed in f64 (integers: in 64 bits) and cast.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arange {
    /// First value.
    pub start: Real,
    /// Distance.
    pub step: Real,
    /// Number of values.
    pub len: usize,
    /// Element type.
    pub dtype: Dtype,
}

impl Rule for Arange {
    fn name(&self) -> &'static str {
        "arange"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count("arange", inputs, 0)?;
        shape::elements("arange", &[self.len])?;
        if !(self.start.0.is_finite() && self.step.0.is_finite()) {
            return Err(Error::value(format!("[arange] from {} in steps of {}", self.start.0, self.step.0)));
        }
        Ok(SmallVec::from_buf([Aval::new([self.len].as_slice(), self.dtype)]))
    }
}

/// Evenly spaced numbers from `start` up to, not including, `stop` (`mx.arange`): float32 when a bound is a float,
/// else int32 (int64 when a bound needs it).
///
/// # Errors
/// A value error for a step of 0 or bounds that are not finite.
pub fn arange(
    start: impl Into<Scalar>,
    stop: impl Into<Scalar>,
    step: impl Into<Scalar>,
    dtype: Option<Dtype>,
) -> Result<Array> {
    let (start, stop, step) = (start.into(), stop.into(), step.into());
    let natural = start.dtype().promote(stop.dtype()).promote(step.dtype());
    let natural = if natural == Dtype::Bool { Dtype::Int32 } else { natural };
    let dtype = dtype.unwrap_or(natural);
    let (a, b, s) = (start.as_f64(), stop.as_f64(), step.as_f64());
    if s == 0.0 || !(a.is_finite() && b.is_finite() && s.is_finite()) {
        return Err(Error::value(format!("[arange] cannot count from {a} to {b} in steps of {s}")));
    }
    let len = ((b - a) / s).ceil().max(0.0);
    if len > (isize::MAX / 16) as f64 {
        return Err(Error::overflow(format!("[arange] {len} values from {a} to {b} in steps of {s}")));
    }
    if !dtype.is_inexact() && dtype == Dtype::Bool {
        return Err(Error::dtype("[arange] bool is not a type to count in"));
    }
    Array::apply1(Arange { start: Real(a), step: Real(s), len: len as usize, dtype }, Inputs::new())
}

/// Leaves of the graph: nothing flows into them, and no lane differs.
macro_rules! leaves {
    ($($op:ty),*) => {$(
        impl Transform for $op {
            fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
                Ok(at.none())
            }
            fn vmap(&self, _: &[Lane], _: usize) -> Result<Vec<Array>> {
                Err(Error::unsupported(format!("[{}] has no inputs to map", self.name())))
            }
        }
    )*};
}
leaves!(Constant, Full, Arange);
