//! The loops around the micro-kernels for many products or few rows: tiles, stretches of k, tasks.
//!
//! The output is cut into tiles of rows and columns only. A tile walks over k in stretches of [`Plan::kc`]; within a
//! stretch it takes a panel of the right side (in L1) along all its panels of the left side (in L2). Sums of a tile
//! stay in the thread's scratch between stretches and are rounded once, after the last.
//!
//! The tiles of any number of products run in one region, and each packs what it needs. Products of many rows go
//! through [`large`] one by one. Cuts depend on shapes and threads, and no cut changes a bit.

use super::large;
use super::micro::{Ahead, Arith, MAX_COLS};
use super::scratch::{self, Scratch};
use super::stream;
use crate::isa::Isa;
use crate::pool::{self, SendPtr};
use crate::stretch;
use std::ops::Range;

/// One product: its size, and how to read and write it.
pub(crate) trait Product<M: Arith>: Sync {
    /// m, n, k.
    fn size(&self) -> (usize, usize, usize);
    /// Packs rows `lane..lane + count` of the left side at width `w`, elements `ks` of k. `count` is at most `w` unless the
    /// left side is transposed: then more rows make panels one after the other, the last as wide as what is left.
    ///
    /// # Safety
    /// The ranges must lie inside the product; `dst` must hold `ks.len().div_ceil(PER)` times `w` or `count` values.
    unsafe fn pack_lhs(&self, isa: Isa, lane: usize, count: usize, w: usize, ks: Range<usize>, dst: *mut M::P);
    /// Whether rows of the left side are neighbours in memory, so that many are best read together.
    fn lhs_is_transposed(&self) -> bool {
        false
    }
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
    /// Where rows of the left side lie in memory, elements `ks` of k, as far as it is known.
    fn lhs_ahead(&self, _rows: Range<usize>, _ks: Range<usize>) -> Ahead {
        Ahead::NOTHING
    }
    /// The same for columns of the right side.
    fn rhs_ahead(&self, _cols: Range<usize>, _ks: Range<usize>) -> Ahead {
        Ahead::NOTHING
    }
    /// Where the sums of a block can stand in the output, and how far apart its rows are, if they need no rounding.
    fn sums(&self, _rows: &Range<usize>, _cols: &Range<usize>) -> Option<(*mut M::A, usize)> {
        None
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
/// Products of fewer multiplications or rows than this run as tasks of one region.
const LARGE: usize = 1 << 26;
/// A task should take at least this many cycles.
const TASK_CYCLES: usize = 20_000;
/// Elements that a task streams past few rows: threads wait for each other's last task.
const STREAM: usize = 1 << 16;
/// Tiles to aim at for each thread, so that all end at about the same time.
const TILES: usize = 8;

impl Plan {
    fn new<M: Arith>(isa: Isa, (m, n, k): (usize, usize, usize), along: Option<Along>) -> Plan {
        let blocks = M::blocks(isa);
        let lanes = blocks.lanes;
        if let Some(along) = along.filter(|_| m <= blocks.tall && isa >= Isa::Avx2) {
            let mr = stream::kernel_rows(m, blocks.tall);
            let nr = lanes * if along == Along::K { stream::column_vectors(isa, mr) } else { stream::row_vectors(mr) };
            // Contiguous rows are best read in long pieces, contiguous columns one after the other, in small tasks.
            let nt =
                if along == Along::K { nr * (STREAM / (nr * k.max(1))).clamp(1, 8) } else { 4096 / size_of::<M::P>() };
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

/// Computes the columns `cols` of a product of few rows. `lhs` is the whole left side at width `plan.mr`.
unsafe fn stream_tile<M: Arith>(
    isa: Isa,
    job: &impl Product<M>,
    plan: &Plan,
    cols: Range<usize>,
    lhs: Option<SendPtr<M::P>>,
    scratch: &mut Scratch,
) {
    let (m, _, k) = job.size();
    let stretches = if plan.stream == Some(Along::K) { 1 } else { k.div_ceil(plan.kc).max(1) };
    let blocks = if stretches == 1 { 1 } else { cols.len().div_ceil(plan.nr) };
    let sums: *mut M::A = scratch.sums.room(blocks * plan.mr * plan.nr);
    // SAFETY: panels and blocks lie inside the buffers, ranges inside the product.
    unsafe {
        let a = match &lhs {
            Some(packed) => packed.get(),
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
    scratch: &mut Scratch,
) {
    if plan.stream.is_some() {
        // SAFETY: handed on.
        return unsafe { stream_tile(isa, job, plan, cols, None, scratch) };
    }
    let (_, n, k) = job.size();
    let stretches = k.div_ceil(plan.kc).max(1);
    let most = plan.kc.min(k).div_ceil(M::PER);
    let height = rows.len();
    let wide = cols.len().next_multiple_of(plan.lanes) + 2 * plan.lanes;
    let sums: *mut M::A = scratch.sums.room(if stretches == 1 { plan.mr * MAX_COLS } else { height * wide });
    let lhs: *mut M::P = scratch.lhs.room(height * most);
    let rhs: *mut M::P = scratch.rhs.room(plan.nr * most);
    for s in 0..stretches {
        let ks = s * plan.kc..k.min((s + 1) * plan.kc);
        let steps = ks.len().div_ceil(M::PER);
        // SAFETY: panels and blocks lie inside the buffers sized above, ranges inside the product.
        unsafe {
            for r in rows.clone().step_by(plan.mr) {
                let mr = plan.mr.min(rows.end - r);
                job.pack_lhs(isa, r, mr, mr, ks.clone(), lhs.add((r - rows.start) * steps));
            }
            for c in cols.clone().step_by(plan.nr) {
                let w = plan.width(c, n);
                let count = w.min(cols.end - c);
                job.pack_rhs(isa, c, count, w, ks.clone(), rhs);
                for r in rows.clone().step_by(plan.mr) {
                    let mr = plan.mr.min(rows.end - r);
                    let a = lhs.add((r - rows.start) * steps);
                    let acc = match stretches {
                        1 => sums,
                        _ => sums.add((c - cols.start) * height + (r - rows.start) * w),
                    };
                    if s + 1 == stretches {
                        job.want(r..r + mr, c..c + count);
                    }
                    M::kernel(isa, mr, w / plan.lanes)(steps, a, rhs, acc, w, s == 0, acc, &mut { Ahead::NOTHING });
                    if s + 1 == stretches {
                        job.put(isa, r..r + mr, c..c + count, acc, w);
                    }
                }
            }
        }
    }
}

/// Products of any number and size in one region; every tile packs both sides for itself.
///
/// # Safety
/// As for [`run`].
unsafe fn many<M: Arith>(isa: Isa, jobs: &[impl Product<M>]) {
    let total: usize = jobs.iter().map(|job| work(job.size())).fold(0, usize::saturating_add);
    let plan_of = |job: &_| {
        let size = Product::<M>::size(job);
        let mut plan = Plan::new::<M>(isa, size, Product::<M>::streams(job));
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
            let lhs = SendPtr(room);
            // SAFETY: the buffer has the room; the caller's promise; tasks write disjoint columns.
            unsafe {
                job.pack_lhs(isa, 0, m, plan.mr, 0..k, room);
                stretch::run(n.div_ceil(plan.nt), &|i| {
                    let cols = i * plan.nt..n.min((i + 1) * plan.nt);
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
                    unsafe { tile(isa, job, &plan, rows, cols, own) };
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
        let is_large = |(m, n, k)| m > 8 * M::blocks(isa).tall && k > 0 && work((m, n, k)) >= least;
        if jobs.iter().all(|job| is_large(job.size())) {
            jobs.iter().for_each(|job| large::run(isa, job));
        } else {
            many(isa, jobs);
        }
    }
}
