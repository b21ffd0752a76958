//! Other looks at the same memory: reshape, transpose, slice, broadcast and their kin.
//!
//! A view costs no copy where strides can express it; where they cannot, the scheduler makes the input row-major
//! first. [`ViewRule::look`] is that decision.

mod raw;
mod transform;

pub use raw::{AsStrided, BitView, as_strided, view};
pub(crate) use transform::sum_to;

use crate::array::Array;
use crate::buffer::Tensor;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{Op, Rule, expect};
use crate::shape::{self, Shape, Strides, show};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// A rule that only changes how memory is seen.
pub trait ViewRule: Rule {
    /// The first input seen through this op; `None` when it must be row-major for that and is not.
    fn look(&self, input: &Tensor) -> Option<Tensor>;
}

fn one(shape: impl Into<Shape>, dtype: Dtype) -> Result<Avals> {
    Ok(smallvec![Aval::new(shape, dtype)])
}

// ------------------------------------------------------------------ broadcast

/// Axes repeated (stride 0) to reach `shape`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Broadcast {
    /// The wider shape.
    pub shape: Shape,
}

impl Rule for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast_to"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let from = expect::only("broadcast_to", inputs)?;
        let fits = shape::broadcast("broadcast_to", &from, &self.shape)? == self.shape;
        expect::fit("broadcast_to", fits, inputs)?;
        one(self.shape.clone(), inputs[0].dtype())
    }
}

impl ViewRule for Broadcast {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        let lead = self.shape.len() - t.shape.len();
        let mut strides: Strides = SmallVec::from_elem(0, self.shape.len());
        for i in 0..t.shape.len() {
            strides[lead + i] = if t.shape[i] == 1 && self.shape[lead + i] != 1 { 0 } else { t.strides[i] };
        }
        Some(Tensor { shape: self.shape.clone(), strides, ..t.clone() })
    }
}

/// `a` repeated along new leading axes and axes of size 1 (`mx.broadcast_to`).
///
/// # Errors
/// A shape error when `a` does not broadcast to exactly `shape`.
pub fn broadcast_to(a: &Array, shape: &[usize]) -> Result<Array> {
    if a.shape() == shape {
        return Ok(a.clone());
    }
    shape::elements("broadcast_to", shape)?;
    if shape::broadcast("broadcast_to", a.shape(), shape)?.as_slice() != shape {
        let (from, to) = (show(a.shape()), show(shape));
        return Err(Error::shape(format!("[broadcast_to] shape {from} does not broadcast to {to}")));
    }
    if let Op::Full(full) = &a.node.op {
        return Ok(super::full_of(full.value, full.dtype, shape));
    }
    Array::apply1(Broadcast { shape: shape.into() }, smallvec![a.clone()])
}

// ------------------------------------------------------------------ reshape

/// The same elements in row-major order under another shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reshape {
    /// The new shape.
    pub shape: Shape,
}

impl Rule for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let from = expect::only("reshape", inputs)?;
        let fits = shape::elements("reshape", &self.shape)? == shape::elements("reshape", &from)?;
        expect::fit("reshape", fits, inputs)?;
        one(self.shape.clone(), inputs[0].dtype())
    }
}

impl ViewRule for Reshape {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        let strides = reshape_strides(t, &self.shape)?;
        Some(Tensor { shape: self.shape.clone(), strides, ..t.clone() })
    }
}

/// Strides that show `t` as `shape` without a copy, if there are any.
fn reshape_strides(t: &Tensor, shape: &[usize]) -> Option<Strides> {
    if t.size() == 0 || t.is_row_contiguous() {
        return Some(shape::row_strides(shape));
    }
    // Runs of input axes that are evenly spaced behave as one axis; each run must be a product of output axes.
    let axes: SmallVec<[(usize, isize); 4]> =
        t.shape.iter().zip(&t.strides).filter(|&(&d, _)| d != 1).map(|(&d, &s)| (d, s)).collect();
    let mut out: Strides = SmallVec::from_elem(1, shape.len());
    let mut o = shape.len();
    let mut i = axes.len();
    while i > 0 {
        let (mut run, stride) = axes[i - 1];
        i -= 1;
        while i > 0 && axes[i - 1].1 == stride * run as isize {
            run *= axes[i - 1].0;
            i -= 1;
        }
        let mut next = stride;
        while run > 1 {
            if o == 0 {
                return None;
            }
            o -= 1;
            if !run.is_multiple_of(shape[o]) {
                return None;
            }
            out[o] = next;
            next *= shape[o] as isize;
            run /= shape[o];
        }
    }
    Some(out)
}

