//! Indexing as in NumPy: integers, ranges and new axes give views; index arrays and masks read and write through
//! gather and scatter.
//!
//! Ranges and integers cut a window out of the array, in which an integer leaves an axis of size 1; index arrays act on
//! whole axes of that window. They broadcast together; when they and the integers stand side by side, their axes take
//! that place in the result, else they come first.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::ops::gather::{Gather, expect_integers, is_mask, with_indices};
use crate::ops::index::{Index, Indices, IntoIndices};
use crate::ops::scatter::{Combine, MaskedScatter, Scatter, SliceUpdate, whole};
use crate::ops::view::{Slice, clip_range, reshape_to};
use crate::ops::{Operand, astype, broadcast_to, expand_dims, negative, nonzero, reciprocal, select};
use crate::ops::{add, maximum, minimum, multiply};
use crate::shape::{self, Shape, show};
use smallvec::{SmallVec, smallvec};

/// An index brought into the form that the ops take.
struct Lookup {
    /// What ranges and integers leave of the array; integers leave size 1.
    window: Slice,
    /// Index arrays, broadcast together, and the axes they index.
    arrays: Vec<Array>,
    axes: SmallVec<[usize; 4]>,
    /// How many axes of the window that have no index array stand before those of the index arrays.
    at: usize,
    /// Shape of the index arrays.
    by: Shape,
    /// The shape the user sees.
    shape: Shape,
}

impl Lookup {
    /// Reads an index without masks; `parts` are one for each axis and new axis.
    fn new(a: &Array, parts: &[Index]) -> Result<Lookup> {
        let parts = spell_out(a, parts)?;
        let has_arrays = parts.iter().any(|p| matches!(p, Index::Array(_)));
        let mut window = whole(a.shape());
        let (mut arrays, mut axes, mut by) = (Vec::new(), SmallVec::new(), Shape::new());
        // Axes of the result, and where those of the index arrays go.
        let mut kept = Shape::new();
        let mut place: Option<(usize, usize)> = None;
        let (mut run_ended, mut apart) = (false, false);
        let mut axis = 0;
        for part in &parts {
            let size = a.shape().get(axis).copied().unwrap_or(1);
            let advanced = has_arrays && matches!(part, Index::At(_) | Index::Array(_));
            if advanced {
                apart |= run_ended;
                let before = axis - axes.len();
                place.get_or_insert((kept.len(), before));
            } else {
                run_ended = place.is_some();
            }
            match part {
                Index::At(i) => {
                    window.start[axis] = host_index(*i, axis, size)?;
                    window.shape[axis] = 1;
                }
                Index::Range { start, stop, step } => {
                    let (first, len) = clip_range(*start, *stop, *step, size)?;
                    window.start[axis] = first;
                    window.step[axis] = if len <= 1 { 1 } else { *step as isize };
                    window.shape[axis] = len;
                    kept.push(len);
                }
                Index::Array(i) => {
                    by = shape::broadcast("index", &by, i.shape())?;
                    arrays.push(i.clone());
                    axes.push(axis);
                }
                Index::NewAxis => kept.push(1),
                Index::Ellipsis => {}
            }
            axis += usize::from(!matches!(part, Index::NewAxis | Index::Ellipsis));
        }
        let (position, at) = if apart { (0, 0) } else { place.unwrap_or((0, 0)) };
        let mut shape = kept;
        shape.insert_from_slice(position, &by);
        shape::elements("index", &shape)?;
        Ok(Lookup { window, arrays, axes, at, by, shape })
    }

    fn is_whole(&self, a: &Array) -> bool {
        self.window.shape.as_slice() == a.shape() && self.window.step.iter().all(|&s| s == 1)
    }

    /// The window of `a`.
    fn cut(&self, a: &Array) -> Result<Array> {
        if self.is_whole(a) {
            return Ok(a.clone());
        }
        Array::apply1(self.window.clone(), smallvec![a.clone()])
    }

