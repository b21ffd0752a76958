//! Arrays put together, taken apart and padded.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::scatter::whole;
use crate::ops::view::{Slice, drop_axes, reshape_to};
use crate::ops::{
    Arange, Operand, Rule, astype, expand_dims, expect, maximum, minimum, remainder, slice, subtract, take,
};
use crate::scalar::Real;
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

// ------------------------------------------------------------------ concatenate

/// Arrays one after the other along an axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Concatenate {
    /// The axis.
    pub axis: usize,
}

impl Rule for Concatenate {
    fn name(&self) -> &'static str {
        "concatenate"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::at_least("concatenate", inputs, 1)?;
        expect::alike("concatenate", inputs)?;
        let first = &inputs[0];
        expect::axis("concatenate", self.axis, first.shape())?;
        let mut shape: Shape = first.shape().into();
        shape[self.axis] = 0;
        for a in inputs {
            let mut rest: Shape = a.shape().into();
            let fits = rest.len() == shape.len() && {
                rest[self.axis] = shape[self.axis];
                rest == shape
            };
            if !fits {
                let (s, t) = (show(first.shape()), show(a.shape()));
                let axis = self.axis;
                return Err(Error::shape(format!("[concatenate] shapes {s} and {t} differ outside axis {axis}")));
            }
            shape[self.axis] = shape[self.axis].saturating_add(a.shape()[self.axis]);
        }
        shape::elements("concatenate", &shape)?;
        Ok(smallvec![Aval::new(shape, first.dtype())])
    }
}

/// The arrays in their promoted dtype.
fn promoted(op: &str, arrays: &[Array]) -> Result<SmallVec<[Array; 2]>> {
    let [first, rest @ ..] = arrays else {
        return Err(Error::value(format!("[{op}] needs at least one array")));
    };
    let dtype = rest.iter().fold(first.dtype(), |d, a| d.promote(a.dtype()));
    arrays.iter().map(|a| astype(a, dtype)).collect()
}

/// The arrays one after the other along `axis`, or flattened first without one (`mx.concatenate`); dtypes promote.
///
/// # Errors
/// No arrays; an axis out of range; shapes that differ outside the axis.
pub fn concatenate(arrays: &[Array], axis: impl Into<Option<i32>>) -> Result<Array> {
    let mut arrays = promoted("concatenate", arrays)?;
    let axis = match axis.into() {
        Some(axis) => shape::axis("concatenate", axis, arrays[0].ndim())?,
        None => {
            for a in &mut arrays {
                *a = super::view::reshape_to(a, smallvec![a.size()])?;
            }
            0
        }
    };
    if arrays.len() == 1 {
        return Ok(arrays.remove(0));
    }
    Array::apply1(Concatenate { axis }, arrays)
}

/// Arrays of one shape along a new axis at position `axis` of the result (`mx.stack`); dtypes promote.
///
/// # Errors
/// No arrays; an axis out of range; shapes that differ.
pub fn stack(arrays: &[Array], axis: i32) -> Result<Array> {
    let arrays = promoted("stack", arrays)?;
    let first = &arrays[0];
    if let Some(other) = arrays.iter().find(|a| a.shape() != first.shape()) {
        let (s, t) = (show(first.shape()), show(other.shape()));
        return Err(Error::shape(format!("[stack] shapes {s} and {t} differ")));
    }
    let axis = shape::axis("stack", axis, first.ndim() + 1)? as i32;
    let apart: Vec<Array> = arrays.iter().map(|a| expand_dims(a, axis)).collect::<Result<_>>()?;
    concatenate(&apart, axis)
}

// ------------------------------------------------------------------ split

/// Where to cut an axis: into equal parts, or before given indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sections {
    /// So many parts of the same size.
    Equal(usize),
    /// Before these indices; negative ones count from the end.
    Before(Vec<i64>),
}

impl From<usize> for Sections {
    fn from(n: usize) -> Sections {
        Sections::Equal(n)
    }
}
impl From<i32> for Sections {
    fn from(n: i32) -> Sections {
        Sections::Equal(usize::try_from(n).unwrap_or(0))
    }
}
impl From<&[i64]> for Sections {
    fn from(at: &[i64]) -> Sections {
        Sections::Before(at.to_vec())
    }
}
impl From<Vec<i64>> for Sections {
    fn from(at: Vec<i64>) -> Sections {
        Sections::Before(at)
    }
}
impl<const N: usize> From<[i64; N]> for Sections {
    fn from(at: [i64; N]) -> Sections {
        Sections::Before(at.to_vec())
    }
}