/// The elements of `a` in row-major order under another shape (`mx.reshape`); one size may be -1 and is derived.
///
/// # Errors
/// A shape error when the number of elements differs.
pub fn reshape<D: Copy + TryInto<i64>>(a: &Array, shape: &[D]) -> Result<Array> {
    let dims: SmallVec<[i64; 4]> = shape.iter().map(|&d| d.try_into().unwrap_or(i64::MIN)).collect();
    let shape = resolve("reshape", a.size(), &dims)?;
    reshape_to(a, shape)
}

pub(crate) fn reshape_to(a: &Array, shape: Shape) -> Result<Array> {
    if a.shape() == shape.as_slice() {
        return Ok(a.clone());
    }
    if let Op::Full(full) = &a.node.op {
        return Ok(super::full_of(full.value, full.dtype, &shape));
    }
    Array::apply1(Reshape { shape }, smallvec![a.clone()])
}

/// Replaces a -1 by the size that makes the product `size`.
pub(crate) fn resolve(op: &str, size: usize, dims: &[i64]) -> Result<Shape> {
    let text = || show_signed(dims);
    let fail = || Error::shape(format!("[{op}] an array of {size} elements cannot have shape {}", text()));
    let mut known: usize = 1;
    let mut hole = None;
    for (i, &d) in dims.iter().enumerate() {
        match d {
            -1 if hole.is_none() => hole = Some(i),
            -1 => return Err(Error::shape(format!("[{op}] shape {} has more than one -1", text()))),
            d => known = usize::try_from(d).ok().and_then(|d| known.checked_mul(d)).ok_or_else(fail)?,
        }
    }
    let mut shape: Shape = dims.iter().map(|&d| d.max(0) as usize).collect();
    if let Some(i) = hole {
        if known == 0 || !size.is_multiple_of(known) {
            return Err(fail());
        }
        shape[i] = size / known;
    } else if known != size {
        return Err(fail());
    }
    Ok(shape)
}

fn show_signed(dims: &[i64]) -> String {
    let list: Vec<String> = dims.iter().map(i64::to_string).collect();
    format!("({})", list.join(","))
}

/// Removes axes of size 1.
pub(crate) fn drop_axes(a: &Array, axes: &[usize]) -> Result<Array> {
    let shape = a.shape().iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, &d)| d).collect();
    reshape_to(a, shape)
}

// ------------------------------------------------------------------ transpose

/// Axes in another order: output axis `i` is input axis `order[i]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transpose {
    /// A permutation.
    pub order: SmallVec<[usize; 4]>,
}

impl Rule for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let shape = expect::only("transpose", inputs)?;
        expect::distinct("transpose", &self.order, shape.len())?;
        expect::fit("transpose", self.order.len() == shape.len(), inputs)?;
        one(self.order.iter().map(|&i| shape[i]).collect::<Shape>(), inputs[0].dtype())
    }
}

impl ViewRule for Transpose {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        Some(Tensor {
            shape: self.order.iter().map(|&i| t.shape[i]).collect(),
            strides: self.order.iter().map(|&i| t.strides[i]).collect(),
            ..t.clone()
        })
    }
}

/// Axes of `a` in the order `axes`, or all reversed (`mx.transpose`).
///
/// # Errors
/// An axis error when `axes` is not a permutation of the array's axes.
pub fn transpose(a: &Array, axes: Option<&[i32]>) -> Result<Array> {
    let order: SmallVec<[usize; 4]> = match axes {
        None => (0..a.ndim()).rev().collect(),
        Some(axes) => {
            if axes.len() != a.ndim() {
                let (n, m) = (axes.len(), a.ndim());
                return Err(Error::axis(format!("[transpose] {n} axes given for an array with {m} dimensions")));
            }
            let mut order: SmallVec<[usize; 4]> = SmallVec::new();
            for &axis in axes {
                let axis = shape::axis("transpose", axis, a.ndim())?;
                if order.contains(&axis) {
                    return Err(Error::axis(format!("[transpose] axis {axis} is named twice in {axes:?}")));
                }
                order.push(axis);
            }
            order
        }
    };
    permute(a, order)
}

