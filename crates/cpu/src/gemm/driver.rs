//! The loops around the micro-kernels: tiles, stretches of k, tasks.
//!
//! The output is cut into tiles of rows and columns only. A tile walks over k in stretches of [`Plan::kc`]; within a
//! stretch it takes a panel of the right side (in L1) along all its panels of the left side (in L2). Sums of a tile
//! stay in the thread's scratch between stretches and are rounded once, after the last.
//!
//! Two drivers: [`large`] packs both sides once, in parallel, then runs the tiles; [`many`] runs the tiles of any number
//! of products in one region, and each packs what it needs. Cuts depend on shapes alone, and no cut changes a bit.

use super::micro::{Arith, MAX_COLS, PREFETCH_EVERY};
use super::scratch::{self, Scratch};
use super::stream;
use crate::isa::Isa;
use crate::pool::{self, SendPtr};
use std::ops::Range;

/// One product: its size, and how to read and write it.
pub(crate) trait Product<M: Arith>: Sync {
    /// m, n, k.
    fn size(&self) -> (usize, usize, usize);
    /// Packs rows `lane..lane + count` of the left side at width `w`, elements `ks` of k.
    ///
    /// # Safety
    /// The ranges must lie inside the product; `dst` must hold `ks.len().div_ceil(PER) * w` values.
    unsafe fn pack_lhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P);
    /// Packs columns of the right side in the same way.
    ///
    /// # Safety
    /// As for `pack_lhs`.
    unsafe fn pack_rhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P);
    /// Along which axis the right side is contiguous, if it can be multiplied by few rows without packing.
    fn streams(&self) -> Option<Along> {
        None
    }
    /// All of k for some columns; see [`stream::columns`].
    ///
    /// # Safety
    /// Only if [`Product::streams`] says so; `a` must hold the left side at width `mr`, `acc` a block of the kernel.
    unsafe fn stream_columns(&self, _: Isa, _mr: usize, _lane: usize, _count: usize, _: *const M::P, _: *mut M::A) {}
    /// A stretch of k for some columns; see [`stream::rows`].
    ///
    /// # Safety
    /// As for `stream_columns`.
    unsafe fn stream_rows(
        &self,
        _: Isa,
        _mr: usize,
        _lane: usize,
        _count: usize,
        _: Range<usize>,
        _: *const M::P,
        _: *mut M::A,
    ) {
    }
    /// Prefetches where a block will be written.
    fn want(&self, _rows: Range<usize>, _cols: Range<usize>) {}
    /// Writes a block of finished sums, rows `ld` apart.
    ///
    /// # Safety
    /// The block must lie inside the product, and no other thread may write it.
    unsafe fn put(&self, isa: Isa, rows: Range<usize>, cols: Range<usize>, acc: *const M::A, ld: usize);
}

/// The contiguous axis of a right side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    K,
    N,
}

/// How a product is cut.
#[derive(Clone, Copy, Debug)]
struct Plan {
    /// All rows at once, the right side not packed.
    stream: Option<Along>,
    lanes: usize,
    /// Rows of a panel, and of a tile.
    mr: usize,
    mt: usize,
    /// Columns of a panel, and of a tile.
    nr: usize,
    nt: usize,
    /// Elements of k in a stretch.
    kc: usize,
}

/// Elements of k in a stretch: a panel of the right side fills two thirds of L1.
const KC: usize = 256;
/// Values of each packed side that [`large`] keeps at a time.
const PACKED: usize = 4 << 20;
/// Longest k that [`large`] takes: beyond, the packed sides would be too narrow to be worth sharing.
const LONGEST: usize = 32768;
/// Products of fewer multiplications than this run as tasks of one region.
const LARGE: usize = 1 << 26;
/// A task should take at least this many cycles.
const TASK_CYCLES: usize = 20_000;
/// Tiles to aim at for each thread, so that all end at about the same time.
const TILES: usize = 8;

