//! Forward mode: the reverse mode, transposed.
//!
//! The vjp is linear in its cotangents `u`; its own vjp by `u` is the jvp. What it computes for the value of the vjp
//! is never asked for, so never evaluated.

use super::trace::{Keeping, tracers};
use super::tree::expect_like;
use super::vjp::{backward, filled, pull_back};
use super::{Outcome, Tree};
use crate::array::Array;
use crate::error::Result;
use crate::ops;

/// The value of `f` at `primals`, and how it changes along `tangents` (`mx.jvp`).
///
/// Tangents have the shapes of the primals and are cast to their dtypes.
///
/// # Errors
/// What `f` returns; tangents that do not fit the primals; ops without a derivative.
pub fn jvp<P: Tree, F: Outcome>(f: impl Fn(&P) -> F, primals: &P, tangents: &P) -> Result<(F::Tree, F::Tree)> {
    let keeping = Keeping::start();
    let inputs = primals.leaves();
    let tangents = tangents.leaves();
    expect_like("jvp", "tangent", &tangents, &inputs)?;
    let points = tracers(&inputs)?;
    let value = f(&primals.with_leaves(points.clone())).outcome()?;
    let outputs = value.leaves();
    let tangents: Vec<Array> =
        tangents.iter().zip(&inputs).map(|(t, x)| ops::astype(t, x.dtype())).collect::<Result<_>>()?;
    let pushed = push(&outputs, &points, &tangents)?;
    drop(keeping);
    let moved = value.with_leaves(filled(pushed, &outputs)?);
    Ok((value, moved))
}

/// Changes of `outputs` when `points` move along `tangents`.
pub(crate) fn push(outputs: &[Array], points: &[Array], tangents: &[Array]) -> Result<Vec<Option<Array>>> {
    let zeros: Vec<Array> = outputs.iter().map(|y| ops::zeros_like(y, None)).collect::<Result<_>>()?;
    let cotangents = tracers(&zeros)?;
    let pulled = pull_back(outputs, cotangents.iter().cloned().map(Some).collect(), points, true)?;
    let (grads, along): (Vec<Array>, Vec<Option<Array>>) =
        pulled.into_iter().zip(tangents).filter_map(|(g, t)| Some((g?, Some(t.clone())))).unzip();
    backward(&grads, along, &cotangents)
}
