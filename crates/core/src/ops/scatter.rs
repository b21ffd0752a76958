//! Writing at places: windows, indices that arrays hold, masks. Each op gives a new array that starts as the first
//! input; an input that nobody else holds is taken over, so that an update costs as much as its values.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::elementwise::conj;
use crate::ops::gather::{DynamicSlice, Gather, GatherAxis, MovingWindow, lane_numbers, shared_starts};
use crate::ops::gather::{check_starts, counted, expect_integers, fits_window, gathered_shape, same_but_axis};
use crate::ops::layout::flat_or_axis;
use crate::ops::scan::{ahead, cut, recurrence};
use crate::ops::view::{Slice, clip_range, permute, reshape_to};
use crate::ops::{
    Operand, Rule, arange, argsort, astype, broadcast_to, concatenate, cumsum, equal, expect, flip, full,
};
use crate::ops::{greater, greater_equal, less, logical_and, moveaxis, multiply, select, take};
use crate::ops::{maximum, zeros_like};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform, map_made, moved};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// What becomes of the value that stands where an update is written.
///
/// Updates of one place follow each other in row-major order of their indices; half precision accumulates in f32 and
/// is rounded once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        expect::count(self.name(), inputs, 2)?;
        expect::fit(self.name(), self.window.lies_within(inputs[0].shape()), inputs)?;
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicSliceUpdate {
    /// Axes with a start; on the others the window begins at 0.
    pub axes: SmallVec<[usize; 4]>,
}

impl Rule for DynamicSliceUpdate {
    fn name(&self) -> &'static str {
        "slice_update"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 3)?;
        let (a, update) = (&inputs[0], &inputs[1]);
        check_starts(self.name(), a.ndim(), &inputs[2], &self.axes)?;
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
    let axes = counted("slice_update", a.ndim(), axes)?;
    let update = astype(update, a.dtype())?;
    Array::apply1(DynamicSliceUpdate { axes }, smallvec![a.clone(), update, starts.clone()])
}

// ------------------------------------------------------------------ index arrays

/// The second input written into the first at the places that the index arrays, the inputs from the third on, name.
/// Shapes and indices are those of [`Gather`], seen from the other side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        expect::at_least(self.name(), inputs, 3)?;
        let (a, update, indices) = (&inputs[0], &inputs[1], &inputs[2..]);
        if let Some(w) = &self.window {
            let everything = |&i: &usize| i < a.ndim() && w.step[i] == 1 && w.shape[i] == a.shape()[i];
            let fits = w.lies_within(a.shape()) && self.axes.iter().all(everything);
            expect::fit(self.name(), fits, inputs)?;
        }
        let within = self.window.as_ref().map_or(a.shape(), |w| &w.shape);
        let shape = gathered_shape(self.name(), within, &self.axes, self.at, indices)?;
        expect_update(self.name(), a, update, &shape)?;
        like(a)
    }
}

/// The third input written into the first at the indices of the second along one axis: all have the same shape but for
/// that axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        expect::count(self.name(), inputs, 3)?;
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
    reshape_to(&put, a.shape().into())
}

// ------------------------------------------------------------------ masks

/// The rows of the third input written, in order, into the first where the mask, the second, holds. The shape of the
/// mask are the leading axes of the first input; each row has the shape of the others. Rows too many are ignored, too
/// few are a value error.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedScatter {
    /// How.
    pub combine: Combine,
}

impl Rule for MaskedScatter {
    fn name(&self) -> &'static str {
        "masked_scatter"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 3)?;
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

// ------------------------------------------------------------------ transforms

/// Gradients of what stands at a place and of the only update that it gets, from that of the result. Where max and
/// min find both equal the update has it.
fn pair_grads(combine: Combine, g: &Array, x: &Array, u: &Array) -> Result<[Array; 2]> {
    let kept = match combine {
        Combine::Set => return Ok([zeros_like(g, None)?, g.clone()]),
        Combine::Sum => return Ok([g.clone(), g.clone()]),
        Combine::Prod => return Ok([multiply(g, &conj(u)?)?, multiply(g, &conj(x)?)?]),
        Combine::Max => greater(x, u)?,
        Combine::Min => less(x, u)?,
    };
    Ok([select(&kept, g, 0)?, select(&kept, 0, g)?])
}

/// Places that several updates may share.
struct Places<'a> {
    /// What an array holds there, in the shape of the updates.
    read: &'a dyn Fn(&Array) -> Result<Array>,
    /// An array with updates there.
    write: &'a dyn Fn(&Array, &Array, Combine) -> Result<Array>,
}