impl Plan {
    fn new<M: Arith>(isa: Isa, (m, n, _): (usize, usize, usize), along: Option<Along>) -> Plan {
        let blocks = M::blocks(isa);
        let lanes = blocks.lanes;
        if let Some(along) = along.filter(|_| m <= blocks.tall && isa >= Isa::Avx2) {
            let mr = stream::kernel_rows(m, blocks.tall);
            let nr = lanes * if along == Along::K { stream::column_vectors(mr) } else { stream::row_vectors(mr) };
            // Contiguous rows are best read in long pieces, contiguous columns one after the other.
            let nt = if along == Along::K { 8 * nr } else { 4096 / size_of::<M::P>() };
            let nt = nt.min(n.next_multiple_of(nr));
            return Plan { stream: Some(along), lanes, mr, mt: m, nr, nt, kc: stream::STRETCH };
        }
        let nr = if m <= blocks.wide && n > 2 * lanes { 4 * lanes } else { 2 * lanes };
        let mr = m.div_ceil(m.div_ceil(blocks.tall));
        let kc = KC * 2 * lanes / nr;
        let nt = n.next_multiple_of(lanes).min(32 * lanes);
        Plan { stream: None, lanes, mr, mt: m.min(16 * mr), nr, nt, kc }
    }

    /// Rough cycles of one tile.
    fn cycles(&self, k: usize) -> usize {
        self.nt * k * (self.mt + 32) / (2 * self.lanes) + 200
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.mt) * n.div_ceil(self.nt)
    }

    /// Halves the tiles until there are enough of them or they would be too small.
    fn shrink(&mut self, (m, n, k): (usize, usize, usize), jobs: usize, floor: usize) {
        let threads = pool::threads();
        let enough = if threads == 1 { 1 } else { TILES * threads };
        while jobs * self.tiles(m, n) < enough && self.cycles(k) > 2 * floor {
            if self.nt > self.nr && (self.nt >= self.mt || self.mt <= 4 * self.mr) {
                self.nt = (self.nt / 2).next_multiple_of(self.nr);
            } else if self.mt > self.mr {
                self.mt = (self.mt / 2).next_multiple_of(self.mr);
            } else {
                return;
            }
        }
    }

    /// Width of the panel that starts at column `c` of `n`.
    fn width(&self, c: usize, n: usize) -> usize {
        match (n - c).div_ceil(self.lanes).min(self.nr / self.lanes) {
            3 => 4 * self.lanes,
            vectors => vectors * self.lanes,
        }
    }
}

/// A packed side kept in memory: the stretches of k one after the other, the panels of each side by side.
#[derive(Clone, Copy)]
struct Packed<P> {
    data: SendPtr<P>,
    /// First lane, and lanes with padding.
    first: usize,
    lanes: usize,
}

impl<P> Packed<P> {
    /// Where the panel of `lane` begins in the stretch of k that starts at step `at` and has `steps` steps.
    unsafe fn panel(&self, lane: usize, at: usize, steps: usize) -> *mut P {
        // SAFETY: a panel inside the buffer.
        unsafe { self.data.get().add(at * self.lanes + (lane - self.first) * steps) }
    }
}

/// Computes the columns `cols` of a product of few rows. `lhs` is the whole left side at width `plan.mr`.
unsafe fn stream_tile<M: Arith>(
    isa: Isa,
    job: &impl Product<M>,
    plan: &Plan,
    cols: Range<usize>,
    lhs: Option<Packed<M::P>>,
    scratch: &mut Scratch,
) {
    let (m, _, k) = job.size();
    let stretches = if plan.stream == Some(Along::K) { 1 } else { k.div_ceil(plan.kc).max(1) };
    let blocks = if stretches == 1 { 1 } else { cols.len().div_ceil(plan.nr) };
    let sums: *mut M::A = scratch.sums.room(blocks * plan.mr * plan.nr);
    // SAFETY: panels and blocks lie inside the buffers, ranges inside the product.
    unsafe {
        let a = match &lhs {
            Some(packed) => packed.data.get(),
            None => {
                let own = scratch.lhs.room(k.div_ceil(M::PER) * plan.mr);
                job.pack_lhs(isa, 0, m, plan.mr, 0..k, own);
                own
            }
        };
        for s in 0..stretches {
            for (j, c) in cols.clone().step_by(plan.nr).enumerate() {
                let count = plan.nr.min(cols.end - c);
                let acc = if stretches == 1 { sums } else { sums.add(j * plan.mr * plan.nr) };
                if plan.stream == Some(Along::K) {
                    job.stream_columns(isa, plan.mr, c, count, a, acc);
                } else {
                    let ks = s * plan.kc..k.min((s + 1) * plan.kc);
                    let a = a.add(ks.start / M::PER * plan.mr);
                    job.stream_rows(isa, plan.mr, c, count, ks, a, acc);
                }
                if s + 1 == stretches {
                    job.put(isa, 0..m, c..c + count, acc, plan.nr);
                }
            }
        }
    }
}

