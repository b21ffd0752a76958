//! Writing at places: windows, indices that arrays hold, masks. Each op gives a new array that starts as the first
//! input; an input that nobody else holds is taken over, so that an update costs as much as its values.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::gather::{expect_integers, fits_window, gathered_shape, same_but_axis, window_axes};
use crate::ops::layout::flat_or_axis;
use crate::ops::view::{Slice, clip_range};
use crate::ops::{Operand, Rule, astype, broadcast_to};
use crate::shape::{self, Shape, show};
use smallvec::{SmallVec, smallvec};

/// What becomes of the value that stands where an update is written.
///
/// Updates of one place follow each other in row-major order of their indices; half precision accumulates in f32 and
/// is rounded once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Combine {
    /// The update takes its place; of several the last.
    Set,
    /// They are added.
    Sum,
    /// They are multiplied.
    Prod,
    /// The larger stays; NaN when either is.
    Max,
    /// The smaller stays; NaN when either is.
    Min,
}

fn like(a: &Array) -> Result<Avals> {
    Ok(smallvec![Aval::new(a.shape(), a.dtype())])
}

fn expect_update(op: &str, a: &Array, update: &Array, shape: &[usize]) -> Result<()> {
    if update.dtype() != a.dtype() {
        let (d, e) = (update.dtype(), a.dtype());
        return Err(Error::dtype(format!("[{op}] updates of {d} for an array of {e}")));
    }
    if update.shape() != shape {
        let (s, t) = (show(update.shape()), show(shape));
        return Err(Error::shape(format!("[{op}] updates of shape {s} for places of shape {t}")));
    }
    Ok(())
}

// ------------------------------------------------------------------ windows

/// The second input written into a window of the first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SliceUpdate {
    /// The window; its shape is that of the update.
    pub window: Slice,
    /// How.
    pub combine: Combine,
}

impl Rule for SliceUpdate {
    fn name(&self) -> &'static str {
        "slice_update"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect_update(self.name(), &inputs[0], &inputs[1], &self.window.shape)?;
        like(&inputs[0])
    }
}

/// `a` with `update` written to `a[start:stop:step]` (see [`slice`](super::slice())), cast to the dtype of `a` and
/// broadcast.
///
/// # Errors
/// As [`slice`](super::slice()); an update that does not broadcast to the window.
pub fn slice_update(a: &Array, update: impl Operand, ranges: &[(Option<i64>, Option<i64>, i64)]) -> Result<Array> {
    if ranges.len() > a.ndim() {
        let (n, s) = (ranges.len(), show(a.shape()));
        return Err(Error::index(format!("[slice_update] {n} ranges for an array of shape {s}")));
    }
    let mut window = whole(a.shape());
    for (i, &(start, stop, step)) in ranges.iter().enumerate() {
        let (first, len) = clip_range(start, stop, step, a.shape()[i])?;
        (window.start[i], window.shape[i]) = (first, len);
        window.step[i] = if len <= 1 { 1 } else { step as isize };
    }
    let update = update.arg().materialize(a.dtype(), &window.shape)?;
    Array::apply1(SliceUpdate { window, combine: Combine::Set }, smallvec![a.clone(), update])
}

/// The window that is everything.
pub(crate) fn whole(shape: &[usize]) -> Slice {
    let n = shape.len();
    Slice { start: SmallVec::from_elem(0, n), step: SmallVec::from_elem(1, n), shape: shape.into() }
}

/// The second input written into a window of the first whose start the third gives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DynamicSliceUpdate {
    /// Axes with a start; on the others the window begins at 0.
    pub axes: SmallVec<[usize; 4]>,
}

impl Rule for DynamicSliceUpdate {
    fn name(&self) -> &'static str {
        "slice_update"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (a, update) = (&inputs[0], &inputs[1]);
        fits_window(self.name(), a.shape(), update.shape())?;
        expect_update(self.name(), a, update, update.shape())?;
        like(a)
    }
}

/// `a` with `update`, cast to its dtype, written into the window of the shape of `update` that begins at `starts`, an
/// array of one integer for each of `axes`, known only at evaluation (`mx.slice_update`).
///
/// # Errors
/// As [`dynamic_slice`](super::dynamic_slice).
pub fn dynamic_slice_update(a: &Array, update: &Array, starts: &Array, axes: &[i32]) -> Result<Array> {
    let axes = window_axes("slice_update", a.ndim(), starts, axes)?;
    let update = astype(update, a.dtype())?;
    Array::apply1(DynamicSliceUpdate { axes }, smallvec![a.clone(), update, starts.clone()])
}

