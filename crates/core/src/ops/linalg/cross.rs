//! The vector product in three dimensions.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::view::permute;
use crate::ops::{concatenate, moveaxis, multiply, slice, subtract};
use crate::shape::{self, show};

/// Vector product along `axis`, of size 2 or 3 in either operand; a missing third component is 0 (`mx.linalg.cross`).
/// The other axes broadcast.
///
/// # Errors
/// Other sizes; an axis out of range; shapes that do not broadcast.
pub fn cross(a: &Array, b: &Array, axis: i32) -> Result<Array> {
    let op = "linalg.cross";
    let last = |x: &Array| -> Result<Array> {
        let i = shape::axis(op, axis, x.ndim())?;
        if !matches!(x.shape()[i], 2 | 3) {
            let s = show(x.shape());
            return Err(Error::shape(format!("[{op}] the size along axis {axis} is 2 or 3; the shape is {s}")));
        }
        permute(x, (0..x.ndim()).filter(|&d| d != i).chain([i]).collect())
    };
    let (x, y) = (last(a)?, last(b)?);
    let size = |x: &Array| x.shape()[x.ndim() - 1];
    shape::broadcast(op, &x.shape()[..x.ndim() - 1], &y.shape()[..y.ndim() - 1])?;
    let component = |x: &Array, i: usize| -> Result<Option<Array>> {
        if i >= size(x) {
            return Ok(None);
        }
        let mut ranges = vec![(None, None, 1); x.ndim() - 1];
        ranges.push((Some(i as i64), Some(i as i64 + 1), 1));
        slice(x, &ranges).map(Some)
    };
    let minor = |i: usize, j: usize| -> Result<Array> {
        let term = |i: usize, j: usize| match (component(&x, i)?, component(&y, j)?) {
            (Some(p), Some(q)) => multiply(p, q),
            // A zero of the right shape and dtype.
            _ => {
                let (p, q) = (component(&x, 0)?, component(&y, 0)?);
                let all: Vec<Array> = p.into_iter().chain(q).collect();
                crate::ops::zeros_like(&multiply(&all[0], &all[1])?, None)
            }
        };
        subtract(term(i, j)?, term(j, i)?)
    };
    let joined = concatenate(&[minor(1, 2)?, minor(2, 0)?, minor(0, 1)?], -1)?;
    moveaxis(&joined, -1, axis)
}