/// Computes the tile `rows` x `cols`.
unsafe fn tile<M: Arith>(
    isa: Isa,
    job: &impl Product<M>,
    plan: &Plan,
    rows: Range<usize>,
    cols: Range<usize>,
    lhs: Option<Packed<M::P>>,
    rhs: Option<Packed<M::P>>,
    scratch: &mut Scratch,
) {
    if plan.stream.is_some() {
        // SAFETY: handed on.
        return unsafe { stream_tile(isa, job, plan, cols, lhs, scratch) };
    }
    let (_, n, k) = job.size();
    let stretches = k.div_ceil(plan.kc).max(1);
    let steps_of = |ks: &Range<usize>| ks.len().div_ceil(M::PER);
    let most = plan.kc.min(k).div_ceil(M::PER);
    let height = rows.len();
    let wide = cols.len().next_multiple_of(plan.lanes) + 2 * plan.lanes;
    let sums: *mut M::A = scratch.sums.room(if stretches == 1 { plan.mr * MAX_COLS } else { height * wide });
    let own_lhs: *mut M::P = if lhs.is_none() { scratch.lhs.room(height * most) } else { std::ptr::null_mut() };
    let own_rhs: *mut M::P = if rhs.is_none() { scratch.rhs.room(plan.nr * most) } else { std::ptr::null_mut() };
    for s in 0..stretches {
        let ks = s * plan.kc..k.min((s + 1) * plan.kc);
        let (at, steps) = (ks.start / M::PER, steps_of(&ks));
        // SAFETY: panels and blocks lie inside the buffers sized above, ranges inside the product.
        unsafe {
            if lhs.is_none() {
                for r in rows.clone().step_by(plan.mr) {
                    let count = plan.mr.min(rows.end - r);
                    job.pack_lhs(isa, r, count, count, ks.clone(), own_lhs.add((r - rows.start) * steps));
                }
            }
            let panels = height.div_ceil(plan.mr);
            for (j, c) in cols.clone().step_by(plan.nr).enumerate() {
                let w = plan.width(c, n);
                let count = w.min(cols.end - c);
                let b = match &rhs {
                    Some(packed) => packed.panel(c, at, steps),
                    None => {
                        job.pack_rhs(isa, c, count, w, ks.clone(), own_rhs);
                        own_rhs
                    }
                };
                for (i, r) in rows.clone().step_by(plan.mr).enumerate() {
                    let mr = plan.mr.min(rows.end - r);
                    let a = match &lhs {
                        Some(packed) => packed.panel(r, at, steps),
                        None => own_lhs.add((r - rows.start) * steps),
                    };
                    let acc = match stretches {
                        1 => sums,
                        _ => sums.add((c - cols.start) * height + (r - rows.start) * w),
                    };
                    // What this call prefetches of packed sides: a part of the next right panel, or of the left
                    // side's next stretch.
                    let part = steps / PREFETCH_EVERY * 64 / size_of::<M::P>();
                    let calls = (steps * w).div_ceil(part.max(1)).min(panels - 1);
                    let ahead = match (&lhs, &rhs) {
                        (_, Some(packed)) if i < calls => {
                            let last = c + plan.nr >= cols.end;
                            let next =
                                if last { packed.panel(cols.start, at + steps, steps) } else { b.add(steps * w) };
                            next.wrapping_add(i * part).cast_const()
                        }
                        (Some(packed), Some(_)) => {
                            let at_part = (j * (panels - calls) + i - calls) * part;
                            let next = packed.panel(rows.start, at + steps, steps);
                            if at_part < height * steps { next.wrapping_add(at_part) } else { a }
                        }
                        _ => a.cast_const(),
                    };
                    if s + 1 == stretches {
                        job.want(r..r + mr, c..c + count);
                    }
                    M::kernel(isa, mr, w / plan.lanes)(steps, a, b, w, acc, s == 0, ahead);
                    if s + 1 == stretches {
                        job.put(isa, r..r + mr, c..c + count, acc, w);
                    }
                }
            }
        }
    }
}