impl Places<'_> {
    /// Gradients of the array `x` and of the updates `u` from that of the result `y`. It goes to the update that came
    /// last where they replace each other, and where equal ones are the largest or smallest.
    fn grads(&self, combine: Combine, g: &Array, [x, u, y]: [&Array; 3]) -> Result<[Array; 2]> {
        let at = (self.read)(g)?;
        match combine {
            Combine::Sum => return Ok([g.clone(), at]),
            Combine::Prod => return Ok([(self.write)(g, &conj(u)?, combine)?, self.others(&at, x, u)?]),
            _ => {}
        }
        let none = full(x.shape(), -1, Some(Dtype::Int64))?;
        let mut numbers = reshape_to(&arange(0, u.size(), 1, Some(Dtype::Int64))?, u.shape().into())?;
        if combine != Combine::Set {
            let reached = (self.read)(y)?;
            let beaten = if combine == Combine::Max { less(u, &reached)? } else { greater(u, &reached)? };
            numbers = select(&beaten, -1, &numbers)?;
        }
        let last = (self.write)(&none, &numbers, Combine::Max)?;
        let stays = logical_and(&greater_equal(&numbers, 0)?, &equal((self.read)(&last)?, &numbers)?)?;
        Ok([select(&less(&last, 0)?, g, 0)?, select(&stays, &at, 0)?])
    }

    /// For each update the product of `g`, of what stood at its place and of the other updates there: right with
    /// zeros. Updates are sorted by place; then products run along them and begin anew with each place.
    fn others(&self, g: &Array, x: &Array, u: &Array) -> Result<Array> {
        let (n, shape) = (u.size(), Shape::from(u.shape()));
        let numbers = |of: &Array| reshape_to(&arange(0, of.size(), 1, Some(Dtype::Int64))?, of.shape().into());
        let line = |a: &Array| reshape_to(a, smallvec![n]);
        let place = line(&(self.read)(&numbers(x)?)?)?;
        let order = argsort(&place, Some(0))?;
        let sorted = |a: &Array| take(&line(a)?, &order, 0);
        let (place, g, x, u) = (sorted(&place)?, sorted(g)?, sorted(&conj(&(self.read)(x)?)?)?, sorted(&conj(u)?)?);
        let same = equal(cut(&place, 0, 1, None)?, cut(&place, 0, 0, Some(-1))?)?;
        let no = full(&[1.min(n)], false, Some(Dtype::Bool))?;
        let run = |same: &Array, u: &Array, first: &Array| {
            recurrence(&select(same, ahead(u, 0)?, 0)?, &select(same, 0, first)?, 0)
        };
        let behind = run(&concatenate(&[same.clone(), no.clone()], 0)?, &u, &g)?;
        let before = run(&concatenate(&[flip(&same, 0)?, no], 0)?, &flip(&u, 0)?, &flip(&x, 0)?)?;
        let product = multiply(&behind, &flip(&before, 0)?)?;
        reshape_to(&take(&product, &argsort(&order, Some(0))?, 0)?, shape)
    }
}

impl Transform for SliceUpdate {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x, u) = (at.cotangent(0)?, &at.inputs[0], &at.inputs[1]);
        let look = |a: &Array| Array::apply1(self.window.clone(), smallvec![a.clone()]);
        let [of_x, of_u] = pair_grads(self.combine, &look(&g)?, &look(x)?, u)?;
        if self.combine == Combine::Sum {
            return Ok(smallvec![Some(g), Some(of_u)]);
        }
        let op = SliceUpdate { window: self.window.clone(), combine: Combine::Set };
        Ok(smallvec![Some(Array::apply1(op, smallvec![g, of_x])?), Some(of_u)])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let op = SliceUpdate { window: self.window.of_lanes(size), combine: self.combine };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].spread(size)?, lanes[1].spread(size)?])?])
    }
}

impl Transform for DynamicSliceUpdate {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, u, starts) = (at.cotangent(0)?, &at.inputs[1], &at.inputs[2]);
        let look = DynamicSlice { axes: self.axes.clone(), size: u.shape().into() };
        let of_u = Array::apply1(look, smallvec![g.clone(), starts.clone()])?;
        let of_x = Array::apply1(self.clone(), smallvec![g, zeros_like(u, None)?, starts.clone()])?;
        Ok(smallvec![Some(of_x), Some(of_u), None])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        if lanes[2].mapped && !self.axes.is_empty() {
            return map_made(lanes, size, |x| {
                let window = MovingWindow::new(x[0].shape(), x[1].shape(), &x[2], &self.axes)?;
                let mut now: SmallVec<[usize; 4]> = SmallVec::from_elem(0, window.order.len());
                window.order.iter().enumerate().for_each(|(axis, &at)| now[at] = axis);
                let mut inputs: Inputs = smallvec![x[0].clone(), permute(&x[1], now)?];
                inputs.extend(window.indices);
                let (axes, combine) = (self.axes.clone(), Combine::Set);
                Array::apply1(Scatter { axes, at: 0, combine, window: Some(Box::new(window.cut)) }, inputs)
            });
        }
        let inputs = smallvec![lanes[0].spread(size)?, lanes[1].spread(size)?, shared_starts(&lanes[2])?];
        Ok(vec![Array::apply1(DynamicSliceUpdate { axes: moved(&self.axes) }, inputs)?])
    }
}