pub(crate) fn permute(a: &Array, order: SmallVec<[usize; 4]>) -> Result<Array> {
    if order.iter().enumerate().all(|(i, &o)| i == o) {
        return Ok(a.clone());
    }
    Array::apply1(Transpose { order }, smallvec![a.clone()])
}

/// `a` with `axes` moved behind the others and joined into one.
pub(crate) fn layout_last(op: &str, a: &Array, axes: &[usize]) -> Result<Array> {
    let kept = (0..a.ndim()).filter(|i| !axes.contains(i));
    let order: SmallVec<[usize; 4]> = kept.clone().chain(axes.iter().copied()).collect();
    let mut shape: Shape = kept.map(|i| a.shape()[i]).collect();
    let joined: Shape = axes.iter().map(|&i| a.shape()[i]).collect();
    shape.push(shape::elements(op, &joined)?);
    reshape_to(&permute(a, order)?, shape)
}

// ------------------------------------------------------------------ slice

/// Elements `start`, `start + step`, ... along each axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// First index of each axis.
    pub start: SmallVec<[usize; 4]>,
    /// Step of each axis; negative runs backwards.
    pub step: SmallVec<[isize; 4]>,
    /// Sizes of the result.
    pub shape: Shape,
}

impl Rule for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let from = expect::only("slice", inputs)?;
        expect::fit("slice", self.lies_within(&from), inputs)?;
        one(self.shape.clone(), inputs[0].dtype())
    }
}

impl Slice {
    /// Whether every element it names is one of an array of `shape`.
    pub(crate) fn lies_within(&self, shape: &[usize]) -> bool {
        let inside = |i: usize| {
            let (start, steps) = (self.start[i] as i128, (self.shape[i] as i128 - 1) * self.step[i] as i128);
            self.shape[i] == 0 || (start < shape[i] as i128 && (0..shape[i] as i128).contains(&(start + steps)))
        };
        let n = shape.len();
        [self.start.len(), self.step.len(), self.shape.len()] == [n; 3] && (0..n).all(inside)
    }
}

impl ViewRule for Slice {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        let mut offset = t.offset as isize;
        let mut strides = t.strides.clone();
        if !self.shape.contains(&0) {
            for i in 0..strides.len() {
                offset += self.start[i] as isize * t.strides[i] * t.dtype.size() as isize;
                strides[i] *= self.step[i];
            }
        }
        Some(Tensor { offset: offset as usize, shape: self.shape.clone(), strides, ..t.clone() })
    }
}

/// `a[start:stop:step]` on every axis, with Python's rules: negative bounds count from the end, bounds clip, steps may
/// be negative (then `None` bounds mean the ends of the array in that direction).
///
/// # Errors
/// A value error for a step of 0 or a wrong number of axes.
pub fn slice(a: &Array, ranges: &[(Option<i64>, Option<i64>, i64)]) -> Result<Array> {
    if ranges.len() > a.ndim() {
        return Err(Error::index(format!("[slice] {} ranges for an array of shape {}", ranges.len(), show(a.shape()))));
    }
    let mut op = Slice { start: SmallVec::new(), step: SmallVec::new(), shape: SmallVec::new() };
    for (i, &n) in a.shape().iter().enumerate() {
        let (start, stop, step) = ranges.get(i).copied().unwrap_or((None, None, 1));
        let (start, len) = clip_range(start, stop, step, n)?;
        op.start.push(start);
        op.step.push(if len <= 1 { 1 } else { step as isize });
        op.shape.push(len);
    }
    if op.shape.as_slice() == a.shape() && op.step.iter().all(|&s| s == 1) {
        return Ok(a.clone());
    }
    Array::apply1(op, smallvec![a.clone()])
}

