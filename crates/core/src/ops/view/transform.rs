//! Views under transforms: what repeats is summed, what moves moves back.

use super::{AsStrided, BitView, Broadcast, Contiguous, Depends, Reshape, Slice, StopGradient, Transpose};
use super::{broadcast_to, permute, reshape_to};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::scatter::{Combine, SliceUpdate};
use crate::ops::{self, join};
use crate::shape::{Axes, Shape};
use crate::transforms::{Grads, Lane, Site, Transform, behind};
use smallvec::{SmallVec, smallvec};

fn one(a: Result<Array>) -> Result<Vec<Array>> {
    Ok(vec![a?])
}

/// `g` summed over the axes along which an array of `shape` was repeated.
pub(crate) fn sum_to(g: &Array, shape: &[usize]) -> Result<Array> {
    let lead = g.ndim() - shape.len();
    let repeated = |i: &usize| *i < lead || (shape[i - lead] == 1 && g.shape()[*i] != 1);
    let axes: Vec<i32> = (0..g.ndim()).filter(repeated).map(|i| i as i32).collect();
    let sum = if axes.is_empty() { g.clone() } else { ops::sum(g, Axes::from(axes), true)? };
    reshape_to(&sum, shape.into())
}

impl Transform for Broadcast {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(sum_to(&at.cotangent(0)?, at.inputs[0].shape())?)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let mut shape: Shape = SmallVec::from_elem(1, 1 + self.shape.len() - lanes[0].shape().len());
        shape[0] = size;
        shape.extend_from_slice(lanes[0].shape());
        one(broadcast_to(&reshape_to(&lanes[0].array, shape)?, &behind(size, &self.shape)))
    }
}

impl Transform for Reshape {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(reshape_to(&at.cotangent(0)?, at.inputs[0].shape().into())?)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        one(reshape_to(&lanes[0].array, behind(size, &self.shape)))
    }
}

impl Transform for Transpose {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let mut back: SmallVec<[usize; 4]> = SmallVec::from_elem(0, self.order.len());
        self.order.iter().enumerate().for_each(|(i, &o)| back[o] = i);
        Ok(smallvec![Some(permute(&at.cotangent(0)?, back)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        let order = std::iter::once(0).chain(self.order.iter().map(|&i| i + 1)).collect();
        one(permute(&lanes[0].array, order))
    }
}

impl Slice {
    /// The same window of every lane.
    pub(crate) fn of_lanes(&self, size: usize) -> Slice {
        Slice {
            start: std::iter::once(0).chain(self.start.iter().copied()).collect(),
            step: std::iter::once(1).chain(self.step.iter().copied()).collect(),
            shape: behind(size, &self.shape),
        }
    }
}

impl Transform for Slice {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, shape) = (at.cotangent(0)?, at.inputs[0].shape());
        if self.step.iter().all(|&s| s == 1) {
            let hi = (0..shape.len()).map(|i| shape[i] - self.start[i] - self.shape[i]).collect();
            let pad = join::Pad { lo: self.start.clone(), hi };
            return Ok(smallvec![Some(Array::apply1(pad, smallvec![g.clone(), ops::full(&[], 0, Some(g.dtype()))?])?)]);
        }
        let zeros = ops::full(shape, 0, Some(g.dtype()))?;
        let update = SliceUpdate { window: self.clone(), combine: Combine::Set };
        Ok(smallvec![Some(Array::apply1(update, smallvec![zeros, g])?)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        one(Array::apply1(self.of_lanes(size), smallvec![lanes[0].array.clone()]))
    }
}

impl Transform for AsStrided {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, a) = (at.cotangent(0)?, &at.inputs[0]);
        let count = a.size();
        let places = Array::apply1(self.clone(), smallvec![ops::arange(0, count, 1, Some(Dtype::Int64))?])?;
        let zeros = ops::full(&[count], 0, Some(g.dtype()))?;
        let places = reshape_to(&places, smallvec![g.size()])?;
        let sums = ops::index_combine(&zeros, &places, &reshape_to(&g, smallvec![g.size()])?, Combine::Sum)?;
        Ok(smallvec![Some(reshape_to(&sums, a.shape().into())?)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let each: usize = lanes[0].shape().iter().product();
        let strides = std::iter::once(each as isize).chain(self.strides.iter().copied()).collect();
        let op = AsStrided { shape: behind(size, &self.shape), strides, offset: self.offset };
        one(Array::apply1(op, smallvec![lanes[0].array.clone()]))
    }
}

impl Transform for BitView {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        // Bits have no derivative.
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        one(Array::apply1(self.clone(), smallvec![lanes[0].array.clone()]))
    }
}

impl Transform for Contiguous {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(at.cotangent(0)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        one(Array::apply1(self.clone(), smallvec![lanes[0].array.clone()]))
    }
}

impl Transform for StopGradient {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        one(Array::apply1(self.clone(), smallvec![lanes[0].array.clone()]))
    }
}

impl Transform for Depends {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(at.first(at.cotangent(0)?))
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let rest = lanes[1..].iter().map(|l| l.array.clone());
        let inputs = std::iter::once(lanes[0].spread(size)?).chain(rest).collect();
        one(Array::apply1(self.clone(), inputs))
    }
}