/// One product worth packing once: its left side is shared by all tiles of a row, its right side by all of a column.
///
/// # Safety
/// The product's memory must be valid and its output not be read or written by others; `isa` must be available.
unsafe fn large<M: Arith>(isa: Isa, job: &impl Product<M>) {
    let (m, n, k) = job.size();
    let mut plan = Plan::new::<M>(isa, (m, n, k), job.streams());
    plan.shrink((m, n, k), 1, 2_000_000 / 64);
    let steps = k.div_ceil(M::PER);
    let share_rhs = m > plan.mt;
    let span = |len: usize, unit: usize| len.min((PACKED / k).next_multiple_of(unit).max(unit));
    let (ms, ns) = (span(m, plan.mt), if share_rhs { span(n, plan.nt) } else { n });
    scratch::for_call(|call| {
        let lhs_room: *mut M::P = call.lhs.room(ms * steps);
        let rhs_room: *mut M::P = if share_rhs { call.rhs.room((ns + 4 * plan.lanes) * steps) } else { lhs_room };
        for n0 in (0..n).step_by(ns) {
            let cols = n0..n.min(n0 + ns);
            // A last panel of three vectors is packed as four.
            let rhs_lanes = cols.len().next_multiple_of(plan.lanes) + plan.lanes;
            let rhs = Packed { data: SendPtr(rhs_room), first: n0, lanes: rhs_lanes };
            for m0 in (0..m).step_by(ms) {
                let rows = m0..m.min(m0 + ms);
                let lhs = Packed { data: SendPtr(lhs_room), first: m0, lanes: rows.len() };
                let lhs_new = n0 == 0 || ms < m;
                let rhs_new = share_rhs && m0 == 0;
                // SAFETY: tasks write disjoint panels, tiles write disjoint parts of the output.
                unsafe {
                    pack_both(isa, job, &plan, (rows.clone(), lhs, lhs_new), (cols.clone(), rhs, rhs_new));
                    let tall = rows.len().div_ceil(plan.mt);
                    pool::run(tall * cols.len().div_ceil(plan.nt), &|task| {
                        let r = rows.start + task % tall * plan.mt;
                        let c = cols.start + task / tall * plan.nt;
                        let (rows, cols) = (r..rows.end.min(r + plan.mt), c..cols.end.min(c + plan.nt));
                        let rhs = share_rhs.then_some(rhs);
                        scratch::for_task(|own| tile(isa, job, &plan, rows, cols, Some(lhs), rhs, own));
                    });
                }
            }
        }
    });
}

/// Packs the given lanes of both sides, all of k, in one region.
unsafe fn pack_both<M: Arith>(
    isa: Isa,
    job: &impl Product<M>,
    plan: &Plan,
    (rows, lhs, lhs_new): (Range<usize>, Packed<M::P>, bool),
    (cols, rhs, rhs_new): (Range<usize>, Packed<M::P>, bool),
) {
    let (_, n, k) = job.size();
    // Panels of one task: some ten thousand cycles.
    let unit = |lanes: usize| (1usize << 16).div_ceil(lanes * k).max(1) * lanes;
    let (row_unit, col_unit) = (unit(plan.mr), unit(plan.nr));
    let row_tasks = if lhs_new { rows.len().div_ceil(row_unit) } else { 0 };
    let col_tasks = if rhs_new { cols.len().div_ceil(col_unit) } else { 0 };
    let stretch = |s: usize| s..k.min(s + plan.kc);
    pool::run(row_tasks + col_tasks, &|task| {
        // SAFETY: panels inside the buffers, ranges inside the product.
        unsafe {
            if task < row_tasks {
                let r0 = rows.start + task * row_unit;
                for s in (0..k).step_by(plan.kc) {
                    for r in (r0..rows.end.min(r0 + row_unit)).step_by(plan.mr) {
                        let (ks, count) = (stretch(s), plan.mr.min(rows.end - r));
                        let to = lhs.panel(r, s / M::PER, ks.len().div_ceil(M::PER));
                        job.pack_lhs(isa, r, count, count, ks, to);
                    }
                }
            } else {
                let c0 = cols.start + (task - row_tasks) * col_unit;
                for s in (0..k).step_by(plan.kc) {
                    for c in (c0..cols.end.min(c0 + col_unit)).step_by(plan.nr) {
                        let (ks, w) = (stretch(s), plan.width(c, n));
                        let to = rhs.panel(c, s / M::PER, ks.len().div_ceil(M::PER));
                        job.pack_rhs(isa, c, w.min(cols.end - c), w, ks, to);
                    }
                }
            }
        }
    });
}

