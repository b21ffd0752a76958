//! Sorting, partitioning, searching.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::gather::GatherAxis;
use crate::ops::scatter::{Combine, ScatterAxis};
use crate::ops::{Rule, astype, expect, reshape, slice, zeros_like};
use crate::shape::{self, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Orders elements along an axis: values or their positions, wholly or around one position.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sort {
    /// Along which axis.
    pub axis: usize,
    /// Give positions (uint32) in place of values.
    pub positions: bool,
    /// Only this position must be right, smaller ones before it and larger ones after.
    pub kth: Option<usize>,
}

impl Rule for Sort {
    fn name(&self) -> &'static str {
        match (self.positions, self.kth) {
            (false, None) => "sort",
            (true, None) => "argsort",
            (false, Some(_)) => "partition",
            (true, Some(_)) => "argpartition",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 1)?;
        let a = &inputs[0];
        expect::axis(self.name(), self.axis, a.shape())?;
        expect::fit(self.name(), self.kth.is_none_or(|k| k < a.shape()[self.axis]), inputs)?;
        if self.positions && a.shape()[self.axis] > u32::MAX as usize {
            return Err(Error::overflow(format!("[{}] axis {} has more than 2^32 elements", self.name(), self.axis)));
        }
        let dtype = if self.positions { Dtype::Uint32 } else { a.dtype() };
        Ok(smallvec![Aval::new(a.shape(), dtype)])
    }
}

fn ordered(a: &Array, axis: Option<i32>, positions: bool, kth: Option<i64>) -> Result<Array> {
    let op = Sort { axis: 0, positions, kth: kth.map(|_| 0) };
    let name = op.name();
    let (a, axis) = match axis {
        None => (reshape(a, &[-1])?, 0),
        Some(axis) => (a.clone(), shape::axis(name, axis, a.ndim())?),
    };
    let n = a.shape()[axis] as i64;
    let kth = match kth {
        None => None,
        Some(k) if k >= -n && k < n => Some(if k < 0 { k + n } else { k } as usize),
        Some(k) => {
            let s = show(a.shape());
            return Err(Error::value(format!("[{name}] kth {k} is out of range for axis {axis} of shape {s}")));
        }
    };
    Array::apply1(Sort { axis, positions, kth }, smallvec![a])
}

/// Ascending along `axis`, or of the flattened array; stable, NaN last (`mx.sort`).
///
/// # Errors
/// An axis out of range.
pub fn sort(a: &Array, axis: Option<i32>) -> Result<Array> {
    ordered(a, axis, false, None)
}

/// Positions (uint32) that sort `a` along `axis`; stable, NaN last (`mx.argsort`).
///
/// # Errors
/// An axis out of range.
pub fn argsort(a: &Array, axis: Option<i32>) -> Result<Array> {
    ordered(a, axis, true, None)
}

/// `a` with the element that sorting would put at `kth` there, no larger ones before and no smaller ones after it
/// (`mx.partition`).
///
/// # Errors
/// An axis or `kth` out of range.
pub fn partition(a: &Array, kth: i64, axis: Option<i32>) -> Result<Array> {
    ordered(a, axis, false, Some(kth))
}

/// Positions (uint32) that [`partition`] `a`.
///
/// # Errors
/// An axis or `kth` out of range.
pub fn argpartition(a: &Array, kth: i64, axis: Option<i32>) -> Result<Array> {
    ordered(a, axis, true, Some(kth))
}

/// The `k` largest elements along `axis`, in no promised order (`mx.topk`).
///
/// # Errors
/// An axis out of range; `k` larger than the axis.
pub fn topk(a: &Array, k: usize, axis: Option<i32>) -> Result<Array> {
    let (a, axis) = match axis {
        None => (reshape(a, &[-1])?, 0),
        Some(axis) => (a.clone(), shape::axis("topk", axis, a.ndim())?),
    };
    let n = a.shape()[axis];
    if k > n {
        return Err(Error::value(format!("[topk] k = {k} is larger than axis {axis} of shape {}", show(a.shape()))));
    }
    let mut ranges = vec![(None, None, 1); axis + 1];
    ranges[axis] = (Some((n - k) as i64), None, 1);
    if k == 0 || k == n {
        return slice(&a, &ranges);
    }
    slice(&partition(&a, (n - k) as i64, Some(axis as i32))?, &ranges)
}

/// Where values belong in sorted sequences: the last axis of the first input, whose other axes lead those of the second.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchSorted {
    /// After equal elements, not before.
    pub right: bool,
}

impl Rule for SearchSorted {
    fn name(&self) -> &'static str {
        "searchsorted"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        expect::alike(self.name(), inputs)?;
        let (sequences, values) = (inputs[0].shape(), inputs[1].shape());
        if !sequences.split_last().is_some_and(|(_, lead)| values.starts_with(lead)) {
            let (s, t) = (show(sequences), show(values));
            return Err(Error::shape(format!("[searchsorted] sequences of shape {s} for values of shape {t}")));
        }
        Ok(smallvec![Aval::new(values, Dtype::Uint32)])
    }
}

/// For each value the number (uint32) of elements of the sorted 1-D `sequence` that are smaller, or smaller or equal
/// with `right` (`mx.searchsorted`).
///
/// # Errors
/// A shape error when the sequence is not 1-D.
pub fn searchsorted(sequence: &Array, values: &Array, right: bool) -> Result<Array> {
    if sequence.ndim() != 1 {
        let s = show(sequence.shape());
        return Err(Error::shape(format!("[searchsorted] the sequence must have one axis; its shape is {s}")));
    }
    let dtype = sequence.dtype().promote(values.dtype());
    Array::apply1(SearchSorted { right }, smallvec![astype(sequence, dtype)?, astype(values, dtype)?])
}

impl Transform for Sort {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        if self.positions {
            return Ok(at.none());
        }
        let axis = self.axis;
        let order = |a: &Array| Array::apply1(Sort { axis, positions: true, kth: None }, smallvec![a.clone()]);
        let mut g = at.cotangent(0)?;
        if self.kth.is_some() {
            // No order is promised beside the k-th: what sorting makes of it brings both sides together.
            g = Array::apply1(GatherAxis { axis }, smallvec![g, order(&at.outputs[0])?])?;
        }
        let op = ScatterAxis { axis, combine: Combine::Sum };
        let inputs = smallvec![zeros_like(&at.inputs[0], None)?, order(&at.inputs[0])?, g];
        Ok(at.first(Array::apply1(op, inputs)?))
    }

    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        let op = Sort { axis: self.axis + 1, ..self.clone() };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone()])?])
    }
}

impl Transform for SearchSorted {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let shared = !lanes[0].mapped && lanes[0].array.ndim() == 1;
        let sequence = if shared { lanes[0].array.clone() } else { lanes[0].spread(size)? };
        Ok(vec![Array::apply1(self.clone(), smallvec![sequence, lanes[1].spread(size)?])?])
    }
}
