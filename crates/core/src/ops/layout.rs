//! Axes merged, split, added, dropped and moved; tiles and rotations. Nothing here is an op of its own: everything
//! is made of views, and copies only where a result cannot be seen in the memory of its input.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::view::{permute, reshape_to, resolve};
use crate::ops::{broadcast_to, concatenate, slice};
use crate::shape::{self, Axes, Shape, show};
use smallvec::{SmallVec, smallvec};

// ------------------------------------------------------------------ merging and splitting axes

/// Axes `start_axis` to `end_axis` (inclusive, clipped to the array) as one (`mx.flatten`); 0-d gives shape (1,).
///
/// # Errors
/// An axis error when the range is empty or outside the array.
pub fn flatten(a: &Array, start_axis: i32, end_axis: i32) -> Result<Array> {
    let n = a.ndim() as i32;
    if n == 0 {
        return reshape_to(a, smallvec![1]);
    }
    let count = |axis: i32| if axis < 0 { axis + n } else { axis };
    let (start, end) = (count(start_axis).max(0), count(end_axis).min(n - 1));
    if start >= n || end < start {
        return Err(Error::axis(format!(
            "[flatten] axes {start_axis} to {end_axis} are no range of axes of an array with {n} dimensions"
        )));
    }
    let (start, end) = (start as usize, end as usize + 1);
    let dims = a.shape();
    let merged = dims[start..end].iter().product();
    reshape_to(a, dims[..start].iter().copied().chain([merged]).chain(dims[end..].iter().copied()).collect())
}

/// One axis as several (`mx.unflatten`); one size may be -1 and is derived.
///
/// # Errors
/// An axis out of range; sizes whose product is not the size of the axis.
pub fn unflatten<D: Copy + TryInto<i64>>(a: &Array, axis: i32, shape: &[D]) -> Result<Array> {
    let axis = shape::axis("unflatten", axis, a.ndim())?;
    if shape.is_empty() {
        return Err(Error::shape("[unflatten] no sizes given for the axis"));
    }
    let dims: SmallVec<[i64; 4]> = shape.iter().map(|&d| d.try_into().unwrap_or(i64::MIN)).collect();
    let split = resolve("unflatten", a.shape()[axis], &dims)?;
    let (before, after) = (&a.shape()[..axis], &a.shape()[axis + 1..]);
    reshape_to(a, before.iter().copied().chain(split).chain(after.iter().copied()).collect())
}

/// Axes of size 1 dropped (`mx.squeeze`): all of them for `()`, else the named ones.
///
/// # Errors
/// An axis out of range or named twice; a named axis whose size is not 1.
pub fn squeeze(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let dims = a.shape();
    let drop = match axes.into() {
        Axes::All => (0..dims.len()).filter(|&i| dims[i] == 1).collect(),
        list => shape::axes("squeeze", &list, dims.len())?,
    };
    if let Some(&i) = drop.iter().find(|&&i| dims[i] != 1) {
        let (size, shape) = (dims[i], show(dims));
        return Err(Error::shape(format!("[squeeze] axis {i} of shape {shape} has size {size}, not 1")));
    }
    super::view::drop_axes(a, &drop)
}

/// New axes of size 1 at the given positions of the result (`mx.expand_dims`).
///
/// # Errors
/// A position outside the result or named twice.
pub fn expand_dims(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let Axes::List(list) = axes.into() else {
        return Err(Error::axis("[expand_dims] the positions of the new axes must be named"));
    };
    let ndim = a.ndim() + list.len();
    let new = shape::axes("expand_dims", &Axes::List(list), ndim)?;
    let mut old = a.shape().iter().copied();
    reshape_to(a, (0..ndim).map(|i| if new.contains(&i) { 1 } else { old.next().unwrap_or(1) }).collect())
}

/// At least one axis: 0-d becomes shape (1,) (`mx.atleast_1d`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn atleast_1d(a: &Array) -> Result<Array> {
    if a.ndim() == 0 { reshape_to(a, smallvec![1]) } else { Ok(a.clone()) }
}

/// At least two axes; new ones stand in front (`mx.atleast_2d`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn atleast_2d(a: &Array) -> Result<Array> {
    match *a.shape() {
        [] => reshape_to(a, smallvec![1, 1]),
        [n] => reshape_to(a, smallvec![1, n]),
        _ => Ok(a.clone()),
    }
}

/// At least three axes: shape (n,) becomes (1,n,1), shape (n,m) becomes (n,m,1) (`mx.atleast_3d`).
///
/// # Errors
/// None today; `Result` like every op.
pub fn atleast_3d(a: &Array) -> Result<Array> {
    match *a.shape() {
        [] => reshape_to(a, smallvec![1, 1, 1]),
        [n] => reshape_to(a, smallvec![1, n, 1]),
        [n, m] => reshape_to(a, smallvec![n, m, 1]),
        _ => Ok(a.clone()),
    }
}