/// Pieces of `a` along `axis` (`mx.split`), as views: equal parts for a number, cuts before the given indices for a
/// list. Pieces may be empty.
///
/// # Errors
/// An axis out of range; a number of parts that does not divide the axis.
pub fn split(a: &Array, sections: impl Into<Sections>, axis: i32) -> Result<Vec<Array>> {
    let axis = shape::axis("split", axis, a.ndim())?;
    let n = a.shape()[axis];
    let cuts: Vec<i64> = match sections.into() {
        Sections::Before(at) => at,
        Sections::Equal(parts) if parts > 0 && n.is_multiple_of(parts) => {
            (1..parts).map(|i| (i * (n / parts)) as i64).collect()
        }
        Sections::Equal(parts) => {
            return Err(Error::value(format!(
                "[split] axis {axis} of size {n} does not split into {parts} equal parts"
            )));
        }
    };
    let piece = |i: usize| {
        let mut ranges = vec![(None, None, 1); axis];
        ranges.push((if i == 0 { None } else { Some(cuts[i - 1]) }, cuts.get(i).copied(), 1));
        slice(a, &ranges)
    };
    (0..=cuts.len()).map(piece).collect()
}

/// The arrays along `axis`, which disappears (`mx.unstack`), as views.
///
/// # Errors
/// An axis out of range.
pub fn unstack(a: &Array, axis: i32) -> Result<Vec<Array>> {
    let axis = shape::axis("unstack", axis, a.ndim())?;
    if a.shape()[axis] == 0 {
        return Ok(Vec::new());
    }
    let pieces = split(a, a.shape()[axis], axis as i32)?;
    pieces.iter().map(|p| drop_axes(p, &[axis])).collect()
}

// ------------------------------------------------------------------ pad

/// The first input surrounded by the second, a single element.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// Elements in front on each axis.
    pub lo: SmallVec<[usize; 4]>,
    /// Elements behind on each axis.
    pub hi: SmallVec<[usize; 4]>,
}

impl Rule for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count("pad", inputs, 2)?;
        expect::alike("pad", inputs)?;
        let a = &inputs[0];
        let widths = [self.lo.len(), self.hi.len()] == [a.ndim(); 2];
        expect::fit("pad", widths && inputs[1].ndim() == 0, inputs)?;
        let sizes = a.shape().iter().zip(&self.lo).zip(&self.hi);
        let shape: Option<Shape> = sizes.map(|((d, lo), hi)| d.checked_add(*lo)?.checked_add(*hi)).collect();
        let shape = shape.ok_or_else(|| Error::overflow("[pad] the padded sizes do not fit in 64 bits"))?;
        shape::elements("pad", &shape)?;
        Ok(smallvec![Aval::new(shape, a.dtype())])
    }
}

/// How many elements to add in front of and behind each axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PadWidth {
    /// The same on every axis: in front, behind.
    Every(usize, usize),
    /// One pair an axis.
    Each(Vec<(usize, usize)>),
}

impl From<usize> for PadWidth {
    fn from(n: usize) -> PadWidth {
        PadWidth::Every(n, n)
    }
}
impl From<(usize, usize)> for PadWidth {
    fn from((lo, hi): (usize, usize)) -> PadWidth {
        PadWidth::Every(lo, hi)
    }
}
impl From<&[(usize, usize)]> for PadWidth {
    fn from(pairs: &[(usize, usize)]) -> PadWidth {
        PadWidth::Each(pairs.to_vec())
    }
}
impl From<Vec<(usize, usize)>> for PadWidth {
    fn from(pairs: Vec<(usize, usize)>) -> PadWidth {
        PadWidth::Each(pairs)
    }
}
impl<const N: usize> From<[(usize, usize); N]> for PadWidth {
    fn from(pairs: [(usize, usize); N]) -> PadWidth {
        PadWidth::Each(pairs.to_vec())
    }
}

/// What padding is filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The nearest element.
    Edge,
    /// The array mirrored at its edge elements, which are not repeated; continued as often as needed.
    Reflect,
    /// The array mirrored behind its edge elements, which are repeated; continued as often as needed.
    Symmetric,
}

impl PadMode {
    /// For each position beside an axis of `n > 0` elements the element that stands there.
    fn sources(self, positions: &Array, n: i64) -> Result<Array> {
        let (period, behind) = match self {
            PadMode::Reflect if n > 1 => (2 * (n - 1), 2 * (n - 1)),
            PadMode::Symmetric => (2 * n, 2 * n - 1),
            _ => return maximum(&minimum(positions, n - 1)?, 0),
        };
        let q = remainder(positions, period)?;
        minimum(&q, &subtract(behind, &q)?)
    }
}

