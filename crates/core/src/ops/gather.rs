//! Reading at indices that arrays hold. Indices are checked when they are read: see [`Gather`] for the rule.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::layout::flat_or_axis;
use crate::ops::scatter::{Combine, DynamicSliceUpdate, Scatter, ScatterAxis};
use crate::ops::view::{Slice, permute, reshape_to};
use crate::ops::{Rule, add, arange, astype, broadcast_to, expect, less, moveaxis, select, slice, zeros_like};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform, behind, map_made, moved};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// Elements of the first input at the indices that the others give, one index array for each of `axes`.
///
/// The index arrays have one shape and any integer dtype. An index of -n to n-1 is good for an axis of size n, negative
/// ones count from the end, others are an index error naming value, axis and size. With `rest` the sizes of the axes
/// that are not indexed, the result has shape `rest[..at] ++ index shape ++ rest[at..]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gather {
    /// Indexed axes, distinct, in the order of the index arrays.
    pub axes: SmallVec<[usize; 4]>,
    /// How many of the other axes stand before those of the index arrays.
    pub at: usize,
}

impl Rule for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::at_least(self.name(), inputs, 2)?;
        let (a, indices) = (&inputs[0], &inputs[1..]);
        let shape = gathered_shape(self.name(), a.shape(), &self.axes, self.at, indices)?;
        Ok(smallvec![Aval::new(shape, a.dtype())])
    }
}

/// `rest[..at] ++ index shape ++ rest[at..]`: what a gather gives and a scatter takes.
pub(crate) fn gathered_shape(op: &str, shape: &[usize], axes: &[usize], at: usize, indices: &[Array]) -> Result<Shape> {
    let by = indices.first().map(|i| i.shape()).unwrap_or_default();
    for i in indices {
        if i.shape() != by {
            return Err(Error::shape(format!("[{op}] index arrays of shapes {} and {}", show(by), show(i.shape()))));
        }
        expect_integers(op, i)?;
    }
    expect::distinct(op, axes, shape.len())?;
    if axes.len() != indices.len() || at > shape.len() - axes.len() {
        let s = show(shape);
        return Err(Error::axis(format!("[{op}] axes {axes:?} and place {at} do not fit an array of shape {s}")));
    }
    let mut out: Shape = (0..shape.len()).filter(|i| !axes.contains(i)).map(|i| shape[i]).collect();
    out.insert_from_slice(at, by);
    shape::elements(op, &out)?;
    Ok(out)
}

pub(crate) fn expect_integers(op: &str, index: &Array) -> Result<()> {
    if index.dtype().is_integer() {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] indices must be integers, not {}", index.dtype())))
}

/// Slices of `a` at `indices` along `axis` (`mx.take`): the axes of `indices` take the place of `axis`, so a 0-d index
/// drops it. Without an axis `a` is flattened. Indices: any integer dtype; negative ones count from the end.
///
/// # Errors
/// An axis out of range; indices that are not integers. When evaluated: indices out of range.
pub fn take(a: &Array, indices: &Array, axis: impl Into<Option<i32>>) -> Result<Array> {
    expect_integers("take", indices)?;
    let (a, axis) = flat_or_axis("take", a, axis.into())?;
    Array::apply1(Gather { axes: smallvec![axis], at: axis }, smallvec![a, indices.clone()])
}

/// Elements of the first input at the indices of the second along one axis: both have the same shape but for that
/// axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatherAxis {
    /// The axis.
    pub axis: usize,
}

impl Rule for GatherAxis {
    fn name(&self) -> &'static str {
        "take_along_axis"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        let (a, indices) = (&inputs[0], &inputs[1]);
        expect_integers(self.name(), indices)?;
        same_but_axis(self.name(), a.shape(), indices.shape(), self.axis)?;
        Ok(smallvec![Aval::new(indices.shape(), a.dtype())])
    }
}

pub(crate) fn same_but_axis(op: &str, a: &[usize], b: &[usize], axis: usize) -> Result<()> {
    let same = a.len() == b.len() && axis < a.len() && (0..a.len()).all(|i| i == axis || a[i] == b[i]);
    if same {
        return Ok(());
    }
    Err(Error::shape(format!("[{op}] shapes {} and {} differ outside axis {axis}", show(a), show(b))))
}

