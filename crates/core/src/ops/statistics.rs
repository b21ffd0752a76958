//! Reductions made of other ops: means, variances, medians, counts, norms of a sort.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{
    Rule, abs, astype, divide, expect, multiply, not_equal, reshape_to, select, sort, sqrt, square, subtract, sum,
};
use crate::shape::{self, Axes, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

fn count(a: &Array, axes: &[usize]) -> usize {
    axes.iter().map(|&i| a.shape()[i]).product()
}

/// Arithmetic mean (`mx.mean`): floats keep their dtype, others give float32. Of nothing: NaN.
///
/// # Errors
/// Axes out of range or named twice.
pub fn mean(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
    let axes = axes.into();
    let n = count(a, &shape::axes("mean", &axes, a.ndim())?);
    wide(a, |a| divide(sum(a, axes.clone(), keepdims)?, n as f64))
}

/// Runs a reduction in float32 for halves and rounds the result once; integers go to float32.
fn wide(a: &Array, f: impl FnOnce(&Array) -> Result<Array>) -> Result<Array> {
    let dtype = a.dtype().to_inexact();
    if dtype.is_half() {
        return astype(&f(&astype(a, Dtype::Float32)?)?, dtype);
    }
    f(&astype(a, dtype)?)
}

/// Variance (`mx.var`): mean of `|x - mean|^2` with divisor `max(n - ddof, 0)`, in two passes.
///
/// # Errors
/// Axes out of range or named twice.
pub fn var(a: &Array, axes: impl Into<Axes>, keepdims: bool, ddof: usize) -> Result<Array> {
    let axes = axes.into();
    let n = count(a, &shape::axes("var", &axes, a.ndim())?);
    wide(a, |a| {
        let mean = divide(sum(a, axes.clone(), true)?, n as f64)?;
        let centred = subtract(a, &mean)?;
        let squares = if a.dtype().is_complex() { square(&abs(&centred)?)? } else { square(&centred)? };
        divide(sum(&squares, axes.clone(), keepdims)?, n.saturating_sub(ddof) as f64)
    })
}

/// Standard deviation: the root of [`var`].
///
/// # Errors
/// Axes out of range or named twice.
pub fn std(a: &Array, axes: impl Into<Axes>, keepdims: bool, ddof: usize) -> Result<Array> {
    let axes = axes.into();
    let dtype = a.dtype().to_inexact();
    if dtype.is_half() {
        return astype(&sqrt(&var(&astype(a, Dtype::Float32)?, axes, keepdims, ddof)?)?, dtype);
    }
    sqrt(&var(a, axes, keepdims, ddof)?)
}

/// Number of nonzero elements, as int32 (`mx.count_nonzero`).
///
/// # Errors
/// Axes out of range or named twice.
pub fn count_nonzero(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
    sum(&not_equal(a, 0)?, axes, keepdims)
}

/// Smallest and largest value (`mx.minmax`).
///
/// # Errors
/// As [`super::min`].
pub fn minmax(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<[Array; 2]> {
    let axes = axes.into();
    Ok([super::min(a, axes.clone(), keepdims)?, super::max(a, axes, keepdims)?])
}

/// Middle value, or the mean of the two middle ones; NaN when any value is (`mx.median`).
///
/// # Errors
/// Axes out of range or named twice; a value error for no elements.
pub fn median(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
    let list = shape::axes("median", &axes.into(), a.ndim())?;
    let n = count(a, &list);
    if n == 0 {
        return Err(Error::value(format!("[median] no elements along axes {list:?} of shape {}", show(a.shape()))));
    }
    let flat = super::layout_last("median", a, &list)?;
    wide(&flat, |flat| {
        let sorted = sort(flat, Some(-1))?;
        let pick = |i: usize| -> Result<Array> {
            let mut ranges = vec![(None, None, 1); sorted.ndim() - 1];
            ranges.push((Some(i as i64), Some(i as i64 + 1), 1));
            super::slice(&sorted, &ranges)
        };
        let middle = pick(n / 2)?;
        let middle = if n % 2 == 1 { middle } else { multiply(super::add(pick(n / 2 - 1)?, middle)?, 0.5)? };
        // NaN sorts last.
        let last = pick(n - 1)?;
        let value = select(&super::isnan(&last)?, f64::NAN, &middle)?;
        let mut shape: Shape = a.shape().into();
        list.iter().for_each(|&i| shape[i] = 1);
        let kept = reshape_to(&value, shape)?;
        if keepdims { Ok(kept) } else { super::view::drop_axes(&kept, &list) }
    })
}

/// Sum of a diagonal (`mx.trace`), in `dtype` or that of [`sum`]; `axis1` and `axis2` span the matrices.
///
/// # Errors
/// Axes out of range or equal.
pub fn trace(a: &Array, offset: i64, axis1: i32, axis2: i32, dtype: Option<Dtype>) -> Result<Array> {
    let diagonal = super::diagonal(a, offset, axis1, axis2)?;
    match dtype {
        None => sum(&diagonal, -1, false),
        Some(dtype) => astype(&sum(&astype(&diagonal, dtype)?, -1, false)?, dtype),
    }
}

/// Differences of neighbours along `axis`, `n` times (`mx.diff`).
///
/// # Errors
/// An axis out of range; a 0-d array.
pub fn diff(a: &Array, n: usize, axis: i32) -> Result<Array> {
    let axis = shape::axis("diff", axis, a.ndim())?;
    let mut a = a.clone();
    for _ in 0..n {
        let size = a.shape()[axis] as i64;
        let mut hi = vec![(None, None, 1); axis + 1];
        let mut lo = hi.clone();
        hi[axis] = (Some(1.min(size)), None, 1);
        lo[axis] = (None, Some((size - 1).max(0)), 1);
        let (hi, lo) = (super::slice(&a, &hi)?, super::slice(&a, &lo)?);
        a = if a.dtype() == Dtype::Bool { not_equal(&hi, &lo)? } else { subtract(&hi, &lo)? };
    }
    Ok(a)
}

// ------------------------------------------------------------------ arg reductions

/// Index of the largest or smallest element along one axis, which stays with size 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArgReduce {
    /// Largest or smallest.
    pub max: bool,
    /// The axis.
    pub axis: usize,
}

impl Rule for ArgReduce {
    fn name(&self) -> &'static str {
        if self.max { "argmax" } else { "argmin" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 1)?;
        let a = &inputs[0];
        expect::axis(self.name(), self.axis, a.shape())?;
        if a.shape()[self.axis] == 0 {
            return Err(Error::value(format!(
                "[{}] axis {} of shape {} is empty",
                self.name(),
                self.axis,
                show(a.shape())
            )));
        }
        if a.shape()[self.axis] > u32::MAX as usize {
            return Err(Error::overflow(format!("[{}] axis {} has more than 2^32 elements", self.name(), self.axis)));
        }
        let mut shape: Shape = a.shape().into();
        shape[self.axis] = 1;
        Ok(smallvec![Aval::new(shape, Dtype::Uint32)])
    }
}

