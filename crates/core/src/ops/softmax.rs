//! Softmax and log-sum-exp: over the last axis in a kernel, over other axes through a transposition.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::{Rule, astype, expect, layout_last, permute, reshape_to};
use crate::shape::{self, Axes, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// The shape of the only input: rows of real floating numbers.
fn rows(op: &str, inputs: &[Array]) -> Result<Shape> {
    let shape = expect::only(op, inputs)?;
    expect::fit(op, !shape.is_empty(), inputs)?;
    expect::dtype(op, &inputs[0], inputs[0].dtype().is_floating())?;
    Ok(shape)
}

/// `exp(x - max) / sum(exp(x - max))` along the last axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Softmax;

impl Rule for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(rows("softmax", inputs)?, inputs[0].dtype())])
    }
}

/// Softmax over `axes` jointly (`mx.softmax`), computed in f32 (f64 for float64); integers give float32. A row of -inf
/// is NaN.
///
/// # Errors
/// Axes out of range or named twice.
pub fn softmax(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let axes = shape::axes("softmax", &axes.into(), a.ndim())?;
    let a = astype(a, a.dtype().to_inexact())?;
    if a.dtype().is_complex() {
        return complex(&a, &axes);
    }
    if axes.is_empty() {
        return super::ones_like(&a, None);
    }
    if axes.as_slice() == [a.ndim() - 1] {
        return Array::apply1(Softmax, smallvec![a]);
    }
    let rows = Array::apply1(Softmax, smallvec![layout_last("softmax", &a, &axes)?])?;
    // Back: unfold the joined axis, then undo the permutation.
    let order: SmallVec<[usize; 4]> = (0..a.ndim()).filter(|i| !axes.contains(i)).chain(axes.iter().copied()).collect();
    let unfolded: Shape = order.iter().map(|&i| a.shape()[i]).collect();
    let mut back: SmallVec<[usize; 4]> = SmallVec::from_elem(0, a.ndim());
    order.iter().enumerate().for_each(|(at, &axis)| back[axis] = at);
    permute(&reshape_to(&rows, unfolded)?, back)
}

fn complex(a: &Array, axes: &[usize]) -> Result<Array> {
    let list: Vec<i32> = axes.iter().map(|&i| i as i32).collect();
    let e = super::exp(&super::subtract(a, super::max(a, list.clone(), true)?)?)?;
    super::divide(&e, super::sum(&e, list, true)?)
}

/// `max + ln(sum(exp(x - max)))` along the last axis, which stays with size 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LogSumExp;

impl Rule for LogSumExp {
    fn name(&self) -> &'static str {
        "logsumexp"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let mut shape = rows("logsumexp", inputs)?;
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

/// `ln(sum(exp(a)))` over `axes` without overflow (`mx.logsumexp`); integers give float32. All -inf gives -inf.
///
/// # Errors
/// Axes out of range or named twice.
pub fn logsumexp(a: &Array, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
    let axes = shape::axes("logsumexp", &axes.into(), a.ndim())?;
    let a = astype(a, a.dtype().to_inexact())?;
    let mut kept_shape: Shape = a.shape().into();
    axes.iter().for_each(|&i| kept_shape[i] = 1);
    let kept = if a.dtype().is_complex() {
        let list: Vec<i32> = axes.iter().map(|&i| i as i32).collect();
        let top = super::max(&a, list.clone(), true)?;
        let total = super::sum(&super::exp(&super::subtract(&a, &top)?)?, list, true)?;
        super::add(super::log(&total)?, top)?
    } else if axes.is_empty() {
        a.clone()
    } else {
        reshape_to(&Array::apply1(LogSumExp, smallvec![layout_last("logsumexp", &a, &axes)?])?, kept_shape)?
    };
    if keepdims { Ok(kept) } else { super::view::drop_axes(&kept, &axes) }
}

/// `logsumexp(logits) - logits[target]` along the last axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CrossEntropy;

impl Rule for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        let (logits, targets) = (&inputs[0], &inputs[1]);
        expect::dtype(self.name(), logits, logits.dtype().is_floating())?;
        expect::dtype(self.name(), targets, targets.dtype() == Dtype::Int64)?;
        match logits.shape().split_last() {
            Some((&classes, lead)) if classes > 0 && lead == targets.shape() => {}
            _ => {
                let (l, t) = (show(logits.shape()), show(targets.shape()));
                let text = format!("[cross_entropy] logits of shape {l} do not fit targets of shape {t}");
                return Err(Error::shape(text));
            }
        }
        Ok(smallvec![Aval::new(targets.shape(), Dtype::Float32)])
    }
}

impl Array {
    /// Softmax; see [`softmax`].
    #[track_caller]
    pub fn softmax(&self, axes: impl Into<Axes>) -> Array {
        crate::or_panic(softmax(self, axes))
    }
    /// Log of the sum of exponentials; see [`logsumexp`].
    #[track_caller]
    pub fn logsumexp(&self, axes: impl Into<Axes>, keepdims: bool) -> Array {
        crate::or_panic(logsumexp(self, axes, keepdims))
    }
}

/// Halves in f32: a rounded exponent is wrong by its own size.
fn wide(a: &Array) -> Result<Array> {
    astype(a, if a.dtype().is_half() { Dtype::Float32 } else { a.dtype() })
}

impl Transform for Softmax {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, y) = (wide(&at.cotangent(0)?)?, wide(&at.outputs[0])?);
        let mean = super::sum(&super::multiply(&g, &y)?, -1, true)?;
        Ok(at.first(super::multiply(&y, super::subtract(&g, &mean)?)?))
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(Softmax, smallvec![lanes[0].array.clone()])?])
    }
}

impl Transform for LogSumExp {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x) = (wide(&at.cotangent(0)?)?, wide(&at.inputs[0])?);
        let y = if at.inputs[0].dtype().is_half() {
            Array::apply1(LogSumExp, smallvec![x.clone()])?
        } else {
            at.outputs[0].clone()
        };
        // Where all are -inf none has a share.
        let y = super::select(&super::equal(&y, f64::NEG_INFINITY)?, 0, &y)?;
        Ok(at.first(super::multiply(&g, super::exp(&super::subtract(&x, &y)?)?)?))
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(LogSumExp, smallvec![lanes[0].array.clone()])?])
    }
}

impl Transform for CrossEntropy {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let column = |a: &Array| super::expand_dims(a, -1);
        let (g, y, target) = (column(&at.cotangent(0)?)?, column(&at.outputs[0])?, column(&at.inputs[1])?);
        let x = wide(&at.inputs[0])?;
        // The loss and the target's logit give the log of the sum back: no second pass over the logits to find it. The
        // target's own probability less 1 is e^-loss - 1.
        let total = super::add(&y, super::take_along_axis(&x, &target, -1)?)?;
        let p = super::multiply(&super::exp(&super::subtract(&x, &total)?)?, &g)?;
        let own = super::multiply(&super::expm1(&super::negative(&y)?)?, &g)?;
        Ok(at.first(super::put_along_axis(&p, &target, &own, -1)?))
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(CrossEntropy, smallvec![lanes[0].spread(size)?, lanes[1].spread(size)?])?])
    }
}
