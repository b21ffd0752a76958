//! Few rows: straight from the packed words to the dot products, some columns at a time, whichever kernel is fastest for so many.

use super::activations::Activations;
use super::panel::{COLUMNS, Content};
use super::qmm::{Few, Left, Product, Scratch, THIN_ROWS};
use super::tasks::{Pair, Task, tiles};
use super::{few_avx2, lengthwise, lone, thin};
use crate::isa::{Isa, features};
use smallvec::SmallVec;

impl Product<'_> {
    /// The activations, where this many rows go straight to the dot products.
    pub(super) fn thin_left(&self, rows: usize) -> Option<&Activations> {
        match self.x {
            Left::Bytes(x) if rows <= THIN_ROWS && self.strip().is_some_and(|s| self.n.is_multiple_of(s)) => Some(x),
            _ => None,
        }
    }

    /// Columns of a strip of the kernels for few rows, where there are some: as many as words in a vector.
    fn strip(&self) -> Option<usize> {
        match self.isa {
            Isa::Avx512 => Some(thin::STRIP),
            Isa::Avx2 => Some(few_avx2::STRIP),
            _ => None,
        }
    }

    /// The rows of `pairs` in the order of the kernels for few.
    pub(super) fn gather(&self, x: &Activations, pairs: &[Pair], few: &mut Few) {
        let rows: SmallVec<[usize; THIN_ROWS]> = pairs.iter().map(|pair| pair.x).collect();
        for (part, few) in tiles(rows.len(), thin::ROWS).zip(few) {
            let (words, format) = (self.strip().unwrap_or(thin::STRIP), self.w.format);
            few.gather(x, &rows[part], self.w.cols, format.group(), format.bits(), words);
        }
    }

    /// Few rows, all blocks of a task.
    pub(super) fn thin_all(&self, task: &Task, few: &Few, scratch: &mut Scratch) {
        for block in task.blocks.clone() {
            self.thin(task, block, few, scratch);
            self.store(task, block, task.pairs, &scratch.sums);
        }
    }

    /// Few rows: some columns at a time, straight from the packed words.
    fn thin(&self, task: &Task, index: usize, few: &Few, scratch: &mut Scratch) {
        let (w, content) = (self.w, Content::of(self.w.format));
        let (group, bits, fp4) = (w.format.group(), content.bits, content.fp4);
        let width = (self.n - index * task.width).min(task.width);
        let block = w.block(task.matrix, index * task.width, task.width);
        if self.isa == Isa::Avx2 {
            for (part, few) in tiles(task.pairs.len(), thin::ROWS).zip(few) {
                let job = thin::Job { x: few, cols: w.cols, group, bits, fp4 };
                let start = scratch.sums[part].as_mut_ptr().cast::<f32>();
                // SAFETY: the level is present (it was passed), and each row of sums has room for 64.
                unsafe { few_avx2::block(&block, &job, |m| start.add(m * COLUMNS)) }
            }
            return;
        }
        if let ([_], [few, ..]) = (task.pairs, few) {
            let job = thin::Job { x: few, cols: w.cols, group, bits, fp4 };
            let (out, rest) = scratch.sums.split_at_mut(1);
            let (out, rest) = (out[0].as_mut_ptr(), rest.as_flattened_mut());
            let in_order = features().in_order && lengthwise::fits(&block, &job);
            // SAFETY: the level is present (it was passed), and there is room for 64, and for products.
            unsafe {
                if in_order && lengthwise::room(w.groups()) <= rest.len() {
                    lengthwise::block(&block, &job, rest.as_mut_ptr(), out);
                } else {
                    lone::block(&block, &job, out);
                }
            }
        } else {
            for nth in 0..width / thin::STRIP {
                let strip = thin::Strip::of(&block, nth);
                for (part, few) in tiles(task.pairs.len(), thin::ROWS).zip(few) {
                    let job = thin::Job { x: few, cols: w.cols, group, bits, fp4 };
                    let start = scratch.sums[part].as_mut_ptr().cast::<f32>();
                    // SAFETY: as above, and each row of sums has room for 16 from a strip's column on.
                    unsafe { thin::strip(&block, strip, &job, |m| start.add(m * COLUMNS + nth * thin::STRIP)) }
                }
            }
        }
        if thin::Strip::apart(&block) {
            // SAFETY: as above.
            scratch.sums[..task.pairs.len()].iter_mut().for_each(|sums| unsafe { thin::interleave(sums) });
        }
    }
}
