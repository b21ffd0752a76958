//! Slices written at indices or under a mask, repeated places included.
//!
//! Updates of one place follow each other in the order of their indices; tasks share the other axes among them. Half
//! precision that accumulates goes place by place instead: all updates of a slice are merged in f32 and rounded once.

use super::combine::{LOT, WideRow, put_fn, row_fn};
use super::gather::{Rest, indexed};
use super::places::Places;
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::{Combine, MaskedScatter, Op, Scatter};
use lapis_core::shape::{Shape, row_strides};

/// Elements a task of the pool updates.
const GRAIN: usize = 32 << 10;

pub(super) fn scatter(op: &Scatter, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (update, indices) = (&inputs[1], &inputs[2..]);
    let window = op.window.as_ref().and_then(|w| Op::from((**w).clone()).look(out));
    let target = window.as_ref().unwrap_or(out);
    let places = Places::new("scatter", indices, indexed(target, &op.axes));
    let offsets = places.all()?;
    put(op.combine, target, &Rest::new(target, &op.axes, op.at), &offsets, &indices[0].shape, update);
    Ok(())
}

pub(super) fn masked(op: &MaskedScatter, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (mask, rows) = (&inputs[1], &inputs[2]);
    let k = mask.shape.len();
    let mut offsets: Vec<isize> = Vec::new();
    let n = mask.size();
    if n > 0 {
        let loops = Loops::new(&mask.shape, &[&row_strides(&mask.shape), &mask.strides, &out.strides[..k]]);
        let inner = loops.shape.len() - 1;
        let (step, stride) = (loops.strides[1][inner], loops.strides[2][inner]);
        loops.rows_of([1, 2], 0, n, |_, [from, to], len| {
            for i in 0..len as isize {
                // SAFETY: the nest stays inside the mask, whose elements are bytes.
                if unsafe { mask.ptr().offset(from + i * step).read() } != 0 {
                    offsets.push(to + i * stride);
                }
            }
        });
    }
    let (count, given) = (offsets.len(), rows.shape[0]);
    if count > given {
        return Err(Error::value(format!(
            "[masked_scatter] the mask selects {count} places, but there are only {given} rows of values"
        )));
    }
    let axes: Vec<usize> = (0..k).collect();
    let by = Shape::from_slice(&[count]);
    let mut shape = rows.shape.clone();
    shape[0] = count;
    put(op.combine, out, &Rest::new(out, &axes, 0), &offsets, &by, &Tensor { shape, ..rows.clone() });
    Ok(())
}

/// Updates being written: slice (o, j) of the update goes to outer index o, place j.
struct Put<'a> {
    combine: Combine,
    dtype: Dtype,
    to: SendPtr<u8>,
    from: SendPtr<u8>,
    /// Operands of the nests: row-major order, target, update.
    outer: Loops,
    inner: Loops,
    /// Operands: row-major order, update.
    by: Loops,
    /// Of the places in the target.
    offsets: &'a [isize],
}

/// Writes `update`, whose axes are those of `rest.outer`, of `by` and of `rest.inner`, at `offsets` in `target`.
fn put(combine: Combine, target: &Tensor, rest: &Rest, offsets: &[isize], by: &[usize], update: &Tensor) {
    if update.size() == 0 {
        return;
    }
    let (outer, inner) = (&rest.outer, &rest.inner);
    let (outers, width): (usize, usize) = (outer.0.iter().product(), inner.0.iter().product());
    let (before, behind) = (outer.0.len(), outer.0.len() + by.len());
    let put = Put {
        combine,
        dtype: target.dtype,
        to: SendPtr(target.ptr()),
        from: SendPtr(update.ptr()),
        outer: Loops::new(&outer.0, &[&row_strides(&outer.0), &outer.1, &update.strides[..before]]),
        inner: Loops::new(&inner.0, &[&row_strides(&inner.0), &inner.1, &update.strides[behind..]]),
        by: Loops::new(by, &[&row_strides(by), &update.strides[before..behind]]),
        offsets,
    };
    let accumulates = matches!(combine, Combine::Sum | Combine::Prod);
    if target.dtype.is_half() && accumulates {
        return put.by_place(outers, width);
    }
    // Tasks share outer indices and stretches of the slices.
    let n = offsets.len();
    let stretch = (GRAIN / n).max(64).min(width);
    let stretches = width.div_ceil(stretch);
    pool::for_each_chunk(outers * stretches, (GRAIN / (n * stretch)).max(1), &|range| {
        for unit in range {
            let start = unit % stretches * stretch;
            put.in_order(unit / stretches, start, stretch.min(width - start));
        }
    });
}

