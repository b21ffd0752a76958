//! Vectorisation: a function of one example applied to a batch, op by op.

use super::program::Program;
use super::trace::Placeholder;
use super::{Lane, Outcome, Tree};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::shape::{self, show};
use crate::{ops, random};

/// Which axis of each array is mapped: one for all, or one (or none) for every array in the order of the tree, or for every
/// argument (part of a tuple, a vector, a map), whose arrays then all have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapAxes {
    /// This axis of every array.
    All(i32),
    /// An axis for each array or for each argument; `None` is shared by all lanes.
    Each(Vec<Option<i32>>),
}

impl From<i32> for MapAxes {
    fn from(axis: i32) -> MapAxes {
        MapAxes::All(axis)
    }
}
impl<const N: usize> From<[Option<i32>; N]> for MapAxes {
    fn from(axes: [Option<i32>; N]) -> MapAxes {
        MapAxes::Each(axes.to_vec())
    }
}
impl From<Vec<Option<i32>>> for MapAxes {
    fn from(axes: Vec<Option<i32>>) -> MapAxes {
        MapAxes::Each(axes)
    }
}

impl MapAxes {
    /// The axis of every array of `tree`.
    fn of(&self, what: &str, tree: &impl Tree) -> Result<Vec<Option<i32>>> {
        let count = tree.leaves().len();
        let axes = match self {
            MapAxes::All(axis) => return Ok(vec![Some(*axis); count]),
            MapAxes::Each(axes) => axes,
        };
        let parts = tree.parts();
        match axes.len() {
            n if n == count => Ok(axes.clone()),
            n if n == parts.len() => {
                Ok(axes.iter().zip(parts).flat_map(|(&axis, n)| std::iter::repeat_n(axis, n)).collect())
            }
            n => {
                let arguments = parts.len();
                Err(Error::value(format!(
                    "[vmap] {n} {what} axes were given for {count} arrays in {arguments} arguments; give one for each of \
                     these or of those"
                )))
            }
        }
    }
}

/// `f` applied to every slice along axis 0 of its arguments, results stacked along axis 0 (`mx.vmap`).
///
/// # Errors
/// The function returned gives errors: as [`vmap_axes`].
pub fn vmap<P: Tree, F: Outcome>(f: impl Fn(&P) -> F) -> impl Fn(&P) -> Result<F::Tree> {
    vmap_axes(f, 0, 0)
}

/// `f` applied to every slice along the axes `inputs` of its arguments, results stacked along the axes `outputs`.
///
/// Inside `f` arrays have no values: eval, item and to_vec are errors there.
///
/// # Errors
/// The function returned gives errors: what `f` returns; axes out of range; sizes that differ; nothing to map.
pub fn vmap_axes<P: Tree, F: Outcome>(
    f: impl Fn(&P) -> F,
    inputs: impl Into<MapAxes>,
    outputs: impl Into<MapAxes>,
) -> impl Fn(&P) -> Result<F::Tree> {
    let (inputs, outputs) = (inputs.into(), outputs.into());
    move |primals| {
        let leaves = primals.leaves();
        let mut size = None;
        let mut lanes = Vec::with_capacity(leaves.len());
        for (i, (a, axis)) in leaves.iter().zip(inputs.of("input", primals)?).enumerate() {
            let Some(axis) = axis else {
                lanes.push(Lane { array: a.clone(), mapped: false });
                continue;
            };
            let named = |e: Error| Error::axis(format!("{}; array {i} has shape {}", e.message(), show(a.shape())));
            let n = a.shape()[shape::axis("vmap", axis, a.ndim()).map_err(named)?];
            if *size.get_or_insert(n) != n {
                return Err(Error::shape(format!(
                    "[vmap] array {i} of shape {} has {n} lanes on axis {axis}, those before it have {}",
                    show(a.shape()),
                    size.unwrap_or(0)
                )));
            }
            lanes.push(Lane { array: ops::moveaxis(a, axis, 0)?, mapped: true });
        }
        let Some(size) = size else {
            return Err(Error::value("[vmap] no array is mapped; at least one needs an axis"));
        };
        let mut tree = None;
        let mapped = map_lanes(&lanes, size, |arrays| {
            let value = f(&primals.with_leaves(arrays)).outcome()?;
            let leaves = value.leaves();
            tree = Some(value);
            Ok(leaves)
        })?;
        let tree = tree.ok_or_else(|| Error::value("[vmap] the function was not called"))?;
        let axes = outputs.of("output", &tree)?;
        let placed = mapped.into_iter().zip(axes).enumerate().map(|(i, (lane, axis))| match axis {
            Some(axis) => {
                let lanes = lane.spread(size)?;
                let named = |e: Error| {
                    let shape = show(lane.shape());
                    Error::axis(format!(
                        "{}; that is output {i}, of shape {shape} before its lanes are stacked",
                        e.message()
                    ))
                };
                shape::axis("vmap", axis, lanes.ndim()).map_err(named)?;
                ops::moveaxis(&lanes, 0, axis)
            }
            None if lane.mapped => {
                Err(Error::value(format!("[vmap] output {i} is given no axis, but it differs between lanes")))
            }
            None => Ok(lane.array),
        });
        Ok(tree.with_leaves(placed.collect::<Result<Vec<_>>>()?))
    }
}

/// `f` of one lane, applied to all.
pub(crate) fn map_lanes(
    lanes: &[Lane],
    size: usize,
    f: impl FnOnce(Vec<Array>) -> Result<Vec<Array>>,
) -> Result<Vec<Lane>> {
    let inner = |lane: &Lane| match lane.mapped {
        true => Placeholder::array("vmap", lane.shape(), lane.array.dtype()),
        false => Ok(lane.array.clone()),
    };
    let traced = random::Traced::start();
    let inner: Vec<Array> = lanes.iter().map(inner).collect::<Result<_>>()?;
    let outputs = f(inner.clone())?;
    drop(traced);
    let mapped = || lanes.iter().zip(&inner).filter(|(lane, _)| lane.mapped);
    let placeholders: Vec<Array> = mapped().map(|(_, a)| a.clone()).collect();
    let (program, captured) = Program::new(&outputs, &placeholders);
    let shared = captured.into_iter().map(|array| Lane { array, mapped: false });
    let values: Vec<Lane> = mapped().map(|(lane, _)| lane.clone()).chain(shared).collect();
    replay(&program, &values, size)
}

/// An op mapped as what it is made of: `f` says so for one lane.
pub(crate) fn map_made(lanes: &[Lane], size: usize, f: impl FnOnce(&[Array]) -> Result<Array>) -> Result<Vec<Array>> {
    map_lanes(lanes, size, |arrays| Ok(vec![f(&arrays)?]))?.iter().map(|lane| lane.spread(size)).collect()
}

/// The outputs of a program for lanes.
pub(crate) fn replay(program: &Program, values: &[Lane], size: usize) -> Result<Vec<Lane>> {
    program.replay(values, |step, lanes| {
        let mapped = lanes.iter().any(|l| l.mapped);
        let outputs = if mapped {
            step.op.vmap(lanes, size)?
        } else {
            Array::apply(step.op.clone(), lanes.iter().map(|l| l.array.clone()).collect())?.into_vec()
        };
        Ok(outputs.into_iter().map(|array| Lane { array, mapped }).collect())
    })
}
