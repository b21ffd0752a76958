//! How products are cut: tasks of some rows of `x`, one matrix and a run of blocks of columns of the result.

use super::panel::COLUMNS;
use super::weights::Weights;
use crate::pool;
use smallvec::SmallVec;
use std::ops::Range;

/// Rows of `x` that use one unpacked panel: their f32 sums (128 KiB) stay in the second-level cache.
pub(super) const TASK_ROWS: usize = 512;

/// Weight bytes below which a task is not worth handing out.
const TASK_BYTES: usize = 24 << 10;

/// Row `x` of the activations gives row `out` of the result.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) x: usize,
    pub(super) out: usize,
}

/// All rows that meet one matrix.
pub(super) struct Job<'a> {
    pub(super) matrix: usize,
    pub(super) pairs: &'a [Pair],
}

/// Some rows, one matrix, a run of blocks.
pub(super) struct Task<'a> {
    pub(super) target: usize,
    pub(super) matrix: usize,
    pub(super) pairs: &'a [Pair],
    /// Columns of a block.
    pub(super) width: usize,
    pub(super) blocks: Range<usize>,
}

/// Jobs cut into tasks: for each product, for each lot of rows with its matrix, runs of blocks.
pub(super) struct Tasks<'a> {
    rows: SmallVec<[(usize, &'a [Pair]); 1]>,
    products: SmallVec<[Cut; 4]>,
}

/// Blocks of a product: columns of one, how many there are, and how many are a run.
struct Cut {
    width: usize,
    blocks: usize,
    run: usize,
}

impl<'a> Tasks<'a> {
    /// About `each` tasks a thread. Rows outermost, so that their activations stay in cache. `products` are weights and columns of
    /// the result; blocks may have as few columns as `least`.
    pub(super) fn new<'w>(
        jobs: &[Job<'a>],
        products: impl Iterator<Item = (&'w Weights<'w>, usize)> + Clone,
        least: usize,
        each: usize,
    ) -> Tasks<'a> {
        let lots = |job: &Job<'a>| {
            let matrix = job.matrix;
            job.pairs.chunks(TASK_ROWS).map(move |pairs| (matrix, pairs))
        };
        let rows: SmallVec<[_; 1]> = jobs.iter().flat_map(lots).collect();
        let columns = products.clone().map(|(_, n)| n).sum::<usize>() * rows.len();
        let even = columns.div_ceil(each * pool::threads());
        let cut = |(w, n): (&Weights, usize)| {
            let bytes = w.format.row_bytes(w.rows * w.cols) / n.max(1);
            let mut width = least;
            while width < COLUMNS && width * bytes < TASK_BYTES {
                width *= 2;
            }
            let blocks = n.div_ceil(width);
            let run = (even / width).max(TASK_BYTES / (width * bytes).max(1)).clamp(1, blocks.max(1));
            Cut { width, blocks, run }
        };
        Tasks { rows, products: products.map(cut).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() * self.products.iter().map(|cut| cut.blocks.div_ceil(cut.run)).sum::<usize>()
    }

    pub(super) fn task(&self, mut i: usize) -> Task<'a> {
        let mut target = 0;
        loop {
            let Cut { width, blocks, run } = self.products[target];
            let runs = blocks.div_ceil(run);
            if i < self.rows.len() * runs {
                let ((matrix, pairs), first) = (self.rows[i / runs], i % runs * run);
                return Task { target, matrix, pairs, width, blocks: first..(first + run).min(blocks) };
            }
            i -= self.rows.len() * runs;
            target += 1;
        }
    }
}

/// Cuts `rows` rows into nearly equal tiles of at most `most`.
pub(super) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = rows.div_ceil(most);
    (0..count).map(move |i| i * rows / count..(i + 1) * rows / count)
}
