//! Slices written at indices or under a mask, repeated places included.
//!
//! Updates of one place follow each other in the order of their indices; tasks share the other axes among them. Half
//! precision that accumulates goes place by place instead: all updates of a slice are merged in f32 and rounded once.

use super::combine::{self, PutFn, RowFn, WideRow, put_fn, row_fn};
use super::combine::{narrow_all, wide_put_fn, wide_row_fn};
use super::gather::{Rest, indexed};
use super::places::{self, Places};
use super::{room, widened};
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::error::{Error, Result};
use lapis_core::ops::{Combine, MaskedScatter, Op, Scatter};
use lapis_core::shape::{Shape, row_strides};

/// Elements a task of the pool updates.
const GRAIN: usize = 32 << 10;
/// Slices from this length on go place by place in half precision, however many there are.
const MIN_ROW: usize = 32;

pub(super) fn scatter(op: &Scatter, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (update, indices) = (&inputs[1], &inputs[2..]);
    let window = op.window.as_ref().and_then(|w| Op::from((**w).clone()).look(out));
    let target = window.as_ref().unwrap_or(out);
    let places = Places::new("scatter", indices, indexed(target, &op.axes));
    // Nothing is written before every index is known to be good.
    places.check()?;
    let rest = Rest::new(target, &op.axes, op.at);
    put(op.combine, target, out, &rest, Offsets::Checked(&places), &indices[0].shape, update)
}

pub(super) fn masked(op: &MaskedScatter, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (mask, rows) = (&inputs[1], &inputs[2]);
    let places = Mask::new(mask, &out.strides);
    let given = rows.shape[0];
    if places.count > given {
        let count = places.count;
        return Err(Error::value(format!(
            "[masked_scatter] the mask selects {count} places, but there are only {given} rows of values"
        )));
    }
    let axes: Vec<usize> = (0..mask.shape.len()).collect();
    let by = Shape::from_slice(&[places.count]);
    let mut rows = rows.clone();
    rows.shape[0] = places.count;
    put(op.combine, out, out, &Rest::new(out, &axes, 0), Offsets::Masked(&places), &by, &rows)
}

/// The places where a mask holds.
struct Mask<'a> {
    mask: &'a Tensor,
    /// Operands: row-major order, mask, target.
    loops: Loops,
    /// How many.
    count: usize,
}

impl<'a> Mask<'a> {
    /// `strides` are those of the target, whose leading axes are the mask's.
    fn new(mask: &'a Tensor, strides: &[isize]) -> Mask<'a> {
        let loops = Loops::new(&mask.shape, &[&row_strides(&mask.shape), &mask.strides, &strides[..mask.shape.len()]]);
        let mut all = Mask { mask, loops, count: 0 };
        let mut count = 0;
        all.rows(|truths, step, _, len| {
            // SAFETY: the row lies in the mask.
            count += (0..len).filter(|&i| unsafe { truths.offset(i as isize * step).read() } != 0).count();
        });
        all.count = count;
        all
    }

    /// Calls `f(first truth, step, offset of its place, number)` for rows of the mask.
    fn rows(&self, mut f: impl FnMut(*const u8, isize, isize, usize)) {
        let n = self.mask.size();
        if n > 0 {
            let step = self.loops.strides[1][self.loops.shape.len() - 1];
            let base = self.mask.ptr();
            self.loops.rows_of([1, 2], 0, n, |_, [from, to], len| f(base.wrapping_offset(from), step, to, len));
        }
    }

    fn each_lot(&self, mut f: impl FnMut(usize, &[isize])) {
        let stride = self.loops.strides[2][self.loops.shape.len() - 1];
        let mut lot = [0; 2 * places::LOT];
        let (mut start, mut n) = (0, 0);
        self.rows(|truths, step, to, len| {
            for at in (0..len).step_by(places::LOT) {
                for i in at..len.min(at + places::LOT) {
                    // Written in any case, kept where the mask holds: no branch to mispredict.
                    lot[n] = to + i as isize * stride;
                    // SAFETY: the row lies in the mask, whose elements are bytes 0 or 1.
                    n += usize::from(unsafe { truths.offset(i as isize * step).read() } != 0);
                }
                if n >= places::LOT {
                    f(start, &lot[..n]);
                    start += n;
                    n = 0;
                }
            }
        });
        f(start, &lot[..n]);
    }
}

/// Offsets of places in the target.
#[derive(Clone, Copy)]
enum Offsets<'a> {
    Kept(&'a [isize]),
    /// Found again whenever they are needed.
    Checked(&'a Places<'a>),
    Masked(&'a Mask<'a>),
}

impl Offsets<'_> {
    fn len(self) -> usize {
        match self {
            Offsets::Kept(all) => all.len(),
            Offsets::Checked(places) => places.len,
            Offsets::Masked(mask) => mask.count,
        }
    }