// ------------------------------------------------------------------ moving axes

/// The last two axes exchanged (`mx.matrix_transpose`).
///
/// # Errors
/// An axis error for fewer than two axes.
pub fn matrix_transpose(a: &Array) -> Result<Array> {
    if a.ndim() < 2 {
        return Err(Error::axis(format!("[matrix_transpose] needs two axes; the shape is {}", show(a.shape()))));
    }
    swapaxes(a, -2, -1)
}

/// Two axes exchanged (`mx.swapaxes`).
///
/// # Errors
/// An axis out of range.
pub fn swapaxes(a: &Array, axis1: i32, axis2: i32) -> Result<Array> {
    let (i, j) = (shape::axis("swapaxes", axis1, a.ndim())?, shape::axis("swapaxes", axis2, a.ndim())?);
    let mut order: SmallVec<[usize; 4]> = (0..a.ndim()).collect();
    order.swap(i, j);
    permute(a, order)
}

/// One axis moved to another position, the others in their order (`mx.moveaxis`).
///
/// # Errors
/// An axis out of range.
pub fn moveaxis(a: &Array, source: i32, destination: i32) -> Result<Array> {
    let from = shape::axis("moveaxis", source, a.ndim())?;
    let to = shape::axis("moveaxis", destination, a.ndim())?;
    let mut order: SmallVec<[usize; 4]> = (0..a.ndim()).filter(|&i| i != from).collect();
    order.insert(to, from);
    permute(a, order)
}

// ------------------------------------------------------------------ repeating

/// The shape that all `shapes` broadcast to (`mx.broadcast_shapes`).
///
/// # Errors
/// A shape error when they do not broadcast.
pub fn broadcast_shapes(shapes: &[&[usize]]) -> Result<Shape> {
    shapes.iter().try_fold(Shape::new(), |all, s| shape::broadcast("broadcast_shapes", &all, s))
}

/// Every array broadcast to their common shape (`mx.broadcast_arrays`).
///
/// # Errors
/// A shape error when they do not broadcast.
pub fn broadcast_arrays(arrays: &[Array]) -> Result<Vec<Array>> {
    let mut all = Shape::new();
    for a in arrays {
        all = shape::broadcast("broadcast_arrays", &all, a.shape())?;
    }
    arrays.iter().map(|a| broadcast_to(a, &all)).collect()
}

/// The whole array repeated `reps[i]` times along axis `i` (`mx.tile`); the shorter of shape and `reps` is filled
/// up with ones in front.
///
/// # Errors
/// Overflow of the shape.
pub fn tile(a: &Array, reps: &[usize]) -> Result<Array> {
    let ndim = a.ndim().max(reps.len());
    let filled = |list: &[usize], i: usize| if i + list.len() < ndim { 1 } else { list[i + list.len() - ndim] };
    let (mut split, mut wide, mut out) = (Shape::new(), Shape::new(), Shape::new());
    for i in 0..ndim {
        let (rep, d) = (filled(reps, i), filled(a.shape(), i));
        if rep != 1 {
            split.push(1);
            wide.push(rep);
        }
        split.push(d);
        wide.push(d);
        out.push(rep.checked_mul(d).ok_or_else(|| {
            Error::overflow(format!("[tile] shape {} times {} does not fit", show(a.shape()), show(reps)))
        })?);
    }
    reshape_to(&broadcast_to(&reshape_to(a, split)?, &wide)?, out)
}

/// Every element repeated `repeats` times along `axis` (`mx.repeat`); without an axis the array is flattened.
///
/// # Errors
/// An axis out of range; overflow of the shape.
pub fn repeat(a: &Array, repeats: usize, axis: impl Into<Option<i32>>) -> Result<Array> {
    let (a, axis) = flat_or_axis("repeat", a, axis.into())?;
    let mut wide: Shape = a.shape().into();
    wide.insert(axis + 1, repeats);
    shape::elements("repeat", &wide)?;
    let mut out: Shape = a.shape().into();
    out[axis] *= repeats;
    let apart = expand_dims(&a, axis as i32 + 1)?;
    reshape_to(&broadcast_to(&apart, &wide)?, out)
}

/// The array and its axis, or the flattened array and axis 0.
pub(crate) fn flat_or_axis(op: &str, a: &Array, axis: Option<i32>) -> Result<(Array, usize)> {
    match axis {
        Some(axis) => Ok((a.clone(), shape::axis(op, axis, a.ndim())?)),
        None => Ok((reshape_to(a, smallvec![a.size()])?, 0)),
    }
}

// ------------------------------------------------------------------ turning around

