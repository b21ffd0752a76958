//! Products with packed weights: plain, and gathered (rows paired with matrices of a stack).
//!
//! The work is cut into tasks of some rows of `x`, one matrix and a run of 64-column blocks of the result; the reduction
//! axis is never cut, and the rows of a task do not touch each other's numbers. So a row's result is the same bits
//! whatever else is computed with it, and however the work is spread over threads.
//!
//! A task walks its blocks along the reduction axis 256 codes at a time: unpack a panel into the first-level cache, use
//! it for all rows. With one row that streams the packed weights once: `bits / 8 + scales` bytes for 2 operations an
//! element. With many rows the panel's cost vanishes and the products run at the speed of the dot instruction.

use super::activations::{Activations, Rows, Sum, activations};
use super::coming::{Coming, LINE};
use super::decode::{self, Meaning, PANEL_F32};
use super::format::{Mode, check_float, check_len};
use super::panel::{self, COLUMNS, Content, DEPTH, FP4_OFFSET, PANEL, SCALE_TILE, TILE_GROUPS};
use super::tail::Tail;
use super::tasks::{Job, Pair, TASK_ROWS, Task, Tasks, tiles};
use super::weights::Weights;
use super::{dot, fma, halves};
#[cfg(target_arch = "x86_64")]
use super::{thin, tiles};
#[cfg(target_arch = "x86_64")]
use crate::amx::Shapes;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::features;
use crate::simd::dispatch_with;
use crate::{pool, soon, stretch};
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use smallvec::{SmallVec, smallvec};
use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// Rows of `x` up to which weights go straight to the dot products.
pub(crate) const THIN_ROWS: usize = 16;

/// How half-precision activations are multiplied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Arithmetic {
    /// Half-precision activations are quantized to 8 bits a group and multiplied as integers, where the codes of the
    /// weights are integers too (all modes but mxfp8) and groups run along the reduction axis.
    #[default]
    Fast,
    /// Everything in f32.
    Exact,
}

/// Whether arrays are multiplied exactly, as 1 + that; 0 until it is known.
static EXACT: AtomicU8 = AtomicU8::new(0);

/// How arrays are multiplied: [`Arithmetic::Exact`] where the variable `LAPIS_EXACT` is set and not 0.
pub fn arithmetic() -> Arithmetic {
    match EXACT.load(Relaxed) {
        0 => {
            let exact = std::env::var_os("LAPIS_EXACT").is_some_and(|v| !v.is_empty() && v != "0");
            set_arithmetic(if exact { Arithmetic::Exact } else { Arithmetic::Fast });
            arithmetic()
        }
        1 => Arithmetic::Fast,
        _ => Arithmetic::Exact,
    }
}

/// Has all products of arrays from now on computed so, whatever `LAPIS_EXACT` says.
pub fn set_arithmetic(arithmetic: Arithmetic) {
    EXACT.store(1 + u8::from(arithmetic == Arithmetic::Exact), Relaxed);
}

/// `x @ w.T` (`transpose`, `w` is `[n, k]`) or `x @ w` (`w` is `[k, n]`) into contiguous `out`, `[rows of x, n]`.
///
/// f32 accumulation, rounded once to `out_dtype` (f32, f16 or bf16). f32 activations are multiplied in f32 whatever
/// `arithmetic` says.
///
/// # Errors
/// Sizes or dtypes that do not fit.
pub fn qmm(
    isa: Isa,
    x: &Rows,
    w: &Weights,
    transpose: bool,
    arithmetic: Arithmetic,
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    qmm_all(isa, x, &mut [Target { w, out }], transpose, arithmetic, out_dtype)
}

/// One of several matrices that the same rows are multiplied with, and where the result goes.
pub struct Target<'a> {
    /// The matrix.
    pub w: &'a Weights<'a>,
    /// Contiguous `[rows of x, n]`.
    pub out: &'a mut [u8],
}