    /// Calls `f(start, offsets)` for all of them in order.
    fn each_lot(self, mut f: impl FnMut(usize, &[isize])) {
        match self {
            Offsets::Kept(all) => f(0, all),
            Offsets::Masked(mask) => mask.each_lot(f),
            Offsets::Checked(places) => {
                let mut lot = [0; places::LOT];
                for at in (0..places.len).step_by(lot.len()) {
                    let n = lot.len().min(places.len - at);
                    if places.offsets(at, &mut lot[..n]).is_ok() {
                        f(at, &lot[..n]);
                    }
                }
            }
        }
    }
}

/// Updates being written: slice (o, j) of the update goes to outer index o, place j.
struct Put<'a> {
    to: SendPtr<u8>,
    from: SendPtr<u8>,
    /// Bytes of an element of the target, of the update.
    sizes: [isize; 2],
    /// What is done to scattered elements, and to rows.
    elements: PutFn,
    row: RowFn,
    /// Operands of the nests: row-major order, target, update.
    outer: Loops,
    inner: Loops,
    /// Operands: row-major order, update.
    by: Loops,
    offsets: Offsets<'a>,
}

/// Writes `update`, whose axes are those of `rest.outer`, of `by` and of `rest.inner`, at `offsets` in `target`, a
/// window of the row-major `whole`.
fn put(
    combine: Combine,
    target: &Tensor,
    whole: &Tensor,
    rest: &Rest,
    offsets: Offsets<'_>,
    by: &[usize],
    update: &Tensor,
) -> Result<()> {
    if update.size() == 0 {
        return Ok(());
    }
    let dtype = target.dtype;
    let (outer, inner) = (&rest.outer, &rest.inner);
    let (outers, width): (usize, usize) = (outer.0.iter().product(), inner.0.iter().product());
    let (before, behind) = (outer.0.len(), outer.0.len() + by.len());
    let mut put = Put {
        to: SendPtr(target.ptr()),
        from: SendPtr(update.ptr()),
        sizes: [dtype.size() as isize; 2],
        elements: put_fn(combine, dtype),
        row: row_fn(combine, dtype),
        outer: Loops::new(&outer.0, &[&row_strides(&outer.0), &outer.1, &update.strides[..before]]),
        inner: Loops::new(&inner.0, &[&row_strides(&inner.0), &inner.1, &update.strides[behind..]]),
        by: Loops::new(by, &[&row_strides(by), &update.strides[before..behind]]),
        offsets,
    };
    if !dtype.is_half() || !matches!(combine, Combine::Sum | Combine::Prod) {
        return put.run(outers, width);
    }
    if width >= MIN_ROW || update.size() < whole.size() / 8 {
        return put.by_place(WideRow::new(combine, dtype), outers, width);
    }
    // So many updates that widening the whole array costs less than sorting them.
    let wide = widened(whole)?;
    let start = (target.ptr() as usize - whole.ptr() as usize) / dtype.size();
    put.to = SendPtr(wide.ptr().wrapping_add(start * 4));
    put.sizes[0] = 4;
    (put.elements, put.row) = (wide_put_fn(combine, dtype), wide_row_fn(combine, dtype));
    put.run(outers, width)?;
    narrow_all(dtype, wide.ptr().cast(), whole.ptr(), whole.size());
    Ok(())
}