/// The order of elements reversed along `axes`, or all axes for `()` (`mx.flip`). A view.
///
/// # Errors
/// An axis out of range or named twice.
pub fn flip(a: &Array, axes: impl Into<Axes>) -> Result<Array> {
    let axes = shape::axes("flip", &axes.into(), a.ndim())?;
    let range = |i: usize| if axes.contains(&i) { (None, None, -1) } else { (None, None, 1) };
    slice(a, &(0..a.ndim()).map(range).collect::<Vec<_>>())
}

/// Elements moved by `shift` places along `axes`, around the end (`mx.roll`). `()` rolls the flattened array by the
/// sum of the shifts; one shift serves several axes; an axis may be named more than once.
///
/// # Errors
/// An axis out of range; numbers of shifts and axes that do not fit.
pub fn roll(a: &Array, shift: impl AsRef<[i64]>, axes: impl Into<Axes>) -> Result<Array> {
    let shift = shift.as_ref();
    match axes.into() {
        Axes::All => {
            let total = shift.iter().fold(0i64, |sum, &s| sum.wrapping_add(s));
            let flat = reshape_to(a, smallvec![a.size()])?;
            reshape_to(&roll_axis(&flat, total, 0)?, a.shape().into())
        }
        Axes::List(axes) => {
            if shift.len() != axes.len() && shift.len() != 1 {
                let (n, m) = (shift.len(), axes.len());
                return Err(Error::value(format!("[roll] {n} shifts for {m} axes")));
            }
            axes.iter().zip(shift.iter().cycle()).try_fold(a.clone(), |a, (&axis, &by)| {
                let axis = shape::axis("roll", axis, a.ndim())?;
                roll_axis(&a, by, axis)
            })
        }
    }
}

fn roll_axis(a: &Array, by: i64, axis: usize) -> Result<Array> {
    let n = a.shape()[axis] as i64;
    let by = if n == 0 { 0 } else { by.rem_euclid(n) };
    if by == 0 {
        return Ok(a.clone());
    }
    let part = |start, stop| {
        let mut ranges = vec![(None, None, 1); axis];
        ranges.push((start, stop, 1));
        slice(a, &ranges)
    };
    concatenate(&[part(Some(n - by), None)?, part(None, Some(n - by))?], axis as i32)
}

impl Array {
    /// Axes `start_axis` to `end_axis` as one; see [`flatten`].
    #[track_caller]
    pub fn flatten(&self, start_axis: i32, end_axis: i32) -> Array {
        crate::or_panic(flatten(self, start_axis, end_axis))
    }

    /// One axis as several; see [`unflatten`].
    #[track_caller]
    pub fn unflatten<D: Copy + TryInto<i64>>(&self, axis: i32, shape: &[D]) -> Array {
        crate::or_panic(unflatten(self, axis, shape))
    }

    /// Axes of size 1 dropped; see [`squeeze`].
    #[track_caller]
    pub fn squeeze(&self, axes: impl Into<Axes>) -> Array {
        crate::or_panic(squeeze(self, axes))
    }

    /// New axes of size 1; see [`expand_dims`].
    #[track_caller]
    pub fn expand_dims(&self, axes: impl Into<Axes>) -> Array {
        crate::or_panic(expand_dims(self, axes))
    }

    /// The last two axes exchanged; see [`matrix_transpose`].
    #[track_caller]
    pub fn mt(&self) -> Array {
        crate::or_panic(matrix_transpose(self))
    }

    /// Two axes exchanged; see [`swapaxes`].
    #[track_caller]
    pub fn swapaxes(&self, axis1: i32, axis2: i32) -> Array {
        crate::or_panic(swapaxes(self, axis1, axis2))
    }

    /// One axis moved; see [`moveaxis`].
    #[track_caller]
    pub fn moveaxis(&self, source: i32, destination: i32) -> Array {
        crate::or_panic(moveaxis(self, source, destination))
    }

    /// The whole array repeated; see [`tile`].
    #[track_caller]
    pub fn tile(&self, reps: &[usize]) -> Array {
        crate::or_panic(tile(self, reps))
    }

    /// Every element repeated; see [`repeat`].
    #[track_caller]
    pub fn repeat(&self, repeats: usize, axis: impl Into<Option<i32>>) -> Array {
        crate::or_panic(repeat(self, repeats, axis))
    }

    /// Reversed along axes; see [`flip`].
    #[track_caller]
    pub fn flip(&self, axes: impl Into<Axes>) -> Array {
        crate::or_panic(flip(self, axes))
    }

    /// Moved around the end; see [`roll`].
    #[track_caller]
    pub fn roll(&self, shift: impl AsRef<[i64]>, axes: impl Into<Axes>) -> Array {
        crate::or_panic(roll(self, shift, axes))
    }
}