fn arg_reduce(a: &Array, axis: Option<i32>, keepdims: bool, max: bool) -> Result<Array> {
    let name = if max { "argmax" } else { "argmin" };
    let Some(axis) = axis else {
        let flat = Array::apply1(ArgReduce { max, axis: 0 }, smallvec![super::reshape(a, &[-1])?])?;
        let shape = if keepdims { SmallVec::from_elem(1, a.ndim()) } else { Shape::new() };
        return reshape_to(&flat, shape);
    };
    let axis = shape::axis(name, axis, a.ndim())?;
    let out = Array::apply1(ArgReduce { max, axis }, smallvec![a.clone()])?;
    if keepdims { Ok(out) } else { super::view::drop_axes(&out, &[axis]) }
}

/// Index (uint32) of the largest element along `axis`, or of the flattened array; the first of equals; a NaN wins
/// (`mx.argmax`).
///
/// # Errors
/// An axis out of range or empty.
pub fn argmax(a: &Array, axis: Option<i32>, keepdims: bool) -> Result<Array> {
    arg_reduce(a, axis, keepdims, true)
}

/// Index (uint32) of the smallest element; see [`argmax`].
///
/// # Errors
/// An axis out of range or empty.
pub fn argmin(a: &Array, axis: Option<i32>, keepdims: bool) -> Result<Array> {
    arg_reduce(a, axis, keepdims, false)
}

impl Array {
    /// Arithmetic mean; see [`mean`].
    #[track_caller]
    pub fn mean(&self, axes: impl Into<Axes>, keepdims: bool) -> Array {
        crate::or_panic(mean(self, axes, keepdims))
    }
    /// Variance; see [`var`].
    #[track_caller]
    pub fn var(&self, axes: impl Into<Axes>, keepdims: bool, ddof: usize) -> Array {
        crate::or_panic(var(self, axes, keepdims, ddof))
    }
    /// Standard deviation; see [`std()`].
    #[track_caller]
    pub fn std(&self, axes: impl Into<Axes>, keepdims: bool, ddof: usize) -> Array {
        crate::or_panic(std(self, axes, keepdims, ddof))
    }
    /// Index of the largest element; see [`argmax`].
    #[track_caller]
    pub fn argmax(&self, axis: Option<i32>, keepdims: bool) -> Array {
        crate::or_panic(argmax(self, axis, keepdims))
    }
    /// Index of the smallest element; see [`argmin`].
    #[track_caller]
    pub fn argmin(&self, axis: Option<i32>, keepdims: bool) -> Array {
        crate::or_panic(argmin(self, axis, keepdims))
    }
}

impl Transform for ArgReduce {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        let op = ArgReduce { max: self.max, axis: self.axis + 1 };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone()])?])
    }
}