impl Put<'_> {
    /// Cuts the work into tasks, which share outer indices and stretches of the slices.
    fn run(&self, outers: usize, width: usize) -> Result<()> {
        let n = self.offsets.len();
        let stretch = (GRAIN / n).max(64).min(width);
        let stretches = width.div_ceil(stretch);
        let units = outers * stretches;
        // Offsets that several tasks need are kept.
        let kept = if units > 1 { Some(self.all_offsets()?) } else { None };
        let offsets = kept.as_deref().map_or(self.offsets, Offsets::Kept);
        pool::for_each_chunk(units, (GRAIN / (n * stretch)).max(1), &|range| {
            for unit in range {
                let start = unit % stretches * stretch;
                self.in_order(offsets, unit / stretches, start, stretch.min(width - start));
            }
        });
        Ok(())
    }

    fn all_offsets(&self) -> Result<Vec<isize>> {
        let mut all = room(self.offsets.len())?;
        self.offsets.each_lot(|_, lot| all.extend_from_slice(lot));
        Ok(all)
    }

    fn bases(&self, outer: usize) -> [isize; 2] {
        let mut bases = [0; 2];
        self.outer.rows_of([1, 2], outer, 1, |_, at, _| bases = at);
        bases
    }

    fn to(&self, offset: isize) -> *mut u8 {
        self.to.get().wrapping_offset(offset * self.sizes[0])
    }

    fn from(&self, offset: isize) -> *const u8 {
        self.from.get().wrapping_offset(offset * self.sizes[1])
    }

    /// All updates of elements `start..start + len` of the slices at one outer index, one after the other.
    fn in_order(&self, offsets: Offsets<'_>, outer: usize, start: usize, len: usize) {
        let [to, from] = self.bases(outer);
        let step = self.by.strides[1][self.by.shape.len() - 1];
        let inner = self.inner.shape.len() - 1;
        let (ds, ss) = (self.inner.strides[1][inner], self.inner.strides[2][inner]);
        offsets.each_lot(|lot, offsets| {
            self.by.rows_of([1], lot, offsets.len(), |first, [by], n| {
                let offsets = &offsets[first..first + n];
                if len == 1 {
                    self.inner.rows_of([1, 2], start, 1, |_, [d, s], _| {
                        let (to, from) = (self.to(to + d), self.from(from + by + s));
                        // SAFETY: checked indices and the nests stay inside both arrays; tasks differ in outer index
                        // or stretch, and so in destination.
                        unsafe { (self.elements)(to, 0, offsets.as_ptr(), from, step, n) }
                    });
                    return;
                }
                for (i, &offset) in offsets.iter().enumerate() {
                    let (to, from) = (to + offset, from + by + i as isize * step);
                    self.inner.rows_of([1, 2], start, len, |_, [d, s], len| {
                        // SAFETY: as above.
                        unsafe { (self.row)(self.to(to + d), ds, self.from(from + s), ss, len) }
                    });
                }
            });
        });
    }

    /// Place by place: the updates of each are found by a stable sort, merged in f32 and rounded once.
    fn by_place(&self, row: WideRow, outers: usize, width: usize) -> Result<()> {
        let n = self.offsets.len();
        let mut sources = room(n)?;
        sources.resize(n, 0isize);
        let step = self.by.strides[1][self.by.shape.len() - 1];
        self.by.rows_of([1], 0, n, |first, [by], len| {
            for i in 0..len {
                sources[first + i] = by + i as isize * step;
            }
        });
        let mut order: Vec<(isize, usize)> = room(n)?;
        self.offsets.each_lot(|start, lot| order.extend(lot.iter().copied().zip(start..)));
        order.sort_unstable();
        let groups: Vec<&[(isize, usize)]> = order.chunk_by(|a, b| a.0 == b.0).collect();
        let inner = self.inner.shape.len() - 1;
        let (ds, ss) = (self.inner.strides[1][inner], self.inner.strides[2][inner]);
        pool::for_each_chunk(outers * groups.len(), (GRAIN / width).max(1), &|range| {
            for unit in range {
                let [to, from] = self.bases(unit / groups.len());
                let group = groups[unit % groups.len()];
                self.inner.rows_of([1, 2], 0, width, |_, [d, s], len| {
                    for at in (0..len).step_by(combine::LOT) {
                        let to = self.to(to + group[0].0 + d + at as isize * ds);
                        let from = from + s + at as isize * ss;
                        let sources = group.iter().map(|&(_, j)| self.from(from + sources[j]));
                        // SAFETY: as in `in_order`; tasks differ in outer index or place.
                        unsafe { row.run(to, ds, sources, ss, combine::LOT.min(len - at)) };
                    }
                });
            }
        });
        Ok(())
    }
}
