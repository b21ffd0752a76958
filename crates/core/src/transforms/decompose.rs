//! Ops with a kernel that are also a formula in other ops. Rules that nobody wrote by hand come from the formula, and
//! a device without the kernel can compute it.

use super::trace::tracers;
use super::vjp::backward;
use super::vmap::map_lanes;
use super::{Grads, Lane, Site, behind};
use crate::array::Array;
use crate::error::Result;
use crate::ops::{self, Op, Rule};

/// What the op computes, in other ops.
pub trait Decompose: Rule {
    /// The outputs for these inputs, equal to the kernel's up to rounding; it reads no values.
    ///
    /// # Errors
    /// None for the inputs of a valid node.
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>>;
}

/// The gradients of a node through a formula of its outputs.
pub(crate) fn pull(at: &Site<'_>, formula: impl FnOnce(&[Array]) -> Result<Vec<Array>>) -> Result<Grads> {
    let places: Vec<usize> =
        (0..at.inputs.len()).filter(|&i| at.wanted[i] && at.inputs[i].dtype().is_inexact()).collect();
    let points = tracers(&places.iter().map(|&i| at.inputs[i].clone()).collect::<Vec<_>>())?;
    let mut inputs = at.inputs.to_vec();
    places.iter().zip(&points).for_each(|(&i, p)| inputs[i] = p.clone());
    let pulled = backward(&formula(&inputs)?, at.cotangents.to_vec(), &points)?;
    let mut grads = at.none();
    places.iter().zip(pulled).for_each(|(&i, g)| grads[i] = g);
    Ok(grads)
}

/// All lanes at once, by the formula.
pub(crate) fn map_formula(op: &impl Decompose, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
    map_lanes(lanes, size, |inputs| op.decompose(&inputs))?.iter().map(|l| l.spread(size)).collect()
}

/// One lane after the other: for what no kernel takes a batch of.
pub(crate) fn map_each(op: &Op, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
    if size == 0 {
        let one: Vec<Array> =
            lanes.iter().map(|l| ops::full(l.shape(), 0, Some(l.array.dtype()))).collect::<Result<_>>()?;
        return op.infer(&one)?.iter().map(|o| ops::full(&behind(0, &o.shape), 0, Some(o.dtype))).collect();
    }
    let mut columns: Vec<Vec<Array>> = Vec::new();
    for l in 0..size {
        let lane = |lane: &Lane| match lane.mapped {
            true => ops::squeeze(&ops::slice(&lane.array, &[(Some(l as i64), Some(l as i64 + 1), 1)])?, 0),
            false => Ok(lane.array.clone()),
        };
        let outputs = Array::apply(op.clone(), lanes.iter().map(lane).collect::<Result<_>>()?)?;
        columns.resize(outputs.len(), Vec::new());
        columns.iter_mut().zip(outputs).for_each(|(column, a)| column.push(a));
    }
    columns.iter().map(|column| ops::stack(column, 0)).collect()
}

/// The lanes joined with their axis `axis`: lane 0's part comes first.
pub(crate) fn fold(lane: &Lane, size: usize, axis: usize) -> Result<Array> {
    let mut shape = crate::shape::Shape::from(lane.shape());
    shape[axis] *= size;
    ops::reshape_to(&ops::moveaxis(&lane.spread(size)?, 0, axis as i32)?, shape)
}

/// Undoes [`fold`].
pub(crate) fn unfold(a: &Array, size: usize, axis: usize) -> Result<Array> {
    let mut shape = crate::shape::Shape::from(a.shape());
    shape[axis] /= size.max(1);
    shape.insert(axis, size);
    ops::moveaxis(&ops::reshape_to(a, shape)?, axis as i32, 0)
}