/// For every place of `indices` the element of `a` with that index along `axis` (`mx.take_along_axis`). The other axes
/// broadcast. Without an axis `a` is flattened and `indices` must be 1-D.
///
/// # Errors
/// An axis out of range; different numbers of axes; shapes that do not broadcast; indices that are not integers. When
/// evaluated: indices out of range.
pub fn take_along_axis(a: &Array, indices: &Array, axis: impl Into<Option<i32>>) -> Result<Array> {
    const OP: &str = "take_along_axis";
    expect_integers(OP, indices)?;
    let (a, axis) = flat_or_axis(OP, a, axis.into())?;
    if a.ndim() != indices.ndim() {
        let (s, t) = (show(a.shape()), show(indices.shape()));
        return Err(Error::shape(format!("[{OP}] arrays of shape {s} and indices of shape {t} differ in axes")));
    }
    let (mut of, mut by): (Shape, Shape) = (a.shape().into(), indices.shape().into());
    (of[axis], by[axis]) = (1, 1);
    let all = shape::broadcast(OP, &of, &by)?;
    (of, by) = (all.clone(), all);
    (of[axis], by[axis]) = (a.shape()[axis], indices.shape()[axis]);
    Array::apply1(GatherAxis { axis }, smallvec![broadcast_to(&a, &of)?, broadcast_to(indices, &by)?])
}

// ------------------------------------------------------------------ places known at evaluation

/// A window whose start the second input gives: one integer for each of `axes`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicSlice {
    /// Axes with a start; the others are taken whole from 0.
    pub axes: SmallVec<[usize; 4]>,
    /// Sizes of the window, one for every axis.
    pub size: Shape,
}

impl Rule for DynamicSlice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        fits_window(self.name(), inputs[0].shape(), &self.size)?;
        check_starts(self.name(), inputs[0].ndim(), &inputs[1], &self.axes)?;
        Ok(smallvec![Aval::new(self.size.clone(), inputs[0].dtype())])
    }
}

pub(crate) fn fits_window(op: &str, shape: &[usize], size: &[usize]) -> Result<()> {
    if size.len() == shape.len() && size.iter().zip(shape).all(|(s, d)| s <= d) {
        return Ok(());
    }
    Err(Error::shape(format!("[{op}] a window of shape {} does not fit an array of shape {}", show(size), show(shape))))
}

/// Checks that the starts of a window are an integer for each of its axes.
pub(crate) fn check_starts(op: &str, ndim: usize, starts: &Array, axes: &[usize]) -> Result<()> {
    expect_integers(op, starts)?;
    expect::distinct(op, axes, ndim)?;
    if starts.ndim() > 1 || starts.size() != axes.len() {
        let (n, s) = (axes.len(), show(starts.shape()));
        return Err(Error::shape(format!("[{op}] starts of shape {s} for {n} axes")));
    }
    Ok(())
}

/// Axes counted from the front.
pub(crate) fn counted(op: &str, ndim: usize, axes: &[i32]) -> Result<SmallVec<[usize; 4]>> {
    axes.iter().map(|&axis| shape::axis(op, axis, ndim)).collect()
}

/// A window of shape `size` of `a` that begins at `starts`, an array of one integer for each of `axes`, known only at
/// evaluation (`mx.slice`); on the other axes it begins at 0. Negative starts count from the end.
///
/// # Errors
/// Sizes larger than the array; axes out of range or named twice; starts that are not integers or not one an axis.
/// When evaluated: a start with which the window does not fit.
pub fn dynamic_slice(a: &Array, starts: &Array, axes: &[i32], size: &[usize]) -> Result<Array> {
    let axes = counted("slice", a.ndim(), axes)?;
    Array::apply1(DynamicSlice { axes, size: size.into() }, smallvec![a.clone(), starts.clone()])
}

/// The inputs of a gather or scatter: what comes first, then index arrays broadcast together.
pub(crate) fn with_indices(first: &[&Array], indices: &[Array], shape: &[usize]) -> Result<Inputs> {
    let mut all: Inputs = first.iter().map(|&a| a.clone()).collect();
    for i in indices {
        all.push(broadcast_to(i, shape)?);
    }
    Ok(all)
}

impl Array {
    /// Slices at `indices` along an axis; see [`take`].
    #[track_caller]
    pub fn take(&self, indices: &Array, axis: impl Into<Option<i32>>) -> Array {
        crate::or_panic(take(self, indices, axis))
    }

    /// Elements at `indices` along an axis; see [`take_along_axis`].
    #[track_caller]
    pub fn take_along_axis(&self, indices: &Array, axis: impl Into<Option<i32>>) -> Array {
        crate::or_panic(take_along_axis(self, indices, axis))
    }
}

/// Whether an array can stand where indices are wanted as a mask.
pub(crate) fn is_mask(index: &Array) -> bool {
    index.dtype() == Dtype::Bool
}

// ------------------------------------------------------------------ transforms

/// For arrays of `shape` in every lane: the number of the lane.
pub(crate) fn lane_numbers(size: usize, shape: &[usize]) -> Result<Array> {
    let mut column: Shape = SmallVec::from_elem(1, 1 + shape.len());
    column[0] = size;
    broadcast_to(&reshape_to(&arange(0, size, 1, Some(Dtype::Int64))?, column)?, &behind(size, shape))
}

