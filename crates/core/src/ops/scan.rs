//! Running reductions along an axis.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::node::{Aval, Avals};
use crate::ops::elementwise::conj;
use crate::ops::join::Pad;
use crate::ops::scatter::{Combine, ScatterAxis};
use crate::ops::view::reshape_to;
use crate::ops::{
    Rule, add, arange, astype, broadcast_to, equal, exp, expect, flip, full, multiply, reshape, select, slice, subtract,
};
use crate::ops::{stack, zeros_like};
use crate::shape::{self, Shape};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// What a scan keeps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ScanKind {
    /// Running sum.
    Sum,
    /// Running product.
    Prod,
    /// Running maximum.
    Max,
    /// Running minimum.
    Min,
    /// Running `ln(sum(exp))`.
    LogAddExp,
}

/// A running reduction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// What is kept.
    pub kind: ScanKind,
    /// Along which axis.
    pub axis: usize,
    /// From the end.
    pub reverse: bool,
    /// Whether an element counts for its own place.
    pub inclusive: bool,
}

impl Rule for Scan {
    fn name(&self) -> &'static str {
        match self.kind {
            ScanKind::Sum => "cumsum",
            ScanKind::Prod => "cumprod",
            ScanKind::Max => "cummax",
            ScanKind::Min => "cummin",
            ScanKind::LogAddExp => "logcumsumexp",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let shape = expect::only(self.name(), inputs)?;
        expect::axis(self.name(), self.axis, &shape)?;
        let dtype = inputs[0].dtype();
        expect::dtype(self.name(), &inputs[0], self.kind != ScanKind::LogAddExp || dtype.is_inexact())?;
        Ok(smallvec![Aval::new(shape, dtype)])
    }
}

fn scan(kind: ScanKind, a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    let op = Scan { kind, axis: 0, reverse, inclusive };
    let Some(axis) = axis else {
        return Array::apply1(op, smallvec![reshape(a, &[-1])?]);
    };
    let axis = shape::axis(op.name(), axis, a.ndim())?;
    Array::apply1(Scan { axis, ..op }, smallvec![a.clone()])
}

/// Running sum along `axis`, or of the flattened array (`mx.cumsum`); bool gives int32. Exclusive scans start with 0.
///
/// # Errors
/// An axis out of range.
pub fn cumsum(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool, dtype: Option<Dtype>) -> Result<Array> {
    let natural = if a.dtype() == Dtype::Bool { Dtype::Int32 } else { a.dtype() };
    scan(ScanKind::Sum, &astype(a, dtype.unwrap_or(natural))?, axis, reverse, inclusive)
}

/// Running product along `axis` (`mx.cumprod`). Exclusive scans start with 1.
///
/// # Errors
/// An axis out of range.
pub fn cumprod(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool, dtype: Option<Dtype>) -> Result<Array> {
    scan(ScanKind::Prod, &astype(a, dtype.unwrap_or(a.dtype()))?, axis, reverse, inclusive)
}

/// Running maximum along `axis`; NaN from the first NaN on (`mx.cummax`). Exclusive scans start with the lowest value.
///
/// # Errors
/// An axis out of range.
pub fn cummax(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::Max, a, axis, reverse, inclusive)
}

/// Running minimum along `axis`; see [`cummax`].
///
/// # Errors
/// An axis out of range.
pub fn cummin(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::Min, a, axis, reverse, inclusive)
}

/// Running `ln(sum(exp))` along `axis` without overflow (`mx.logcumsumexp`). Exclusive scans start with -inf.
///
/// # Errors
/// An axis out of range.
pub fn logcumsumexp(a: &Array, axis: Option<i32>, reverse: bool, inclusive: bool) -> Result<Array> {
    scan(ScanKind::LogAddExp, &astype(a, a.dtype().to_inexact())?, axis, reverse, inclusive)
}

impl Array {
    /// Running sum; see [`cumsum`].
    #[track_caller]
    pub fn cumsum(&self, axis: i32) -> Array {
        crate::or_panic(cumsum(self, Some(axis), false, true, None))
    }
    /// Running product; see [`cumprod`].
    #[track_caller]
    pub fn cumprod(&self, axis: i32) -> Array {
        crate::or_panic(cumprod(self, Some(axis), false, true, None))
    }
}

// ------------------------------------------------------------------ transforms

/// `a[start:stop]` along `axis`.
pub(crate) fn cut(a: &Array, axis: usize, start: i64, stop: Option<i64>) -> Result<Array> {
    every(a, axis, Some(start), stop, 1)
}

