//! Rotary position embedding.

use super::{check_floating, check_shape};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Rule, astype};
use crate::scalar::Real;
use crate::shape::show;
use smallvec::smallvec;

/// Rotates pairs of features by an angle that grows with the position. Inputs: x, offsets (int64, one or one a batch
/// row), then the frequencies (float32) where given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rope {
    /// Features that rotate; the rest passes.
    pub dims: usize,
    /// Pairs (2j, 2j+1) in place of (j, j + dims/2).
    pub traditional: bool,
    /// Base of the angles, when no frequencies are given.
    pub base: Option<Real>,
    /// Factor of the position.
    pub scale: Real,
}

impl Rule for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

/// Where angles come from: pair j turns by `position * base^(-2j/dims)` or by `position / freqs[j]`.
#[derive(Clone, Copy, Debug)]
pub enum Frequencies<'a> {
    /// A base, usually 10000.
    Base(f64),
    /// One number a pair: shape `(dims/2,)`.
    Given(&'a Array),
}

/// The position of the first row.
#[derive(Clone, Copy, Debug)]
pub enum Offset<'a> {
    /// For every batch row.
    Number(i64),
    /// Integers: 0-d, or one a batch row.
    Array(&'a Array),
}

impl From<i64> for Offset<'_> {
    fn from(n: i64) -> Self {
        Offset::Number(n)
    }
}
impl From<i32> for Offset<'_> {
    fn from(n: i32) -> Self {
        Offset::Number(n.into())
    }
}
impl<'a> From<&'a Array> for Offset<'a> {
    fn from(a: &'a Array) -> Self {
        Offset::Array(a)
    }
}

/// Rotates the first `dims` features of `x` (B, ..., T, D) by angles `(offset + t) * scale * frequency` (`mx.fast.rope`):
/// (x1, x2) becomes (x1 cos - x2 sin, x1 sin + x2 cos).
///
/// # Errors
/// Fewer than 3 axes; `dims` odd or larger than D; offsets that are not integers or do not fit; frequencies of another
/// shape; a dtype that is not real floating.
pub fn rope<'a>(
    x: &Array,
    dims: usize,
    traditional: bool,
    frequencies: Frequencies<'_>,
    scale: f64,
    offset: impl Into<Offset<'a>>,
) -> Result<Array> {
    let op = "rope";
    check_floating(op, "x", x)?;
    let s = show(x.shape());
    if x.ndim() < 3 {
        return Err(Error::shape(format!("[{op}] x of shape {s}; at least three axes (B, ..., T, D) are needed")));
    }
    let features = x.shape()[x.ndim() - 1];
    if dims == 0 || !dims.is_multiple_of(2) || dims > features {
        return Err(Error::value(format!(
            "[{op}] dims {dims} is not even and between 2 and the {features} features of {s}"
        )));
    }
    let offset = match offset.into() {
        Offset::Number(n) => Array::from_vec(vec![n], &[]),
        Offset::Array(a) if a.dtype().is_integer() && (a.size() == 1 || a.shape() == [x.shape()[0]]) => {
            astype(a, Dtype::Int64)?
        }
        Offset::Array(a) => {
            let o = show(a.shape());
            let d = a.dtype();
            return Err(Error::value(format!(
                "[{op}] offset ({d} of shape {o}) is not one integer or one a batch row of {s}"
            )));
        }
    };
    let mut inputs: Inputs = smallvec![x.clone(), offset];
    let base = match frequencies {
        Frequencies::Base(base) => Some(Real(base)),
        Frequencies::Given(freqs) => {
            check_floating(op, "freqs", freqs)?;
            check_shape(op, "freqs", freqs, &[dims / 2])?;
            inputs.push(astype(freqs, Dtype::Float32)?);
            None
        }
    };
    Array::apply1(Rope { dims, traditional, base, scale: Real(scale) }, inputs)
}