/// Python's slice: first index and number of elements.
pub(crate) fn clip_range(start: Option<i64>, stop: Option<i64>, step: i64, n: usize) -> Result<(usize, usize)> {
    if step == 0 {
        return Err(Error::value("[slice] a step of 0"));
    }
    let n = n as i64;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clip = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(low, high);
    let first = start.map_or(if step > 0 { low } else { high }, clip);
    let last = stop.map_or(if step > 0 { high } else { low }, clip);
    let span = if step > 0 { last - first } else { first - last };
    let len = if span <= 0 { 0 } else { (span - 1) / step.saturating_abs() + 1 };
    Ok((if len == 0 { 0 } else { first as usize }, len as usize))
}

// ------------------------------------------------------------------ layouts

/// Row-major in memory (or column-major, when allowed); a copy only where needed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contiguous {
    /// Whether column-major is good enough.
    pub allow_col_major: bool,
}

impl Rule for Contiguous {
    fn name(&self) -> &'static str {
        "contiguous"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        one(expect::only("contiguous", inputs)?, inputs[0].dtype())
    }
}

impl ViewRule for Contiguous {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        (t.is_row_contiguous() || (self.allow_col_major && t.is_col_contiguous())).then(|| t.clone())
    }
}

/// `a` laid out row-major, copied only when it is not (`mx.contiguous`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn contiguous(a: &Array, allow_col_major: bool) -> Result<Array> {
    Array::apply1(Contiguous { allow_col_major }, smallvec![a.clone()])
}

// ------------------------------------------------------------------ markers

/// The input, without a gradient.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StopGradient;

impl Rule for StopGradient {
    fn name(&self) -> &'static str {
        "stop_gradient"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        one(expect::only("stop_gradient", inputs)?, inputs[0].dtype())
    }
}

impl ViewRule for StopGradient {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        Some(t.clone())
    }
}

/// `a`, through which no gradient flows.
///
/// # Errors
/// None today; `Result` like every op.
pub fn stop_gradient(a: &Array) -> Result<Array> {
    Array::apply1(StopGradient, smallvec![a.clone()])
}

/// The first input, computed after the others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Depends;

impl Rule for Depends {
    fn name(&self) -> &'static str {
        "depends"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::at_least("depends", inputs, 1)?;
        one(inputs[0].shape(), inputs[0].dtype())
    }
}

impl ViewRule for Depends {
    fn look(&self, t: &Tensor) -> Option<Tensor> {
        Some(t.clone())
    }
}

/// `inputs`, each computed only after all of `dependencies` (`mx.depends`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn depends(inputs: &[Array], dependencies: &[Array]) -> Result<Vec<Array>> {
    let after = |a: &Array| {
        let mut all = smallvec![a.clone()];
        all.extend(dependencies.iter().cloned());
        Array::apply1(Depends, all)
    };
    inputs.iter().map(after).collect()
}

impl Op {
    /// The first input seen through this op, for view ops; `None` when it must be made row-major first.
    pub fn look(&self, input: &Tensor) -> Option<Tensor> {
        match self {
            Op::Broadcast(v) => v.look(input),
            Op::Reshape(v) => v.look(input),
            Op::Transpose(v) => v.look(input),
            Op::Slice(v) => v.look(input),
            Op::AsStrided(v) => v.look(input),
            Op::BitView(v) => v.look(input),
            Op::Contiguous(v) => v.look(input),
            Op::StopGradient(v) => v.look(input),
            Op::Depends(v) => v.look(input),
            _ => None,
        }
    }
}

impl Array {
    /// Another shape; see [`reshape`].
    #[track_caller]
    pub fn reshape<D: Copy + TryInto<i64>>(&self, shape: &[D]) -> Array {
        crate::or_panic(reshape(self, shape))
    }

    /// Axes in another order; see [`transpose`].
    #[track_caller]
    pub fn transpose(&self, axes: &[i32]) -> Array {
        crate::or_panic(transpose(self, Some(axes)))
    }

    /// All axes reversed.
    pub fn t(&self) -> Array {
        crate::or_panic(transpose(self, None))
    }

    /// Repeated to `shape`; see [`broadcast_to`].
    #[track_caller]
    pub fn broadcast_to(&self, shape: &[usize]) -> Array {
        crate::or_panic(broadcast_to(self, shape))
    }

    /// The bits as another dtype; see [`view`].
    #[track_caller]
    pub fn view(&self, dtype: Dtype) -> Array {
        crate::or_panic(view(self, dtype))
    }
}