impl Put<'_> {
    fn bases(&self, outer: usize) -> [isize; 2] {
        let mut bases = [0; 2];
        self.outer.rows_of([1, 2], outer, 1, |_, at, _| bases = at);
        bases
    }

    fn to(&self, offset: isize) -> *mut u8 {
        self.to.get().wrapping_offset(offset * self.dtype.size() as isize)
    }

    fn from(&self, offset: isize) -> *const u8 {
        self.from.get().wrapping_offset(offset * self.dtype.size() as isize)
    }

    /// All updates of elements `start..start + len` of the slices at one outer index, one after the other.
    fn in_order(&self, outer: usize, start: usize, len: usize) {
        let [to, from] = self.bases(outer);
        let step = self.by.strides[1][self.by.shape.len() - 1];
        let inner = self.inner.shape.len() - 1;
        let (ds, ss) = (self.inner.strides[1][inner], self.inner.strides[2][inner]);
        let (elements, row) = (put_fn(self.combine, self.dtype), row_fn(self.combine, self.dtype));
        self.by.rows_of([1], 0, self.offsets.len(), |first, [by], n| {
            let offsets = &self.offsets[first..first + n];
            if len == 1 {
                self.inner.rows_of([1, 2], start, 1, |_, [d, s], _| {
                    // SAFETY: checked indices and the nests stay inside both arrays; tasks differ in outer index or
                    // stretch, and so in destination.
                    unsafe { elements(self.to(to + d), 0, offsets.as_ptr(), self.from(from + by + s), step, n) }
                });
                return;
            }
            for (i, &offset) in offsets.iter().enumerate() {
                let (to, from) = (to + offset, from + by + i as isize * step);
                self.inner.rows_of([1, 2], start, len, |_, [d, s], len| {
                    // SAFETY: as above.
                    unsafe { row(self.to(to + d), ds, self.from(from + s), ss, len) }
                });
            }
        });
    }

    /// Place by place: the updates of each are found by a stable sort.
    fn by_place(&self, outers: usize, width: usize) {
        let n = self.offsets.len();
        let mut sources = vec![0isize; n];
        let step = self.by.strides[1][self.by.shape.len() - 1];
        self.by.rows_of([1], 0, n, |first, [by], len| {
            for i in 0..len {
                sources[first + i] = by + i as isize * step;
            }
        });
        let mut order: Vec<(isize, usize)> = self.offsets.iter().copied().zip(0..).collect();
        order.sort_unstable();
        let mut groups: Vec<&[(isize, usize)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
        // Largest first would balance better; equal slices rarely differ enough to matter.
        groups.shrink_to_fit();
        let row = WideRow::new(self.combine, self.dtype);
        let inner = self.inner.shape.len() - 1;
        let (ds, ss) = (self.inner.strides[1][inner], self.inner.strides[2][inner]);
        pool::for_each_chunk(outers * groups.len(), (GRAIN / width).max(1), &|range| {
            for unit in range {
                let [to, from] = self.bases(unit / groups.len());
                let group = groups[unit % groups.len()];
                self.inner.rows_of([1, 2], 0, width, |_, [d, s], len| {
                    for at in (0..len).step_by(LOT) {
                        let to = self.to(to + group[0].0 + d + at as isize * ds);
                        let from = from + s + at as isize * ss;
                        let sources = group.iter().map(|&(_, j)| self.from(from + sources[j]));
                        // SAFETY: as in `in_order`; tasks differ in outer index or place.
                        unsafe { row.run(to, ds, sources, ss, LOT.min(len - at)) };
                    }
                });
            }
        });
    }
}
