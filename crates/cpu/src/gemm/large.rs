//! The loops around the micro-kernels for one product of many rows.
//!
//! A tile holds a stretch of k of its right side packed in L2 (AVX2: L3) and goes down its rows: a panel of the left side
//! is packed into L1 just before it is used and meets all columns, and the kernels that use it ask for what comes next (the
//! following panel, then the right side's next stretch). So each side comes from memory while something is multiplied,
//! and nothing of the left side is written back but what L1 holds: packing costs its instructions alone, a quarter of a
//! cycle an element at most against `nt / (2 * lanes)` cycles of multiplying. Sums go straight into an output of their
//! own type, also between stretches of k; others stay in scratch.
//!
//! Reaches 83 to 90 % of the FMA peak of one core for 4096 rows, k and n of 256 to 2048, and 78 to 82 % where the left
//! side is transposed. Cuts depend on shapes and threads, and no cut changes a bit.

use super::driver::Product;
use super::micro::{Ahead, Arith, MAX_COLS};
use super::scratch::{self, Scratch};
use crate::isa::Isa;
use crate::pool::{self, SendPtr};
use std::ops::Range;

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    lanes: usize,
    /// Rows of a panel, and of a tile.
    mr: usize,
    mt: usize,
    /// Columns of a panel, and of a tile.
    nr: usize,
    nt: usize,
    /// Elements of k in a stretch.
    kc: usize,
    /// Panels of the left side that are packed together.
    group: usize,
}

/// Values of the right side that a task packs into the shared buffer.
const PACK: usize = 1 << 16;
/// Values of the right side that are packed in one region.
const SHARED: usize = 4 << 20;
/// Bytes of a right side that tasks rather pack each for itself than together.
const OWN: usize = 1 << 20;
/// Panels of a transposed left side that are packed together: its rows are read in pieces of some cache lines.
const GROUP: usize = 8;
/// Tiles to aim at for each thread, so that all end at about the same time, and those it must have.
const TILES: (usize, usize) = (8, 2);

impl Cut {
    fn new<M: Arith>(isa: Isa, job: &impl Product<M>) -> Cut {
        let (m, n, k) = job.size();
        let group = if job.lhs_is_transposed() { GROUP } else { 1 };
        let blocks = M::blocks(isa);
        let (lanes, nr) = (blocks.lanes, 2 * blocks.lanes);
        let mr = m.div_ceil(m.div_ceil(blocks.tall));
        let even = |all: usize, most: usize, unit: usize| all.div_ceil(all.div_ceil(most)).next_multiple_of(unit);
        // One stretch saves reading sums again; several leave room for a wider tile.
        let (longest, most) = blocks.stretch;
        let kc = if k <= longest { k } else { even(k, most, 16) };
        let room = if kc == k { blocks.tile.0 } else { blocks.tile.1 } / size_of::<M::P>();
        let nt = even(n, room / kc.div_ceil(M::PER), nr);
        let mt = if kc < k { even(m, room / nt, mr) } else { m };
        let mut cut = Cut { lanes, mr, mt, nr, nt, kc, group };
        cut.spread(m, n, pool::threads());
        cut
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.mt) * n.div_ceil(self.nt)
    }

    /// Halves the tiles until there are enough of them for all threads or they would be too small: a narrow tile packs
    /// its rows for few columns, a low one its columns for few rows.
    fn spread(&mut self, m: usize, n: usize, threads: usize) {
        while threads > 1 && self.tiles(m, n) < TILES.0 * threads {
            let must = self.tiles(m, n) < TILES.1 * threads;
            let (rows, cols) = if must { (2 * self.mr, 2 * self.nr) } else { (16 * self.mr, 16 * self.nr) };
            if self.mt > rows && (self.mt >= self.nt || self.nt <= cols) {
                self.mt = self.mt.div_ceil(2).next_multiple_of(self.mr);
            } else if self.nt > cols {
                self.nt = self.nt.div_ceil(2).next_multiple_of(self.nr);
            } else {
                return;
            }
        }
    }

    /// Width of the panel that starts at column `c` of `n`.
    fn width(&self, c: usize, n: usize) -> usize {
        (n - c).next_multiple_of(self.lanes).min(self.nr)
    }
}