    fn read(&self, a: &Array) -> Result<Array> {
        let mut values = self.cut(a)?;
        if !self.arrays.is_empty() {
            let inputs = with_indices(&[&values], &self.arrays, &self.by)?;
            values = Array::apply1(Gather { axes: self.axes.clone(), at: self.at }, inputs)?;
        }
        reshape_to(&values, self.shape.clone())
    }

    /// `update` has the dtype of `a` and broadcasts to the shape the user sees.
    fn write(&self, a: &Array, update: &Array, combine: Combine) -> Result<Array> {
        let update = broadcast_to(&without_leading_ones(update)?, &self.shape)
            .map_err(|_| cannot_fill(update.shape(), &self.shape))?;
        if self.arrays.is_empty() {
            let update = reshape_to(&update, self.window.shape.clone())?;
            if self.is_whole(a) {
                return everywhere(a, &update, combine);
            }
            return Array::apply1(SliceUpdate { window: self.window.clone(), combine }, smallvec![a.clone(), update]);
        }
        let rest = (0..a.ndim()).filter(|i| !self.axes.contains(i)).map(|i| self.window.shape[i]);
        let mut shape: Shape = rest.collect();
        shape.insert_from_slice(self.at, &self.by);
        let update = reshape_to(&update, shape)?;
        let window = (!self.is_whole(a)).then(|| Box::new(self.window.clone()));
        let inputs = with_indices(&[a, &update], &self.arrays, &self.by)?;
        Array::apply1(Scatter { axes: self.axes.clone(), at: self.at, combine, window }, inputs)
    }
}

fn cannot_fill(update: &[usize], places: &[usize]) -> Error {
    let (s, t) = (show(update), show(places));
    Error::shape(format!("[index] values of shape {s} cannot be broadcast to places of shape {t}"))
}

fn host_index(i: i64, axis: usize, size: usize) -> Result<usize> {
    let n = size as i64;
    if i < -n || i >= n {
        return Err(Error::index(format!("[index] index {i} is out of range for axis {axis} of size {size}")));
    }
    Ok(if i < 0 { i + n } else { i } as usize)
}

/// How many axes a part takes.
fn takes(part: &Index) -> usize {
    match part {
        Index::At(_) | Index::Range { .. } => 1,
        Index::Ellipsis | Index::NewAxis => 0,
        Index::Array(a) if is_mask(a) => a.ndim(),
        Index::Array(_) => 1,
    }
}

/// One part for each axis: the ellipsis written out (its place stays marked when it stands for nothing), the axes
/// that are not named added at the end.
fn spell_out(a: &Array, parts: &[Index]) -> Result<Indices> {
    let named: usize = parts.iter().map(takes).sum();
    if named > a.ndim() {
        let s = show(a.shape());
        return Err(Error::index(format!("[index] {named} indices for an array of shape {s}")));
    }
    if parts.iter().filter(|p| matches!(p, Index::Ellipsis)).count() > 1 {
        return Err(Error::index("[index] more than one ellipsis"));
    }
    let rest = || vec![Index::Range { start: None, stop: None, step: 1 }; a.ndim() - named];
    let mut out = Indices::new();
    for part in parts {
        out.push(part.clone());
        if matches!(part, Index::Ellipsis) {
            out.extend(rest());
        }
    }
    if !parts.iter().any(|p| matches!(p, Index::Ellipsis)) {
        out.extend(rest());
    }
    Ok(out)
}

/// A mask over the leading axes and nothing else that selects.
fn lone_mask<'a>(a: &Array, parts: &'a [Index]) -> Option<&'a Array> {
    let [Index::Array(mask), rest @ ..] = parts else { return None };
    let is_all = |p: &Index| matches!(p, Index::Ellipsis | Index::Range { start: None, stop: None, step: 1 });
    let leads = is_mask(mask) && a.shape().starts_with(mask.shape());
    let named: usize = parts.iter().map(takes).sum();
    (leads && named <= a.ndim() && rest.iter().all(is_all)).then_some(mask)
}

