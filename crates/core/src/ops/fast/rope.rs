//! Rotary position embedding.

use super::{check_floating, check_shape, wide};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{self, Rule, add, astype, broadcast_to, expect, multiply, reshape_to, subtract};
use crate::scalar::Real;
use crate::shape::{Shape, show};
use crate::transforms::decompose::{fold, map_formula, pull, unfold};
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Rotates pairs of features by an angle that grows with the position. Inputs: x, offsets (int64, one or one a batch
/// row), then the frequencies (float32) where given.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        let op = self.name();
        expect::count(op, inputs, 2 + usize::from(self.base.is_none()))?;
        let (x, offset) = (&inputs[0], &inputs[1]);
        check_floating(op, "x", x)?;
        let s = show(x.shape());
        if x.ndim() < 3 {
            return Err(Error::shape(format!("[{op}] x of shape {s}; at least three axes (B, ..., T, D) are needed")));
        }
        let (dims, features) = (self.dims, x.shape()[x.ndim() - 1]);
        if dims == 0 || !dims.is_multiple_of(2) || dims > features {
            return Err(Error::value(format!(
                "[{op}] dims {dims} is not even and between 2 and the {features} features of {s}"
            )));
        }
        if offset.dtype() != Dtype::Int64 || (offset.size() != 1 && offset.shape() != [x.shape()[0]]) {
            let (o, d) = (show(offset.shape()), offset.dtype());
            return Err(Error::value(format!(
                "[{op}] offset ({d} of shape {o}) is not one integer or one a batch row of {s}"
            )));
        }
        if let Some(freqs) = inputs.get(2) {
            expect::dtype(op, freqs, freqs.dtype() == Dtype::Float32)?;
            check_shape(op, "freqs", freqs, &[dims / 2])?;
        }
        Ok(smallvec![Aval::new(x.shape(), x.dtype())])
    }
}

/// Features `start..stop`.
fn features(x: &Array, start: usize, stop: usize) -> Result<Array> {
    let mut ranges = vec![(None, None, 1); x.ndim()];
    ranges[x.ndim() - 1] = (Some(start as i64), Some(stop as i64), 1);
    ops::slice(x, &ranges)
}

impl Rope {
    /// Cosines and sines, (offsets, 1, ..., T, dims/2): made in f64, rounded to the dtype of x, wide.
    fn angles(&self, inputs: &[Array]) -> Result<[Array; 2]> {
        let (x, half) = (&inputs[0], self.dims / 2);
        let (nd, dtype) = (x.ndim(), x.dtype());
        let frequencies = match (self.base, inputs.get(2)) {
            (Some(base), _) => {
                let power = |j: usize| base.0.powf(-2.0 * j as f64 / self.dims as f64);
                Array::from_vec((0..half).map(power).collect::<Vec<f64>>(), &[half])
            }
            (None, Some(given)) => ops::reciprocal(&astype(given, Dtype::Float64)?)?,
            (None, None) => return Err(Error::value("[rope] neither a base nor frequencies")),
        };
        let mut shape: Shape = Shape::from_elem(1, nd);
        shape[0] = inputs[1].size();
        let steps = ops::arange(0, x.shape()[nd - 2], 1, Some(Dtype::Int64))?;
        let steps = reshape_to(&steps, smallvec![x.shape()[nd - 2], 1])?;
        let positions = astype(&add(&reshape_to(&inputs[1], shape)?, &steps)?, Dtype::Float64)?;
        let angles = multiply(&multiply(&positions, self.scale.0)?, &frequencies)?;
        let round = |a: Array| astype(&astype(&astype(&a, wide(dtype))?, dtype)?, wide(dtype));
        Ok([round(ops::cos(&angles)?)?, round(ops::sin(&angles)?)?])
    }
}

impl Decompose for Rope {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let [cos, sin] = self.angles(inputs)?;
        let (x, half) = (&inputs[0], self.dims / 2);
        let turning = astype(&features(x, 0, self.dims)?, cos.dtype())?;
        // Pairs lie along an axis of their own: the last one, or the one before.
        let (axis, pairs) = if self.traditional { (-1, [half, 2]) } else { (-2, [2, half]) };
        let pairs = ops::split(&ops::unflatten(&turning, -1, &pairs)?, 2, axis)?;
        let (a, b) = (ops::squeeze(&pairs[0], axis)?, ops::squeeze(&pairs[1], axis)?);
        let turned =
            [subtract(&multiply(&a, &cos)?, &multiply(&b, &sin)?)?, add(&multiply(&a, &sin)?, &multiply(&b, &cos)?)?];
        let turned = ops::stack(&turned, axis)?;
        let turned = astype(&reshape_to(&turned, turning.shape().into())?, x.dtype())?;
        let width = x.shape()[x.ndim() - 1];
        if self.dims == width {
            return Ok(vec![turned]);
        }
        Ok(vec![ops::concatenate(&[turned, features(x, self.dims, width)?], -1)?])
    }
}

impl Transform for Rope {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let mut grads = at.none();
        if at.wanted.get(2) == Some(&true) {
            let only = [false, false, true];
            grads = pull(&Site { wanted: &only, ..*at }, |inputs| self.decompose(inputs))?;
        }
        if at.wanted[0] {
            // The way back is the rotation by the negated angles.
            let back = Rope { scale: Real(-self.scale.0), ..self.clone() };
            let rest = at.inputs[1..].iter().cloned();
            grads[0] = Some(Array::apply1(back, std::iter::once(at.cotangent(0)?).chain(rest).collect())?);
        }
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (x, offsets) = (&lanes[0], &lanes[1]);
        if lanes.get(2).is_some_and(|l| l.mapped) {
            return map_formula(self, lanes, size);
        }
        let frequencies = lanes.get(2).map(|l| l.array.clone());
        let apply = |x: Array, offsets: Array| {
            Array::apply1(self.clone(), [x, offsets].into_iter().chain(frequencies).collect())
        };
        if !offsets.mapped && offsets.array.size() == 1 {
            return Ok(vec![apply(x.array.clone(), offsets.array.clone())?]);
        }
        let (batch, each) = (x.shape()[0], offsets.shape().iter().product());
        let offsets = Lane { array: offsets.array.clone(), mapped: offsets.mapped }.spread(size)?;
        let offsets = broadcast_to(&reshape_to(&offsets, smallvec![size, each])?, &[size, batch])?;
        let out = apply(fold(x, size, 0)?, reshape_to(&offsets, smallvec![size * batch])?)?;
        Ok(vec![unfold(&out, size, 0)?])
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
    let offset = match offset.into() {
        Offset::Number(n) => Array::from_vec(vec![n], &[]),
        Offset::Array(a) if a.dtype().is_integer() => astype(a, Dtype::Int64)?,
        Offset::Array(a) => a.clone(),
    };
    let mut inputs: Inputs = smallvec![x.clone(), offset];
    let base = match frequencies {
        Frequencies::Base(base) => Some(Real(base)),
        Frequencies::Given(freqs) => {
            check_floating(op, "freqs", freqs)?;
            inputs.push(astype(freqs, Dtype::Float32)?);
            None
        }
    };
    Array::apply1(Rope { dims, traditional, base, scale: Real(scale) }, inputs)
}