/// `a` with `width` elements around it (`mx.pad`), filled by `mode`; `value`, cast to the dtype of `a`, counts for
/// [`PadMode::Constant`] only. Widths: `n`, `(lo, hi)` for all axes, or one pair an axis.
///
/// # Errors
/// A number of pairs that is not the number of axes; a value that is not 0-d; an empty axis that should be mirrored.
pub fn pad(a: &Array, width: impl Into<PadWidth>, mode: PadMode, value: impl Operand) -> Result<Array> {
    let pairs = match width.into() {
        PadWidth::Every(lo, hi) => vec![(lo, hi); a.ndim()],
        PadWidth::Each(pairs) if pairs.len() == a.ndim() => pairs,
        PadWidth::Each(pairs) => {
            let (n, s) = (pairs.len(), show(a.shape()));
            return Err(Error::value(format!("[pad] {n} pairs of widths for an array of shape {s}")));
        }
    };
    if pairs.iter().all(|&pair| pair == (0, 0)) {
        return Ok(a.clone());
    }
    if mode != PadMode::Constant {
        return (0..a.ndim()).try_fold(a.clone(), |a, axis| mirror(&a, axis, pairs[axis], mode));
    }
    let value = value.arg();
    if value.shape().iter().product::<usize>() != 1 {
        return Err(Error::shape(format!("[pad] the value has shape {}, not one element", show(value.shape()))));
    }
    let value = super::view::reshape_to(&value.materialize(a.dtype(), value.shape())?, Shape::new())?;
    let (lo, hi) = pairs.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    Array::apply1(Pad { lo: lo.into(), hi: hi.into() }, smallvec![a.clone(), value])
}

/// One axis padded with elements of its own.
fn mirror(a: &Array, axis: usize, (lo, hi): (usize, usize), mode: PadMode) -> Result<Array> {
    if lo == 0 && hi == 0 {
        return Ok(a.clone());
    }
    let n = a.shape()[axis] as i64;
    if n == 0 {
        return Err(Error::value(format!(
            "[pad] axis {axis} of shape {} is empty: nothing to repeat",
            show(a.shape())
        )));
    }
    let part = |from: i64, len: usize| {
        let positions = Array::apply1(
            Arange { start: Real(from as f64), step: Real(1.0), len, dtype: Dtype::Int64 },
            Inputs::new(),
        )?;
        take(a, &mode.sources(&positions, n)?, axis as i32)
    };
    concatenate(&[part(-(lo as i64), lo)?, a.clone(), part(n, hi)?], axis as i32)
}

impl Array {
    /// Pieces along an axis; see [`split`].
    #[track_caller]
    pub fn split(&self, sections: impl Into<Sections>, axis: i32) -> Vec<Array> {
        crate::or_panic(split(self, sections, axis))
    }
}

impl Transform for Pad {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, shape) = (at.cotangent(0)?, at.inputs[0].shape());
        let window = Slice { start: self.lo.clone(), step: SmallVec::from_elem(1, shape.len()), shape: shape.into() };
        let inner = Array::apply1(window, smallvec![g.clone()])?;
        let outer = at.wanted[1].then(|| super::subtract(&super::sum(&g, (), false)?, &super::sum(&inner, (), false)?));
        let outer = outer.transpose()?.map(|v| reshape_to(&v, at.inputs[1].shape().into())).transpose()?;
        Ok(smallvec![Some(inner), outer])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let widths = |w: &[usize]| std::iter::once(0).chain(w.iter().copied()).collect();
        let op = Pad { lo: widths(&self.lo), hi: widths(&self.hi) };
        let a = lanes[0].spread(size)?;
        if !lanes[1].mapped {
            return Ok(vec![Array::apply1(op, smallvec![a, lanes[1].array.clone()])?]);
        }
        // Values that differ: the array and its place, each padded with zeros.
        let zero = |dtype| super::full(&[], 0, Some(dtype));
        let one = Array::apply1(op.clone(), smallvec![super::ones_like(&a, Some(Dtype::Bool))?, zero(Dtype::Bool)?])?;
        let padded = Array::apply1(op, smallvec![a.clone(), zero(a.dtype())?])?;
        let mut shape: Shape = SmallVec::from_elem(1, a.ndim());
        shape[0] = size;
        Ok(vec![super::select(&one, &padded, reshape_to(&lanes[1].array, shape)?)?])
    }
}

impl Transform for Concatenate {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        let mut first = 0;
        let part = |a: &Array| {
            let mut window = whole(a.shape());
            window.start[self.axis] = first;
            first += a.shape()[self.axis];
            Array::apply1(window, smallvec![g.clone()]).map(Some)
        };
        at.inputs.iter().map(part).collect()
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let inputs = lanes.iter().map(|l| l.spread(size)).collect::<Result<_>>()?;
        Ok(vec![Array::apply1(Concatenate { axis: self.axis + 1 }, inputs)?])
    }
}