/// As [`qmm`] with each of `targets`, all of one format: rows are prepared once, and threads meet once.
///
/// # Errors
/// As [`qmm`]; formats that differ.
pub fn qmm_all(
    isa: Isa,
    x: &Rows,
    targets: &mut [Target],
    transpose: bool,
    arithmetic: Arithmetic,
    out_dtype: Dtype,
) -> Result<()> {
    let op = "quantized_matmul";
    for Target { w, out } in targets.iter() {
        if w.stack != 1 {
            return Err(Error::shape(format!("[{op}] one matrix is taken, not a stack of {}", w.stack)));
        }
        if w.format != targets[0].w.format {
            return Err(Error::value(format!("[{op}] matrices of different formats in one call")));
        }
        let n = check_product(op, x, w, transpose, out_dtype)?;
        check_len(op, "the result", out.len(), x.rows() * n * out_dtype.size())?;
    }
    let pairs: SmallVec<[Pair; THIN_ROWS]> = (0..x.rows()).map(|r| Pair { x: r, out: r }).collect();
    products(isa, x, targets, transpose, arithmetic, &[Job { matrix: 0, pairs: &pairs }], None, out_dtype);
    Ok(())
}

/// What `tail` makes of products of the same rows with several matrices of one format and size, into contiguous `out`, `[rows of x, n]`.
///
/// # Errors
/// As [`qmm_all`]; sizes that differ; a tail of other products.
pub fn qmm_through(
    isa: Isa,
    x: &Rows,
    weights: &[Weights],
    transpose: bool,
    arithmetic: Arithmetic,
    tail: &Tail,
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let op = "quantized_matmul";
    let mut n = 0;
    for w in weights {
        n = check_product(op, x, w, transpose, out_dtype)?;
        if w.stack != 1 || w.format != weights[0].format || (w.rows, w.cols) != (weights[0].rows, weights[0].cols) {
            return Err(Error::shape(format!("[{op}] matrices of different sizes or formats in one call")));
        }
    }
    check_len(op, "the result", out.len(), x.rows() * n * out_dtype.size())?;
    tail.check(weights.len(), out.len())?;
    // The last one's place is that of the result of all.
    let mut targets: SmallVec<[Target; 4]> = weights.iter().map(|w| Target { w, out: &mut [] }).collect();
    targets.iter_mut().next_back().into_iter().zip([out]).for_each(|(last, out)| last.out = out);
    let pairs: Vec<Pair> = (0..x.rows()).map(|r| Pair { x: r, out: r }).collect();
    products(isa, x, &mut targets, transpose, arithmetic, &[Job { matrix: 0, pairs: &pairs }], Some(tail), out_dtype);
    Ok(())
}

/// Checks what plain and gathered products have in common; returns the columns of the result.
pub(super) fn check_product(op: &str, x: &Rows, w: &Weights, transpose: bool, out_dtype: Dtype) -> Result<usize> {
    let (n, k) = if transpose { (w.rows, w.cols) } else { (w.cols, w.rows) };
    check_float(op, "the result", out_dtype)?;
    if x.cols() != k {
        let have = x.cols();
        return Err(Error::shape(format!("[{op}] x has {have} columns, the weights take {k}")));
    }
    Ok(n)
}

/// Computes checked jobs with matrices of one format; `out` rows named by no pair are left alone.
pub(super) fn products(
    isa: Isa,
    x: &Rows,
    targets: &mut [Target],
    transpose: bool,
    arithmetic: Arithmetic,
    jobs: &[Job],
    tail: Option<&Tail>,
    out_dtype: Dtype,
) {
    let Some(Target { w, .. }) = targets.first() else { return };
    let mut wanted: SmallVec<[bool; THIN_ROWS]> = smallvec![false; x.rows()];
    for pair in jobs.iter().flat_map(|job| job.pairs) {
        wanted[pair.x] = true;
    }
    let integers = transpose && arithmetic == Arithmetic::Fast && x.dtype().is_half() && w.format.mode() != Mode::Mxfp8;
    let x = if integers {
        let sum = if w.format.has_biases() { Sum::Bias } else { Sum::Offset(FP4_OFFSET) };
        Left::Bytes(activations(isa, x, w.format.bits(), w.format.group(), sum, &|r| wanted[r]))
    } else if x.dtype() == Dtype::Float32 {
        Left::Floats(Floats { start: x.bytes().as_ptr().cast(), stride: x.stride(), _owned: Vec::new() })
    } else {
        Left::Floats(Floats::converted(isa, x, &wanted))
    };
    multiply(isa, x, targets, transpose, jobs, tail, out_dtype);
}