// ------------------------------------------------------------------ index arrays

/// The second input written into the first at the places that the index arrays, the inputs from the third on, name.
/// Shapes and indices are those of [`Gather`](super::Gather), seen from the other side.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scatter {
    /// Indexed axes, distinct, in the order of the index arrays.
    pub axes: SmallVec<[usize; 4]>,
    /// How many of the other axes stand before those of the index arrays.
    pub at: usize,
    /// How.
    pub combine: Combine,
    /// The part of the array that is written to, whole along the indexed axes; everything when `None`.
    pub window: Option<Box<Slice>>,
}

impl Rule for Scatter {
    fn name(&self) -> &'static str {
        "scatter"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (a, update, indices) = (&inputs[0], &inputs[1], &inputs[2..]);
        let within = self.window.as_ref().map_or(a.shape(), |w| &w.shape);
        let shape = gathered_shape(self.name(), within, &self.axes, self.at, indices)?;
        expect_update(self.name(), a, update, &shape)?;
        like(a)
    }
}

/// The third input written into the first at the indices of the second along one axis: all have the same shape but for
/// that axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterAxis {
    /// The axis.
    pub axis: usize,
    /// How.
    pub combine: Combine,
}

impl Rule for ScatterAxis {
    fn name(&self) -> &'static str {
        "put_along_axis"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (a, indices, update) = (&inputs[0], &inputs[1], &inputs[2]);
        expect_integers(self.name(), indices)?;
        same_but_axis(self.name(), a.shape(), indices.shape(), self.axis)?;
        expect_update(self.name(), a, update, indices.shape())?;
        like(a)
    }
}

/// `a` with `values` written where `indices` says along `axis` (`mx.put_along_axis`). The other axes of `indices`
/// broadcast to those of `a`, and `values`, cast to the dtype of `a`, to `indices`. Without an axis `a` counts as
/// flattened. Of several values for one place the last stays.
///
/// # Errors
/// An axis out of range; different numbers of axes; shapes that do not broadcast; indices that are not integers. When
/// evaluated: indices out of range.
pub fn put_along_axis(a: &Array, indices: &Array, values: impl Operand, axis: impl Into<Option<i32>>) -> Result<Array> {
    const OP: &str = "put_along_axis";
    expect_integers(OP, indices)?;
    let (flat, axis) = flat_or_axis(OP, a, axis.into())?;
    if flat.ndim() != indices.ndim() {
        let (s, t) = (show(flat.shape()), show(indices.shape()));
        return Err(Error::shape(format!("[{OP}] arrays of shape {s} and indices of shape {t} differ in axes")));
    }
    let mut places: Shape = flat.shape().into();
    places[axis] = indices.shape()[axis];
    let indices = broadcast_to(indices, &places)?;
    let values = values.arg().materialize(a.dtype(), &places)?;
    let put = Array::apply1(ScatterAxis { axis, combine: Combine::Set }, smallvec![flat, indices, values])?;
    super::view::reshape_to(&put, a.shape().into())
}

// ------------------------------------------------------------------ masks

/// The rows of the third input written, in order, into the first where the mask, the second, holds. The shape of the
/// mask are the leading axes of the first input; each row has the shape of the others. Rows too many are ignored, too
/// few are a value error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaskedScatter {
    /// How.
    pub combine: Combine,
}

impl Rule for MaskedScatter {
    fn name(&self) -> &'static str {
        "masked_scatter"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let (a, mask, rows) = (&inputs[0], &inputs[1], &inputs[2]);
        if mask.dtype() != Dtype::Bool {
            return Err(Error::dtype(format!("[masked_scatter] the mask holds {}, not bool", mask.dtype())));
        }
        let Some(rest) = a.shape().strip_prefix(mask.shape()) else {
            let (s, t) = (show(mask.shape()), show(a.shape()));
            return Err(Error::shape(format!("[masked_scatter] a mask of shape {s} for an array of shape {t}")));
        };
        let mut shape: Shape = smallvec![rows.shape().first().copied().unwrap_or(0)];
        shape.extend_from_slice(rest);
        shape::elements(self.name(), &shape)?;
        expect_update(self.name(), a, rows, &shape)?;
        like(a)
    }
}

impl Array {
    /// `values` written along an axis; see [`put_along_axis`].
    #[track_caller]
    pub fn put_along_axis(&self, indices: &Array, values: impl Operand, axis: impl Into<Option<i32>>) -> Array {
        crate::or_panic(put_along_axis(self, indices, values, axis))
    }
}