/// Columns of the right side packed for all tiles: the stretches of k one after the other, the panels of each side by
/// side.
#[derive(Clone, Copy)]
struct Packed<P> {
    data: SendPtr<P>,
    /// First column, and columns with padding.
    first: usize,
    columns: usize,
}

impl<P> Packed<P> {
    /// Where the panel of `column` begins in the stretch of k that starts at step `at` and has `steps` steps.
    fn panel(&self, column: usize, at: usize, steps: usize) -> *mut P {
        self.data.get().wrapping_add(at * self.columns + (column - self.first) * steps)
    }
}

/// Computes the product.
///
/// # Safety
/// The product's memory must be valid and its output not be read or written by others; `isa` must be available; k is
/// not 0.
pub(super) unsafe fn run<M: Arith>(isa: Isa, job: &impl Product<M>) {
    let (m, n, k) = job.size();
    let cut = Cut::new(isa, job);
    let steps = k.div_ceil(M::PER);
    let all = |columns: Range<usize>, rhs: Option<Packed<M::P>>| {
        let tall = m.div_ceil(cut.mt);
        pool::run(tall * columns.len().div_ceil(cut.nt), &|task| {
            let (r, c) = (task % tall * cut.mt, columns.start + task / tall * cut.nt);
            let (rows, cols) = (r..m.min(r + cut.mt), c..columns.end.min(c + cut.nt));
            // SAFETY: the caller's promise; tiles write disjoint parts of the output.
            scratch::for_task(|own| unsafe { tile(isa, job, &cut, rows, cols, rhs, own) });
        });
    };
    // Few tiles share a column: each packs for itself, while it is in L2.
    if m <= cut.mt || m <= 4 * cut.mt && cut.nt * cut.kc.div_ceil(M::PER) * size_of::<M::P>() <= OWN {
        return all(0..n, None);
    }
    let span = (SHARED / steps / cut.nt).max(1) * cut.nt;
    scratch::for_call(|call| {
        let room = call.rhs.room(span.min(n.next_multiple_of(cut.lanes)) * steps);
        for first in (0..n).step_by(span) {
            let columns = first..n.min(first + span);
            let padded = columns.len().next_multiple_of(cut.lanes);
            let rhs = Packed { data: SendPtr(room), first, columns: padded };
            // SAFETY: the buffer has room for the columns, all of k.
            unsafe { pack_columns(isa, job, &cut, columns.clone(), rhs) };
            all(columns, Some(rhs));
        }
    });
}

/// Packs columns of the right side, all of k, in one region.
unsafe fn pack_columns<M: Arith>(isa: Isa, job: &impl Product<M>, cut: &Cut, columns: Range<usize>, rhs: Packed<M::P>) {
    let (_, n, k) = job.size();
    let unit = PACK.div_ceil(cut.nr * k) * cut.nr;
    pool::for_each_chunk(columns.len().div_ceil(unit), 1, &|tasks| {
        let own = columns.start + tasks.start * unit..columns.end.min(columns.start + tasks.end * unit);
        for start in (0..k).step_by(cut.kc) {
            let ks = start..k.min(start + cut.kc);
            for c in own.clone().step_by(cut.nr) {
                let w = cut.width(c, n);
                let to = rhs.panel(c, start / M::PER, ks.len().div_ceil(M::PER));
                // SAFETY: panels inside the buffer, ranges inside the product; tasks write disjoint panels.
                unsafe { job.pack_rhs(isa, c, w.min(columns.end - c), w, ks.clone(), to) };
            }
        }
    });
}