impl Transform for Gather {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let op = Scatter { axes: self.axes.clone(), at: self.at, combine: Combine::Sum, window: None };
        let mut inputs: Inputs = smallvec![zeros_like(&at.inputs[0], None)?, at.cotangent(0)?];
        inputs.extend(at.inputs[1..].iter().cloned());
        Ok(at.first(Array::apply1(op, inputs)?))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (a, indices) = (&lanes[0], &lanes[1..]);
        let mut inputs: Inputs = smallvec![a.array.clone()];
        if !indices.iter().any(|i| i.mapped) {
            inputs.extend(indices.iter().map(|i| i.array.clone()));
            return Ok(vec![Array::apply1(Gather { axes: moved(&self.axes), at: self.at + 1 }, inputs)?]);
        }
        let mut axes = self.axes.clone();
        if a.mapped {
            // The lane is one more index.
            axes = moved(&axes);
            axes.insert(0, 0);
            inputs.push(lane_numbers(size, indices[0].shape())?);
        }
        for i in indices {
            inputs.push(i.spread(size)?);
        }
        let out = Array::apply1(Gather { axes, at: self.at }, inputs)?;
        Ok(vec![moveaxis(&out, self.at as i32, 0)?])
    }
}

impl Transform for GatherAxis {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let op = ScatterAxis { axis: self.axis, combine: Combine::Sum };
        let inputs = smallvec![zeros_like(&at.inputs[0], None)?, at.inputs[1].clone(), at.cotangent(0)?];
        Ok(at.first(Array::apply1(op, inputs)?))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let inputs = smallvec![lanes[0].spread(size)?, lanes[1].spread(size)?];
        Ok(vec![Array::apply1(GatherAxis { axis: self.axis + 1 }, inputs)?])
    }
}

/// A window that begins at `starts` on `axes`, as index arrays for these axes of what is left of the array when the
/// other axes are cut to their size.
pub(crate) struct MovingWindow {
    pub(crate) cut: Slice,
    pub(crate) indices: Vec<Array>,
    /// Where the axes of the array stand among those of the index arrays and then the others.
    pub(crate) order: SmallVec<[usize; 4]>,
}

impl MovingWindow {
    pub(crate) fn new(shape: &[usize], size: &[usize], starts: &Array, axes: &[usize]) -> Result<MovingWindow> {
        let starts = reshape_to(&astype(starts, Dtype::Int64)?, smallvec![axes.len()])?;
        let by: Shape = axes.iter().map(|&i| size[i]).collect();
        let mut cut = super::whole(size);
        let mut indices = Vec::new();
        for (k, &axis) in axes.iter().enumerate() {
            cut.shape[axis] = shape[axis];
            let n = shape[axis] as i64;
            let start = slice(&starts, &[(Some(k as i64), Some(k as i64 + 1), 1)])?;
            let first = select(&less(&start, 0)?, &add(&start, n)?, &start)?;
            // What is negative still does not count from the end once more: it is out of range.
            let first = select(&less(&first, 0)?, n, &first)?;
            let mut places: Shape = SmallVec::from_elem(1, axes.len());
            places[k] = size[axis];
            let places = reshape_to(&add(&first, arange(0, size[axis], 1, Some(Dtype::Int64))?)?, places)?;
            indices.push(broadcast_to(&places, &by)?);
        }
        let rest = (0..shape.len()).filter(|i| !axes.contains(i));
        let now: SmallVec<[usize; 4]> = axes.iter().copied().chain(rest).collect();
        let mut order: SmallVec<[usize; 4]> = SmallVec::from_elem(0, now.len());
        now.iter().enumerate().for_each(|(at, &axis)| order[axis] = at);
        Ok(MovingWindow { cut, indices, order })
    }
}

impl Transform for DynamicSlice {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let inputs = smallvec![zeros_like(&at.inputs[0], None)?, at.cotangent(0)?, at.inputs[1].clone()];
        Ok(at.first(Array::apply1(DynamicSliceUpdate { axes: self.axes.clone() }, inputs)?))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        if lanes[1].mapped && !self.axes.is_empty() {
            return map_made(lanes, size, |x| {
                let window = MovingWindow::new(x[0].shape(), &self.size, &x[1], &self.axes)?;
                let mut inputs: Inputs = smallvec![Array::apply1(window.cut, smallvec![x[0].clone()])?];
                inputs.extend(window.indices);
                permute(&Array::apply1(Gather { axes: self.axes.clone(), at: 0 }, inputs)?, window.order)
            });
        }
        let op = DynamicSlice { axes: moved(&self.axes), size: behind(size, &self.size) };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].spread(size)?, shared_starts(&lanes[1])?])?])
    }
}

/// The starts of all lanes; those that are mapped are empty here.
pub(crate) fn shared_starts(starts: &Lane) -> Result<Array> {
    if starts.mapped { super::full(&[0], 0, Some(Dtype::Int64)) } else { Ok(starts.array.clone()) }
}
