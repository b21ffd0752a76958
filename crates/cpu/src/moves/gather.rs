//! Slices at indices: takes, embeddings, advanced indexing.
//!
//! Moves the gathered bytes in and out and 8 bytes an index.

use super::combine::{copy_fn, pick_fn};
use super::places::{Axis, LOT, Places};
use super::window::GRAIN;
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::error::{Error, Result};
use lapis_core::ops::Gather;
use lapis_core::shape::{Shape, Strides, row_strides};
use std::sync::{Mutex, PoisonError};

/// The axes of a tensor that are not indexed, before and behind those that are, with their strides.
pub(super) struct Rest {
    pub(super) outer: (Shape, Strides),
    pub(super) inner: (Shape, Strides),
}

impl Rest {
    pub(super) fn new(t: &Tensor, axes: &[usize], at: usize) -> Rest {
        let rest: Vec<usize> = (0..t.shape.len()).filter(|i| !axes.contains(i)).collect();
        let of = |list: &[usize]| {
            (
                list.iter().map(|&i| t.shape[i]).collect::<Shape>(),
                list.iter().map(|&i| t.strides[i]).collect::<Strides>(),
            )
        };
        Rest { outer: of(&rest[..at]), inner: of(&rest[at..]) }
    }
}

/// The indexed axes of `t`.
pub(super) fn indexed(t: &Tensor, axes: &[usize]) -> Vec<Axis> {
    axes.iter().map(|&axis| Axis { axis, size: t.shape[axis], stride: t.strides[axis] }).collect()
}

/// The error of the task that comes first.
#[derive(Default)]
pub(super) struct FirstError(Mutex<Option<(usize, Error)>>);

impl FirstError {
    pub(super) fn keep(&self, task: usize, result: Result<()>) {
        let Err(error) = result else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(first, _)| task < *first) {
            *kept = Some((task, error));
        }
    }

    pub(super) fn into_result(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |(_, error)| Err(error))
    }
}

pub(super) fn gather(op: &Gather, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (a, indices) = (&inputs[0], &inputs[1..]);
    let places = Places::new("gather", indices, indexed(a, &op.axes));
    if out.size() == 0 {
        return places.check();
    }
    let Rest { outer, inner } = Rest::new(a, &op.axes, op.at);
    let slices = Slices {
        outer: Loops::new(&outer.0, &[&row_strides(&outer.0), &outer.1]),
        inner: Loops::new(&inner.0, &[&row_strides(&inner.0), &inner.1]),
        width: inner.0.iter().product(),
        size: a.dtype.size(),
        from: SendPtr(a.ptr()),
        to: SendPtr(out.ptr()),
        places: &places,
        // Offsets are found once when every outer index needs them again.
        offsets: if outer.0.iter().all(|&d| d == 1) { None } else { Some(places.all()?) },
    };
    slices.copy(outer.0.iter().product())
}

/// Slices to be copied: row `o * n + j` of the output is the slice at outer index o and place j.
struct Slices<'a> {
    outer: Loops,
    inner: Loops,
    /// Elements of a slice.
    width: usize,
    size: usize,
    from: SendPtr<u8>,
    to: SendPtr<u8>,
    places: &'a Places<'a>,
    offsets: Option<Vec<isize>>,
}

impl Slices<'_> {
    fn copy(&self, outer: usize) -> Result<()> {
        let rows = outer * self.places.len;
        let bytes = self.width * self.size;
        let failed = FirstError::default();
        if bytes >= 4 * GRAIN && self.inner.is_flat(1) {
            // Long slices are cut, so that a few of them keep every thread busy.
            let cuts = bytes.div_ceil(2 * GRAIN);
            let elements = self.width.div_ceil(cuts);
            pool::run(rows * cuts, &|task| {
                let (row, cut) = (task / cuts, task % cuts);
                let start = cut * elements;
                let len = elements.min(self.width.saturating_sub(start));
                failed.keep(task, self.rows(row, 1, start, len));
            });
        } else {
            pool::for_each_chunk(rows, (GRAIN / bytes.max(1)).max(1), &|range| {
                failed.keep(range.start, self.rows(range.start, range.len(), 0, self.width));
            });
        }
        failed.into_result()
    }

    /// Copies elements `start..start + len` of some rows.
    fn rows(&self, mut row: usize, count: usize, start: usize, len: usize) -> Result<()> {
        let end = row + count;
        let mut lot = [0isize; LOT];
        while row < end {
            let (o, j) = (row / self.places.len, row % self.places.len);
            let mut n = (end - row).min(self.places.len - j);
            let offsets = match &self.offsets {
                Some(all) => &all[j..j + n],
                None => {
                    n = n.min(LOT);
                    self.places.offsets(j, &mut lot[..n])?;
                    &lot[..n]
                }
            };
            let mut base = 0;
            self.outer.rows_of([1], o, 1, |_, [at], _| base = at);
            self.slices(base, offsets, row, start, len);
            row += n;
        }
        Ok(())
    }

    /// Copies the slices at `base` plus each of `offsets` to the rows from `row` on.
    fn slices(&self, base: isize, offsets: &[isize], row: usize, start: usize, len: usize) {
        let at = |offset: isize| self.from.get().wrapping_offset(offset * self.size as isize);
        let to = |row: usize, column: usize| self.to.get().wrapping_add((row * self.width + column) * self.size);
        // In all of the following checked indices and the nests of the other axes stay inside the source, and rows of
        // the output are as long as a slice.
        if self.width == 1 {
            // SAFETY: as said above.
            unsafe { pick_fn(self.size)(to(row, 0), offsets.as_ptr(), at(base), 0, offsets.len()) };
        } else if self.inner.is_flat(1) {
            for (i, &offset) in offsets.iter().enumerate() {
                let from = at(base + offset + start as isize);
                // SAFETY: as said above.
                unsafe { std::ptr::copy_nonoverlapping(from, to(row + i, start), len * self.size) };
            }
        } else {
            let copy = copy_fn(self.size);
            let step = self.inner.strides[1][self.inner.shape.len() - 1];
            for (i, &offset) in offsets.iter().enumerate() {
                self.inner.rows_of([1], start, len, |first, [inner], n| {
                    // SAFETY: as said above.
                    unsafe { copy(to(row + i, start + first), 1, at(base + offset + inner), step, n) };
                });
            }
        }
    }
}