/// Computes the tile `rows` x `cols`.
unsafe fn tile<M: Arith>(
    isa: Isa,
    job: &impl Product<M>,
    cut: &Cut,
    rows: Range<usize>,
    cols: Range<usize>,
    rhs: Option<Packed<M::P>>,
    scratch: &mut Scratch,
) {
    let (m, n, k) = job.size();
    let stretch = |start: usize| start..k.min(start + cut.kc);
    let steps_of = |ks: &Range<usize>| ks.len().div_ceil(M::PER);
    let (height, most) = (rows.len(), steps_of(&stretch(0)));
    let wide = cols.len().next_multiple_of(cut.lanes);
    let sums: *mut M::A = scratch.sums.room(if cut.kc < k { height * wide } else { cut.mr * MAX_COLS });
    let left: *mut M::P = scratch.lhs.room(cut.group * cut.mr * most);
    let own: *mut M::P = if rhs.is_none() { scratch.rhs.room(wide * most) } else { std::ptr::null_mut() };
    for start in (0..k).step_by(cut.kc) {
        let ks = stretch(start);
        let (steps, next) = (steps_of(&ks), stretch(ks.end));
        // SAFETY: panels and blocks lie inside the buffers sized above, ranges inside the product.
        unsafe {
            let right = match &rhs {
                Some(packed) => packed.panel(cols.start, start / M::PER, steps).cast_const(),
                None => {
                    for c in cols.clone().step_by(cut.nr) {
                        let w = cut.width(c, n);
                        let to = own.add((c - cols.start) * steps);
                        job.pack_rhs(isa, c, w.min(cols.end - c), w, ks.clone(), to);
                    }
                    own.cast_const()
                }
            };
            let mut right_soon = match &rhs {
                _ if next.is_empty() => Ahead::NOTHING,
                Some(packed) => {
                    let to = packed.panel(cols.start, ks.end / M::PER, steps_of(&next));
                    Ahead::new(to, 1, wide * steps_of(&next) * size_of::<M::P>(), 0)
                }
                None => job.rhs_ahead(cols.clone(), next.clone()),
            };
            let (group, mut left_soon) = (cut.group * cut.mr, Ahead::NOTHING);
            for r in rows.clone().step_by(cut.mr) {
                let mr = cut.mr.min(rows.end - r);
                let panel = (r - rows.start) / cut.mr % cut.group;
                if panel == 0 {
                    let end = rows.end.min(r + group);
                    job.pack_lhs(isa, r, end - r, mr, ks.clone(), left);
                    left_soon = match end {
                        _ if end < rows.end => job.lhs_ahead(end..rows.end.min(end + group), ks.clone()),
                        _ if !next.is_empty() => {
                            job.lhs_ahead(rows.start..rows.end.min(rows.start + group), next.clone())
                        }
                        _ => job.lhs_ahead(end..m.min(end + group), stretch(0)),
                    };
                }
                let a = left.add(panel * cut.mr * steps);
                for c in cols.clone().step_by(cut.nr) {
                    let w = cut.width(c, n);
                    let block = (r..r + mr, c..c + w.min(cols.end - c));
                    let in_place = if block.1.len() == w { job.sums(&block.0, &block.1) } else { None };
                    let (acc, ld) = in_place.unwrap_or_else(|| match cut.kc < k {
                        true => (sums.add((c - cols.start) * height + (r - rows.start) * w), w),
                        false => (sums, w),
                    });
                    // The block to the right, or the first of the rows below.
                    let column = if in_place.is_some() { 1 } else { height };
                    let then = match c + w < cols.end {
                        true => acc.wrapping_add(w * column),
                        false => acc.wrapping_add(mr * ld).wrapping_sub((c - cols.start) * column),
                    };
                    if next.is_empty() && in_place.is_none() {
                        job.want(block.0.clone(), block.1.clone());
                    }
                    let soon = if left_soon.more() { &mut left_soon } else { &mut right_soon };
                    if !soon.more() {
                        *soon = Ahead::NOTHING;
                    }
                    let b = right.add((c - cols.start) * steps);
                    M::kernel(isa, mr, w / cut.lanes)(steps, a, b, acc, ld, start == 0, then, soon);
                    if next.is_empty() && in_place.is_none() {
                        job.put(isa, block.0, block.1, acc, ld);
                    }
                }
            }
        }
    }
}