/// [`products`] with a prepared left side.
pub(super) fn multiply(
    isa: Isa,
    x: Left,
    targets: &mut [Target],
    transpose: bool,
    jobs: &[Job],
    tail: Option<&Tail>,
    out_dtype: Dtype,
) {
    #[cfg(target_arch = "x86_64")]
    let mut rows = FEW.take().unwrap_or_default();
    let parts: SmallVec<[Product; 4]> = targets
        .iter_mut()
        .map(|Target { w, out }| {
            let n = if transpose { w.rows } else { w.cols };
            Product {
                isa,
                w,
                transpose,
                x: &x,
                #[cfg(target_arch = "x86_64")]
                few: None,
                out_dtype,
                stores: !out.is_empty(),
                out: Out(out.as_mut_ptr()),
                n,
            }
        })
        .collect();
    // Few rows are a matter of reading the weights in their order; many, of threads that share the rows in cache.
    let few = tail.is_none() && jobs.iter().all(|job| job.pairs.len() <= THIN_ROWS);
    let least = if few { parts[0].least_width(jobs) } else { COLUMNS };
    // A tail's tasks have the blocks of all products.
    let apart = if tail.is_some() { &parts[..1] } else { &parts[..] };
    let tasks = Tasks::new(jobs, apart.iter().map(|p| (p.w, p.n)), least, if few { 128 } else { 8 });
    #[cfg(target_arch = "x86_64")]
    let mut parts = parts;
    // One job's rows are gathered once for all tasks.
    #[cfg(target_arch = "x86_64")]
    if let ([job], Some(first), None) = (jobs, parts.first(), tail)
        && let Some(x) = first.thin_left(job.pairs.len())
    {
        first.gather(x, job.pairs, &mut rows);
        parts.iter_mut().for_each(|part| part.few = Some(&rows));
    }
    let run = |i: usize| {
        let task = tasks.task(i);
        with_scratch(|scratch| match tail {
            Some(tail) => tail.run(&parts, &task, scratch),
            None => parts[task.target].run(&task, scratch),
        });
    };
    if few {
        stretch::run(tasks.len(), &run)
    } else {
        pool::run(tasks.len(), &run)
    }
    drop(parts);
    #[cfg(target_arch = "x86_64")]
    FEW.set(Some(rows));
    if let Left::Bytes(x) = x {
        x.spare();
    }
}

/// The left side as kernels read it.
pub(super) enum Left {
    /// Integers; the weights' bytes must be integers too, and not run across the reduction axis.
    Bytes(Activations),
    /// f32.
    Floats(Floats),
}

/// Rows of f32, in place or converted. `start` may be unaligned.
pub(super) struct Floats {
    start: *const f32,
    /// Elements from row to row.
    stride: usize,
    _owned: Vec<f32>,
}

impl Floats {
    /// Takes rows of `cols` values.
    pub(super) fn owned(values: Vec<f32>, cols: usize) -> Floats {
        Floats { start: values.as_ptr(), stride: cols, _owned: values }
    }

    fn converted(isa: Isa, x: &Rows, wanted: &[bool]) -> Floats {
        let cols = x.cols();
        let mut values = vec![0.0; x.rows() * cols];
        let rows: Vec<_> = values.chunks_mut(cols.max(1)).map(std::sync::Mutex::new).collect();
        let convert = |r: usize| {
            if wanted[r] {
                halves::load(isa, x.dtype(), x.row(r), &mut rows[r].lock().unwrap_or_else(|e| e.into_inner()));
            }
        };
        if rows.len() < 8 {
            (0..rows.len()).for_each(convert)
        } else {
            pool::run(rows.len(), &convert)
        }
        drop(rows);
        Floats::owned(values, cols)
    }
}

/// Where tasks write, each its own rows and columns.
struct Out(*mut u8);

/// Few rows of activations, in equal parts.
#[cfg(target_arch = "x86_64")]
pub(super) type Few = [thin::Few; THIN_ROWS / thin::ROWS];

#[cfg(target_arch = "x86_64")]
thread_local! {
    /// The last product's rows, whose memory the next one uses again.
    static FEW: Cell<Option<Box<Few>>> = const { Cell::new(None) };
}

