//! Reverse mode: the tape walked backwards.

use super::trace::{Keeping, Tape, tracers};
use super::tree::expect_like;
use super::{Outcome, Site, Tree};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops;
use crate::shape::show;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Gradients of `tracers`: `cotangents` (one an output) pulled back through everything between. `None` for zero.
pub(crate) fn backward(
    outputs: &[Array],
    cotangents: Vec<Option<Array>>,
    tracers: &[Array],
) -> Result<Vec<Option<Array>>> {
    pull_back(outputs, cotangents, tracers, false)
}

/// [`backward`]; with `forward` to be transposed to the forward mode.
pub(crate) fn pull_back(
    outputs: &[Array],
    cotangents: Vec<Option<Array>>,
    tracers: &[Array],
    forward: bool,
) -> Result<Vec<Option<Array>>> {
    let tape = Tape::new(outputs, tracers);
    let mut sums: FxHashMap<(u64, u32), Array> = FxHashMap::default();
    for (output, g) in outputs.iter().zip(cotangents) {
        if let Some(g) = g
            && tape.holds(output)
        {
            add(&mut sums, output, g)?;
        }
    }
    for step in tape.steps.iter().rev() {
        let node = &step.node;
        let count = node.outs.len() as u32;
        let given: SmallVec<[Option<Array>; 1]> = (0..count).map(|index| sums.remove(&(node.id, index))).collect();
        if given.iter().all(Option::is_none) {
            continue;
        }
        let wanted: SmallVec<[bool; 4]> = step.inputs.iter().map(|a| tape.holds(a)).collect();
        let outputs: SmallVec<[Array; 1]> = (0..count).map(|index| Array { node: node.clone(), index }).collect();
        let site = Site { inputs: &step.inputs, outputs: &outputs, cotangents: &given, wanted: &wanted, forward };
        let grads = node.stream.scope(|| node.op.vjp(&site))?;
        debug_assert_eq!(grads.len(), step.inputs.len(), "one gradient an input: {}", node.op.name());
        for ((input, g), wanted) in step.inputs.iter().zip(grads).zip(wanted) {
            let (Some(g), true) = (g, wanted) else { continue };
            if g.shape() != input.shape() {
                let (a, b) = (show(g.shape()), show(input.shape()));
                return Err(Error::shape(format!(
                    "[vjp] the gradient of {} has shape {a}, its input has shape {b}",
                    node.op.name()
                )));
            }
            node.stream.scope(|| add(&mut sums, input, ops::astype(&g, input.dtype())?))?;
        }
    }
    Ok(tracers.iter().map(|t| sums.remove(&(t.node.id, t.index))).collect())
}

fn add(sums: &mut FxHashMap<(u64, u32), Array>, a: &Array, g: Array) -> Result<()> {
    let key = (a.node.id, a.index);
    let g = match sums.remove(&key) {
        Some(sum) => ops::add(&sum, &g)?,
        None => g,
    };
    sums.insert(key, g);
    Ok(())
}

/// The gradients with zeros for `None`.
pub(crate) fn filled(grads: Vec<Option<Array>>, like: &[Array]) -> Result<Vec<Array>> {
    grads.into_iter().zip(like).map(|(g, a)| g.map_or_else(|| ops::zeros_like(a, None), Ok)).collect()
}

/// The value of `f` at `primals`, and `cotangents` pulled back to them (`mx.vjp`).
///
/// Cotangents have the shapes of the outputs and are cast to their dtypes.
///
/// # Errors
/// What `f` returns; cotangents that do not fit the outputs; ops without a derivative.
pub fn vjp<P: Tree, F: Outcome>(f: impl Fn(&P) -> F, primals: &P, cotangents: &F::Tree) -> Result<(F::Tree, P)> {
    let keeping = Keeping::start();
    let inputs = primals.leaves();
    let tracers = tracers(&inputs)?;
    let value = f(&primals.with_leaves(tracers.clone())).outcome()?;
    let outputs = value.leaves();
    let cotangents = cotangents.leaves();
    expect_like("vjp", "cotangent", &cotangents, &outputs)?;
    let cast = cotangents.iter().zip(&outputs).map(|(g, y)| ops::astype(g, y.dtype()).map(Some));
    let grads = backward(&outputs, cast.collect::<Result<_>>()?, &tracers)?;
    drop(keeping);
    Ok((value, primals.with_leaves(filled(grads, &inputs)?)))
}