/// Masks replaced by the indices of their true elements (which evaluates them), and dtypes checked. A 0-d mask stands
/// for a new axis that is kept or emptied; those axes of the array to index are given beside.
fn without_masks(a: &Array, parts: Indices) -> Result<(Indices, SmallVec<[i32; 4]>)> {
    let mut added = SmallVec::new();
    let arrays = || parts.iter().filter_map(|p| if let Index::Array(i) = p { Some(i) } else { None });
    for i in arrays().filter(|i| !is_mask(i)) {
        expect_integers("index", i)?;
    }
    if !arrays().any(is_mask) {
        return Ok((parts, added));
    }
    let parts = spell_out(a, &parts)?;
    let mut out = Indices::new();
    let mut axis = 0;
    for part in parts {
        match part {
            Index::Array(mask) if is_mask(&mask) => {
                let covers = &a.shape()[axis..axis + mask.ndim()];
                if mask.shape() != covers {
                    let (s, t) = (show(mask.shape()), show(covers));
                    return Err(Error::index(format!("[index] a mask of shape {s} for axes of shape {t}")));
                }
                axis += mask.ndim();
                if mask.ndim() == 0 {
                    added.push((axis + added.len()) as i32);
                    let count = usize::from(mask.item::<bool>()?);
                    out.push(Index::Array(Array::from_vec(vec![0i64; count], &[count])));
                }
                out.extend(nonzero(&mask)?.into_iter().map(Index::Array));
            }
            other => {
                axis += takes(&other);
                out.push(other);
            }
        }
    }
    Ok((out, added))
}

/// `a[indices]`: a view for integers, ranges, ellipsis and new axes; a gather with index arrays (any integer dtype,
/// negative values count from the end); the selected elements with masks (which are evaluated).
///
/// # Errors
/// More indices than axes, host integers out of range, index arrays that do not broadcast or are no integers, masks of
/// another shape than their axes. When evaluated: index arrays out of range.
pub fn index(a: &Array, indices: impl IntoIndices) -> Result<Array> {
    let (parts, added) = without_masks(a, indices.into_indices())?;
    if added.is_empty() {
        return Lookup::new(a, &parts)?.read(a);
    }
    let a = &expand_dims(a, added.as_slice())?;
    Lookup::new(a, &parts)?.read(a)
}

/// A new array: `a` with `value` at the places of `indices` (`a[indices] = value`).
///
/// `value` is cast to the dtype of `a`, stripped of leading axes of size 1 and broadcast to the shape of `a[indices]`.
/// Of several values for one place the last stays. A mask over leading axes takes also one row a true element, in
/// order, and is evaluated together with the array.
///
/// # Errors
/// As [`index()`](index()); values that do not broadcast. When evaluated: fewer rows than true elements.
pub fn index_update(a: &Array, indices: impl IntoIndices, value: impl Operand) -> Result<Array> {
    index_combine(a, indices, value, Combine::Set)
}

/// A new array: `a` with `value` combined with what stands at the places of `indices`; several values for one place
/// combine one after the other. Else as [`index_update`].
///
/// # Errors
/// As [`index_update`].
pub fn index_combine(a: &Array, indices: impl IntoIndices, value: impl Operand, combine: Combine) -> Result<Array> {
    let value = value.arg();
    let value = value.materialize(a.dtype(), value.shape())?;
    combine_parts(a, indices.into_indices(), &value, combine)
}

fn combine_parts(a: &Array, parts: Indices, value: &Array, combine: Combine) -> Result<Array> {
    if let Some(mask) = lone_mask(a, &parts) {
        return masked(a, mask, value, combine);
    }
    let (parts, added) = without_masks(a, parts)?;
    if added.is_empty() {
        return Lookup::new(a, &parts)?.write(a, value, combine);
    }
    let wide = &expand_dims(a, added.as_slice())?;
    reshape_to(&Lookup::new(wide, &parts)?.write(wide, value, combine)?, a.shape().into())
}