/// What a thread needs while it works on a task: panels in the first-level cache, sums in the second.
#[repr(align(64))]
pub(super) struct Scratch {
    panel: [u8; PANEL],
    floats: [f32; PANEL_F32],
    scales: [f32; SCALE_TILE],
    biases: [f32; SCALE_TILE],
    pub(super) sums: [[f32; COLUMNS]; TASK_ROWS],
    /// Rounded sums that a tail waits with for the last product's.
    pub(super) earlier: Vec<[f32; COLUMNS]>,
    #[cfg(target_arch = "x86_64")]
    few: Few,
    #[cfg(target_arch = "x86_64")]
    tiles: tiles::Scratch,
}

fn with_scratch(work: impl FnOnce(&mut Scratch)) {
    thread_local!(static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) });
    let mut scratch = SCRATCH.take().unwrap_or_else(fresh_scratch);
    work(&mut scratch);
    SCRATCH.set(Some(scratch));
}

/// Apart from its caller, whose frame would have room for all of it, and touch each page of that in every task.
#[cold]
#[inline(never)]
fn fresh_scratch() -> Box<Scratch> {
    Box::new(Scratch {
        panel: [0; PANEL],
        floats: [0.0; PANEL_F32],
        scales: [0.0; SCALE_TILE],
        biases: [0.0; SCALE_TILE],
        sums: [[0.0; COLUMNS]; TASK_ROWS],
        earlier: Vec::new(),
        #[cfg(target_arch = "x86_64")]
        few: Default::default(),
        #[cfg(target_arch = "x86_64")]
        tiles: Default::default(),
    })
}

/// One target of a call of [`products`], as its tasks see it.
pub(super) struct Product<'a> {
    pub(super) isa: Isa,
    pub(super) w: &'a Weights<'a>,
    transpose: bool,
    pub(super) x: &'a Left,
    /// The rows of all tasks, where they are few and the same.
    #[cfg(target_arch = "x86_64")]
    few: Option<&'a Few>,
    pub(super) out_dtype: Dtype,
    /// Whether results have a place; those of a tail's products but the last have none.
    stores: bool,
    out: Out,
    pub(super) n: usize,
}

// SAFETY: the pointers inside are read by all tasks, and written by each to its own part of the result.
unsafe impl Sync for Product<'_> {}