/// Products of any number and size in one region; every tile packs both sides for itself.
///
/// # Safety
/// As for [`large`].
unsafe fn many<M: Arith>(isa: Isa, jobs: &[impl Product<M>]) {
    let total: usize = jobs.iter().map(|job| work(job.size())).fold(0, usize::saturating_add);
    let plan_of = |job: &_| {
        let size = Product::<M>::size(job);
        let mut plan = Plan::new::<M>(isa, size, Product::<M>::streams(job));
        if size.2 > LONGEST {
            plan.mt = size.0.min(32 * plan.mr);
        }
        plan.shrink(size, jobs.len(), TASK_CYCLES);
        plan
    };
    // The left side of a lone product of few rows is packed here, once, and not by every task.
    if let [job] = jobs
        && plan_of(job).stream.is_some()
    {
        let (plan, (m, n, k)) = (plan_of(job), job.size());
        return scratch::for_call(|call| {
            let room: *mut M::P = call.lhs.room(k.div_ceil(M::PER) * plan.mr);
            let lhs = Packed { data: SendPtr(room), first: 0, lanes: plan.mr };
            // SAFETY: the buffer has the room; the caller's promise; tasks write disjoint columns.
            unsafe {
                job.pack_lhs(isa, 0, m, plan.mr, 0..k, room);
                pool::for_each_chunk(n, plan.nt, &|cols| {
                    scratch::for_task(|own| stream_tile(isa, job, &plan, cols, Some(lhs), own));
                });
            }
        });
    }
    // Tiles of all jobs in one row, cut into tasks of about equal work.
    let mut starts = Vec::with_capacity(jobs.len() + 1);
    let mut tiles = 0;
    for job in jobs {
        starts.push(tiles);
        let (m, n, _) = job.size();
        tiles += plan_of(job).tiles(m, n);
    }
    let per_task = tiles.div_ceil((total / (TASK_CYCLES * 16)).clamp(1, tiles.max(1)));
    pool::for_each_chunk(tiles, per_task, &|chunk| {
        let mut j = starts.partition_point(|&start| start <= chunk.start) - 1;
        scratch::for_task(|own| {
            let mut at = chunk.start;
            while at < chunk.end {
                let (job, plan) = (&jobs[j], plan_of(&jobs[j]));
                let (m, n, _) = job.size();
                let tall = m.div_ceil(plan.mt);
                let end = chunk.end.min(starts[j] + plan.tiles(m, n));
                for t in at - starts[j]..end - starts[j] {
                    let (r, c) = (t % tall * plan.mt, t / tall * plan.nt);
                    let (rows, cols) = (r..m.min(r + plan.mt), c..n.min(c + plan.nt));
                    // SAFETY: the caller's promise; tiles write disjoint parts of the output.
                    unsafe { tile(isa, job, &plan, rows, cols, None, None, own) };
                }
                at = end;
                j += 1;
            }
        });
    });
}

/// Multiplications of a product, reading the right side counted as 16 rows.
fn work((m, n, k): (usize, usize, usize)) -> usize {
    (m + 16).saturating_mul(n).saturating_mul(k.max(1))
}

/// Computes all products.
///
/// # Safety
/// The products' memory must be valid, no output may be read or written by others, outputs must not overlap; `isa`
/// must be available.
pub(crate) unsafe fn run<M: Arith>(isa: Isa, jobs: &[impl Product<M>]) {
    // SAFETY: handed on.
    unsafe {
        let least = if jobs.len() == 1 { LARGE / 16 } else { LARGE };
        let is_large = |(m, n, k)| m > M::blocks(isa).tall && k > 0 && k <= LONGEST && work((m, n, k)) >= least;
        if jobs.iter().all(|job| is_large(job.size())) {
            jobs.iter().for_each(|job| large(isa, job));
        } else {
            many(isa, jobs);
        }
    }
}