fn without_leading_ones(a: &Array) -> Result<Array> {
    let first = a.shape().iter().position(|&d| d != 1).unwrap_or(a.ndim());
    reshape_to(a, a.shape()[first..].into())
}

/// Everything replaced by, or combined with, an update of the same shape.
pub(crate) fn everywhere(a: &Array, update: &Array, combine: Combine) -> Result<Array> {
    match combine {
        Combine::Set => Ok(update.clone()),
        Combine::Sum => add(a, update),
        Combine::Prod => multiply(a, update),
        Combine::Max => maximum(a, update),
        Combine::Min => minimum(a, update),
    }
}

fn masked(a: &Array, mask: &Array, value: &Array, combine: Combine) -> Result<Array> {
    let rest = &a.shape()[mask.ndim()..];
    let mut rows = without_leading_ones(value)?;
    if rows.ndim() <= rest.len() {
        // Every true element gets the same: no need to count them.
        let update = broadcast_to(&rows, a.shape()).map_err(|_| cannot_fill(value.shape(), rest))?;
        let mut shape: Shape = mask.shape().into();
        shape.resize(a.ndim(), 1);
        return select(&reshape_to(mask, shape)?, &everywhere(a, &update, combine)?, a);
    }
    let mut shape: Shape = smallvec![rows.shape()[0]];
    shape.extend_from_slice(rest);
    rows = broadcast_to(&rows, &shape).map_err(|_| cannot_fill(value.shape(), &shape))?;
    Array::apply1(MaskedScatter { combine }, smallvec![a.clone(), mask.clone(), rows])
}

/// Places of an array, to be combined with values: `a.at(idx).add(v)`. Every method gives a new array; values for
/// the same place accumulate.
pub struct At<'a> {
    array: &'a Array,
    parts: Indices,
}

impl At<'_> {
    #[track_caller]
    fn combine(&self, value: Result<Array>, combine: Combine) -> Array {
        crate::or_panic(value.and_then(|v| combine_parts(self.array, self.parts.clone(), &v, combine)))
    }

    fn cast(&self, value: impl Operand) -> Result<Array> {
        let value = value.arg();
        value.materialize(self.array.dtype(), value.shape())
    }

    /// The values in place of what is there; see [`index_update`].
    #[track_caller]
    pub fn set(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value), Combine::Set)
    }

    /// The values added.
    #[track_caller]
    pub fn add(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value), Combine::Sum)
    }

    /// The values subtracted.
    #[track_caller]
    pub fn subtract(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value).and_then(|v| negative(&v)), Combine::Sum)
    }

    /// Multiplied by the values.
    #[track_caller]
    pub fn multiply(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value), Combine::Prod)
    }

    /// Multiplied by 1 over the values.
    #[track_caller]
    pub fn divide(&self, value: impl Operand) -> Array {
        let value = self.cast(value).and_then(|v| astype(&reciprocal(&v)?, self.array.dtype()));
        self.combine(value, Combine::Prod)
    }

    /// The larger of the two.
    #[track_caller]
    pub fn maximum(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value), Combine::Max)
    }

    /// The smaller of the two.
    #[track_caller]
    pub fn minimum(&self, value: impl Operand) -> Array {
        self.combine(self.cast(value), Combine::Min)
    }
}

impl Array {
    /// `self[indices]`; see [`index()`](index()).
    #[track_caller]
    pub fn index(&self, indices: impl IntoIndices) -> Array {
        crate::or_panic(index(self, indices))
    }

    /// A new array with `value` at `indices`; see [`index_update`].
    #[track_caller]
    pub fn index_update(&self, indices: impl IntoIndices, value: impl Operand) -> Array {
        crate::or_panic(index_update(self, indices, value))
    }

    /// The places of `indices`, to be combined with values: `a.at(&idx).add(1)`.
    pub fn at(&self, indices: impl IntoIndices) -> At<'_> {
        At { array: self, parts: indices.into_indices() }
    }
}