impl Product<'_> {
    /// The fewest columns that a block may have: those of a strip, where rows go straight to the dot products and strips are not
    /// dealt out among the rows of a larger block.
    fn least_width(&self, jobs: &[Job]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.isa == Isa::Avx512
            && (features().in_order || self.w.row_bytes() > thin::SHORT_ROW)
            && jobs.iter().all(|job| self.thin_left(job.pairs.len()).is_some())
        {
            return thin::STRIP;
        }
        let _ = jobs;
        COLUMNS
    }

    /// Whether its first slab does not read the sums.
    fn begins_at_zero(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if self.has_tiles() {
            return false;
        }
        matches!(self.x, Left::Bytes(_))
    }

    /// Whether the matrix unit multiplies these weights.
    #[cfg(target_arch = "x86_64")]
    fn has_tiles(&self) -> bool {
        self.isa == Isa::Avx512 && features().amx && self.w.format.group() >= tiles::SMALLEST_GROUP
    }

    fn run(&self, task: &Task, scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        if let Some(x) = self.thin_left(task.pairs.len()) {
            if let Some(few) = self.few {
                return self.thin_all(task, few, scratch);
            }
            let mut own = std::mem::take(&mut scratch.few);
            self.gather(x, task.pairs, &mut own);
            self.thin_all(task, &own, scratch);
            scratch.few = own;
            return;
        }
        for block in task.blocks.clone() {
            let then = Some((self.w, block + 1)).filter(|next| next.1 < task.blocks.end);
            self.sum(task, block, then, scratch);
            self.store(task, block, task.pairs, &scratch.sums);
        }
    }

    /// The sums of a block. Behind it comes a block of `then`.
    pub(super) fn sum(&self, task: &Task, block: usize, then: Option<(&Weights, usize)>, scratch: &mut Scratch) {
        if !self.begins_at_zero() {
            scratch.sums[..task.pairs.len()].fill([0.0; COLUMNS]);
        }
        match self.x {
            Left::Bytes(x) => self.integers(task, block, x, then, scratch),
            Left::Floats(x) if self.transpose => self.floats(task, block, x, then, scratch),
            Left::Floats(x) => self.floats_along_rows(task, block, x, scratch),
        }
    }

    /// Codes of a slab of 256, with scales, into the scratch.
    fn unpack(&self, task: &Task, index: usize, slab: usize, scratch: &mut Scratch) -> usize {
        let (w, first) = (self.w, slab * DEPTH);
        let block = w.block(task.matrix, index * COLUMNS, COLUMNS);
        let content = Content::of(w.format);
        let (group, codes) = (first / w.format.group(), (w.cols - first).min(DEPTH));
        if group.is_multiple_of(TILE_GROUPS) {
            let count = (w.groups() - group).min(TILE_GROUPS);
            panel::scales(self.isa, &block, content, group, count, &mut scratch.scales, &mut scratch.biases);
        }
        panel::unpack(self.isa, content, &block, w.format.row_bytes(first), codes, &mut scratch.panel);
        codes
    }

    /// What is unpacked after a slab: the next one, or the first of `then`.
    fn coming(&self, task: &Task, index: usize, slab: usize, then: Option<(&Weights, usize)>) -> Coming {
        let first = (slab + 1) * DEPTH;
        if first < self.w.cols {
            return Coming::new(self.w, task.matrix, index * COLUMNS, first);
        }
        then.map_or_else(Coming::default, |(w, next)| Coming::new(w, task.matrix, next * COLUMNS, 0))
    }

    fn integers(
        &self,
        task: &Task,
        index: usize,
        x: &Activations,
        then: Option<(&Weights, usize)>,
        scratch: &mut Scratch,
    ) {
        assert!(task.pairs.iter().all(|pair| pair.x < x.rows));
        let format = self.w.format;
        let content = Content::of(format);
        #[cfg(target_arch = "x86_64")]
        let has_tiles = self.has_tiles();
        // SAFETY: the machine has AMX.
        #[cfg(target_arch = "x86_64")]
        let _shapes = has_tiles.then(|| unsafe { Shapes::new(format.group()) });
        let slabs = self.w.cols.div_ceil(DEPTH);
        for slab in 0..slabs {
            let codes = self.unpack(task, index, slab, scratch);
            let mut coming = self.coming(task, index, slab, then);
            let tile = slab * DEPTH / format.group() % TILE_GROUPS * COLUMNS;
            let step = dot::Step {
                panel: scratch.panel.as_ptr(),
                scales: scratch.scales[tile..].as_ptr(),
                biases: if format.has_biases() { scratch.biases[tile..].as_ptr() } else { std::ptr::null() },
                groups: codes / format.group(),
                units: format.group() / 4,
                largest: if content.fp4 { 24 } else { ((1u16 << format.bits()) - 1) as u8 },
                fresh: slab == 0,
            };
            #[cfg(target_arch = "x86_64")]
            if has_tiles {
                coming.ask(usize::MAX);
                let sums = scratch.sums.as_mut_ptr().cast();
                // SAFETY: a slab of codes and its groups lie behind every pointer; there are sums for `TASK_ROWS` rows, a
                // multiple of 16; the shapes are set.
                unsafe { tiles::rows(&step, x, slab, task.pairs, sums, &mut scratch.tiles) };
                continue;
            }
            let (left, each) = (dot::Left::new(x, slab), coming.rows().div_ceil(task.pairs.len().div_ceil(dot::ROWS)));
            for (pairs, sums) in task.pairs.chunks(dot::ROWS).zip(scratch.sums.chunks_mut(dot::ROWS)) {
                coming.ask(each);
                if self.stores && slab + 1 == slabs {
                    self.ask_for_place(task, index, pairs);
                }
                // SAFETY: a slab of codes and its groups lie behind every pointer, and as many rows of sums; the rows exist.
                unsafe { dot::rows(self.isa, &step, &left, pairs, sums.as_mut_ptr().cast()) }
            }
        }
    }

    fn floats(&self, task: &Task, index: usize, x: &Floats, then: Option<(&Weights, usize)>, scratch: &mut Scratch) {
        let format = self.w.format;
        let (meaning, order) = (Meaning::of(format.mode()), panel::order(format.bits()));
        for slab in 0..self.w.cols.div_ceil(DEPTH) {
            let codes = self.unpack(task, index, slab, scratch);
            let mut coming = self.coming(task, index, slab, then);
            let each = coming.rows().div_ceil(codes.div_ceil(decode::DEPTH));
            for first in (0..codes).step_by(decode::DEPTH) {
                coming.ask(each);
                let depth = (codes - first).min(decode::DEPTH);
                let decode = decode::FromPanel {
                    meaning,
                    order: &order,
                    panel: &scratch.panel,
                    first: first / 4,
                    units: depth / 4,
                    per_group: format.group() / 4,
                    group: slab * DEPTH / format.group(),
                    scales: &scratch.scales,
                    biases: &scratch.biases,
                    out: &mut scratch.floats,
                };
                dispatch_with(self.isa, decode);
                self.multiply(task, x, slab * DEPTH + first, depth, scratch);
            }
        }
    }

    /// `x @ w`: groups run along the columns of the result.
    fn floats_along_rows(&self, task: &Task, index: usize, x: &Floats, scratch: &mut Scratch) {
        let (w, column) = (self.w, index * COLUMNS);
        let (meaning, format) = (Meaning::of(w.format.mode()), w.format);
        for first in (0..w.rows).step_by(decode::DEPTH) {
            let block = w.block(task.matrix, first, decode::DEPTH);
            let width = (self.n - column).min(COLUMNS);
            let floats = &mut scratch.floats;
            decode::from_rows(self.isa, meaning, format.bits(), format.group(), &block, column, width, floats);
            self.multiply(task, x, first, block.valid, scratch);
        }
    }

    /// Adds `depth` reduction steps from `first` on.
    fn multiply(&self, task: &Task, x: &Floats, first: usize, depth: usize, scratch: &mut Scratch) {
        for rows in tiles(task.pairs.len(), fma::ROWS) {
            let mut left = [std::ptr::null(); fma::ROWS];
            for (left, pair) in left.iter_mut().zip(&task.pairs[rows.clone()]) {
                // SAFETY: `Rows` checked that the row's elements are there.
                *left = unsafe { x.start.byte_add((pair.x * x.stride + first) * size_of::<f32>()) };
            }
            let sums = scratch.sums[rows.start..].as_mut_ptr().cast();
            // SAFETY: `depth` elements lie behind every pointer, and `rows` rows of sums.
            unsafe { fma::tile(self.isa, scratch.floats.as_ptr(), depth, &left[..rows.len()], sums) }
        }
    }

    /// Asks for the memory that rows of a block will be written to: stores wait for each other, and short ones far apart for memory.
    fn ask_for_place(&self, task: &Task, index: usize, pairs: &[Pair]) {
        let (column, size) = (index * task.width, self.out_dtype.size());
        let bytes = (self.n - column).min(task.width) * size;
        for pair in pairs {
            let first = self.out.0.addr() + (pair.out * self.n + column) * size;
            (first / LINE * LINE..first + bytes).step_by(LINE).for_each(soon::ask_to_write);
        }
    }

    /// Rounds sums of rows of a block to the result.
    pub(super) fn store(&self, task: &Task, index: usize, pairs: &[Pair], sums: &[[f32; COLUMNS]]) {
        let (column, size) = (index * task.width, self.out_dtype.size());
        let width = (self.n - column).min(task.width);
        // SAFETY: rows and columns are within `out` (its length was checked), and this task's alone.
        let out = |pair: &Pair| unsafe {
            std::slice::from_raw_parts_mut(self.out.0.add((pair.out * self.n + column) * size), width * size)
        };
        store_rows(self.isa, self.out_dtype, pairs, sums, width, &out);
    }
}

versions! {
    /// Rounds the first `width` sums of each row to `out(pair)`.
    fn store_rows(
        dtype: Dtype,
        pairs: &[Pair],
        sums: &[[f32; COLUMNS]],
        width: usize,
        out: &dyn Fn(&Pair) -> &'static mut [u8],
    ) = store_rows_body;
}

#[inline(always)]
fn store_rows_body(
    dtype: Dtype,
    pairs: &[Pair],
    sums: &[[f32; COLUMNS]],
    width: usize,
    out: &dyn Fn(&Pair) -> &'static mut [u8],
) {
    for (pair, sums) in pairs.iter().zip(sums) {
        halves::store_body(dtype, &sums[..width], out(pair));
    }
}
