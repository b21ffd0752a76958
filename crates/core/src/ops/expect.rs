//! What inference asks of inputs. It asks all that a kernel counts on: ops come from functions that settle shapes and
//! dtypes, and from files that anyone may have written.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::shape::{Shape, show};

/// As many inputs as the op takes.
pub(crate) fn count(op: &str, inputs: &[Array], count: usize) -> Result<()> {
    if inputs.len() == count {
        return Ok(());
    }
    Err(Error::value(format!("[{op}] {} inputs were given, it takes {count}", inputs.len())))
}

/// At least so many inputs.
pub(crate) fn at_least(op: &str, inputs: &[Array], least: usize) -> Result<()> {
    if inputs.len() >= least {
        return Ok(());
    }
    Err(Error::value(format!("[{op}] {} inputs were given, it takes at least {least}", inputs.len())))
}

/// An axis of `shape`.
pub(crate) fn axis(op: &str, axis: usize, shape: &[usize]) -> Result<()> {
    if axis < shape.len() {
        return Ok(());
    }
    Err(Error::axis(format!("[{op}] axis {axis} is out of range for shape {}", show(shape))))
}

/// Distinct axes of an array with `ndim` axes.
pub(crate) fn distinct(op: &str, axes: &[usize], ndim: usize) -> Result<()> {
    if axes.iter().enumerate().all(|(i, &axis)| axis < ndim && !axes[..i].contains(&axis)) {
        return Ok(());
    }
    Err(Error::axis(format!("[{op}] {axes:?} are not distinct axes of an array with {ndim} dimensions")))
}

/// A dtype for which `fits` holds.
pub(crate) fn dtype(op: &str, a: &Array, fits: bool) -> Result<()> {
    if fits {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] {} is not a type it takes here", a.dtype())))
}

/// One dtype for all.
pub(crate) fn alike(op: &str, inputs: &[Array]) -> Result<()> {
    match inputs.iter().find(|a| a.dtype() != inputs[0].dtype()) {
        None => Ok(()),
        Some(a) => Err(Error::dtype(format!("[{op}] inputs of {} and {}", inputs[0].dtype(), a.dtype()))),
    }
}

/// Attributes that fit the shapes.
pub(crate) fn fit(op: &str, fits: bool, inputs: &[Array]) -> Result<()> {
    if fits {
        return Ok(());
    }
    let shapes: Vec<String> = inputs.iter().map(|a| show(a.shape())).collect();
    Err(Error::shape(format!("[{op}] it does not fit inputs of shapes {}", shapes.join(", "))))
}

/// The shape of an output like the only input.
pub(crate) fn only(op: &str, inputs: &[Array]) -> Result<Shape> {
    count(op, inputs, 1)?;
    Ok(inputs[0].shape().into())
}