fn every(a: &Array, axis: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Array> {
    let mut ranges = vec![(None, None, 1); axis + 1];
    ranges[axis] = (start, stop, step);
    slice(a, &ranges)
}

/// One zero more along `axis`.
fn and_zero(a: &Array, axis: usize) -> Result<Array> {
    let lo: SmallVec<[usize; 4]> = SmallVec::from_elem(0, a.ndim());
    let mut hi = lo.clone();
    hi[axis] = 1;
    Array::apply1(Pad { lo, hi }, smallvec![a.clone(), full(&[], 0, Some(a.dtype()))?])
}

/// The next element along `axis`, 0 for the last.
pub(crate) fn ahead(a: &Array, axis: usize) -> Result<Array> {
    if a.size() == 0 { Ok(a.clone()) } else { and_zero(&cut(a, axis, 1, None)?, axis) }
}

/// `s[j] = b[j] + a[j] * s[j + 1]` along `axis`, from 0 behind the end.
///
/// Every second element is one of a recurrence over half as many, so this takes about six operations an element and
/// nothing is divided.
pub(crate) fn recurrence(a: &Array, b: &Array, axis: usize) -> Result<Array> {
    let n = b.shape()[axis];
    if n < 2 {
        return Ok(b.clone());
    }
    let even = |x: &Array| every(x, axis, None, None, 2);
    let odd = |x: &Array| {
        let part = every(x, axis, Some(1), None, 2)?;
        if n % 2 == 1 { and_zero(&part, axis) } else { Ok(part) }
    };
    let ([a, a1], [b, b1]) = ([even(a)?, odd(a)?], [even(b)?, odd(b)?]);
    let s = recurrence(&multiply(&a, &a1)?, &add(&b, &multiply(&a, &b1)?)?, axis)?;
    let s1 = add(&b1, &multiply(&a1, &ahead(&s, axis)?)?)?;
    let mut shape: Shape = s.shape().into();
    shape[axis] *= 2;
    cut(&reshape_to(&stack(&[s, s1], axis as i32 + 1)?, shape)?, axis, 0, Some(n as i64))
}

impl Transform for Scan {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x, axis) = (at.cotangent(0)?, &at.inputs[0], self.axis);
        if self.kind == ScanKind::Sum {
            return Ok(at.first(Array::apply1(Scan { reverse: !self.reverse, ..self.clone() }, smallvec![g])?));
        }
        if x.size() == 0 {
            return Ok(at.first(g));
        }
        let wide = if x.dtype().is_half() { Dtype::Float32 } else { x.dtype() };
        let run = |x: &Array, inclusive| {
            Array::apply1(Scan { reverse: false, inclusive, ..self.clone() }, smallvec![x.clone()])
        };
        // In the order of the scan. What an exclusive scan gives stands one place after what an inclusive one gives.
        let turn = |a: &Array| if self.reverse { flip(a, axis as i32) } else { Ok(a.clone()) };
        let (g, x) = (turn(&astype(&g, wide)?)?, turn(&astype(x, wide)?)?);
        let g = if self.inclusive { g } else { ahead(&g, axis)? };
        let grad = match self.kind {
            // Each element times those before it, and the sum of the cotangents times those between.
            ScanKind::Sum | ScanKind::Prod => {
                let behind = recurrence(&conj(&ahead(&x, axis)?)?, &g, axis)?;
                multiply(&conj(&run(&x, false)?)?, &behind)?
            }
            // To the element that was the largest; of equal ones to the last.
            ScanKind::Max | ScanKind::Min => {
                let mut line: Shape = SmallVec::from_elem(1, x.ndim());
                line[axis] = x.shape()[axis];
                let places = reshape_to(&arange(0, line[axis], 1, Some(Dtype::Int64))?, line)?;
                let reached = equal(&x, &run(&x, true)?)?;
                let reached = select(&reached, broadcast_to(&places, x.shape())?, 0)?;
                let of = Array::apply1(
                    Scan { kind: ScanKind::Max, reverse: false, inclusive: true, axis },
                    smallvec![reached],
                )?;
                let op = ScatterAxis { axis, combine: Combine::Sum };
                Array::apply1(op, smallvec![zeros_like(&x, None)?, of, g])?
            }
            // exp(x[j] - y[j]) times the sum of the cotangents times exp(y[j] - y[i]): nothing overflows.
            ScanKind::LogAddExp => {
                let y = run(&x, true)?;
                let finite = select(&equal(&y, f64::NEG_INFINITY)?, 0, &y)?;
                let decay = exp(&subtract(cut(&y, axis, 0, Some(-1))?, cut(&finite, axis, 1, None)?)?)?;
                let behind = recurrence(&conj(&and_zero(&decay, axis)?)?, &g, axis)?;
                multiply(&conj(&exp(&subtract(&x, &finite)?)?)?, &behind)?
            }
        };
        Ok(at.first(turn(&grad)?))
    }

    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        let op = Scan { axis: self.axis + 1, ..self.clone() };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone()])?])
    }
}