impl Transform for Scatter {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (x, u, indices) = (&at.inputs[0], &at.inputs[1], &at.inputs[2..]);
        let read = |a: &Array| {
            let a = match &self.window {
                Some(window) => Array::apply1((**window).clone(), smallvec![a.clone()])?,
                None => a.clone(),
            };
            let inputs = std::iter::once(a).chain(indices.iter().cloned()).collect();
            Array::apply1(Gather { axes: self.axes.clone(), at: self.at }, inputs)
        };
        let write = |a: &Array, u: &Array, combine| {
            let inputs = [a.clone(), u.clone()].into_iter().chain(indices.iter().cloned()).collect();
            Array::apply1(Scatter { combine, ..self.clone() }, inputs)
        };
        let places = Places { read: &read, write: &write };
        let [of_x, of_u] = places.grads(self.combine, &at.cotangent(0)?, [x, u, &at.outputs[0]])?;
        let mut grads = at.first(of_x);
        grads[1] = Some(of_u);
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let indices = &lanes[2..];
        let window = self.window.as_ref().map(|w| Box::new(w.of_lanes(size)));
        let (axes, combine) = (moved(&self.axes), self.combine);
        let (x, u) = (lanes[0].spread(size)?, lanes[1].spread(size)?);
        if !indices.iter().any(|i| i.mapped) {
            let inputs = [x, u].into_iter().chain(indices.iter().map(|i| i.array.clone())).collect();
            return Ok(vec![Array::apply1(Scatter { axes, at: self.at + 1, combine, window }, inputs)?]);
        }
        // The lane is one more index.
        let mut inputs: Inputs = smallvec![x, moveaxis(&u, 0, self.at as i32)?];
        inputs.push(lane_numbers(size, indices[0].shape())?);
        for i in indices {
            inputs.push(i.spread(size)?);
        }
        let axes = std::iter::once(0).chain(axes).collect();
        Ok(vec![Array::apply1(Scatter { axes, at: self.at, combine, window }, inputs)?])
    }
}

impl Transform for ScatterAxis {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (x, indices, u) = (&at.inputs[0], &at.inputs[1], &at.inputs[2]);
        let axis = self.axis;
        let read = |a: &Array| Array::apply1(GatherAxis { axis }, smallvec![a.clone(), indices.clone()]);
        let write = |a: &Array, u: &Array, combine| {
            Array::apply1(ScatterAxis { axis, combine }, smallvec![a.clone(), indices.clone(), u.clone()])
        };
        let places = Places { read: &read, write: &write };
        let [of_x, of_u] = places.grads(self.combine, &at.cotangent(0)?, [x, u, &at.outputs[0]])?;
        Ok(smallvec![Some(of_x), None, Some(of_u)])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let op = ScatterAxis { axis: self.axis + 1, combine: self.combine };
        let inputs = lanes.iter().map(|l| l.spread(size)).collect::<Result<_>>()?;
        Ok(vec![Array::apply1(op, inputs)?])
    }
}

/// For each element of a mask the number of the row it takes if it holds.
fn rows_taken(mask: &Array) -> Result<Array> {
    let count = cumsum(&reshape_to(mask, smallvec![mask.size()])?, Some(0), false, true, Some(Dtype::Int64))?;
    reshape_to(&maximum(super::subtract(&count, 1)?, 0)?, mask.shape().into())
}

/// A mask over leading axes with as many axes as `a`.
fn widened(mask: &Array, a: &Array) -> Result<Array> {
    let mut shape: Shape = mask.shape().into();
    shape.resize(a.ndim(), 1);
    reshape_to(mask, shape)
}

impl Transform for MaskedScatter {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x, mask, rows) = (at.cotangent(0)?, &at.inputs[0], &at.inputs[1], &at.inputs[2]);
        if rows.size() == 0 {
            return Ok(smallvec![Some(g), None, None]);
        }
        let (taken, holds) = (rows_taken(mask)?, widened(mask, x)?);
        let [of_x, of_u] = pair_grads(self.combine, &g, x, &take(rows, &taken, 0)?)?;
        let op = Scatter { axes: smallvec![0], at: 0, combine: Combine::Sum, window: None };
        let of_rows = Array::apply1(op, smallvec![zeros_like(rows, None)?, select(&holds, &of_u, 0)?, taken])?;
        Ok(smallvec![Some(select(&holds, &of_x, &g)?), None, Some(of_rows)])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        if lanes[2].array.size() == 0 {
            // Rows for nobody: no mask may hold anywhere.
            let rows = &lanes[2].array;
            let rest = rows.shape()[1 + usize::from(lanes[2].mapped)..].iter().copied();
            let rows = reshape_to(rows, std::iter::once(0).chain(rest).collect())?;
            let inputs = smallvec![lanes[0].spread(size)?, lanes[1].spread(size)?, rows];
            return Ok(vec![Array::apply1(self.clone(), inputs)?]);
        }
        map_made(lanes, size, |x| {
            let update = take(&x[2], &rows_taken(&x[1])?, 0)?;
            select(&widened(&x[1], &x[0])?, &super::lookup::everywhere(&x[0], &update, self.combine)?, &x[0])
        })
    }
}
