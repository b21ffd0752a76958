//! Reductions over any axes, with the elementwise work before them in the same pass.
//!
//! Moves the inputs once. Bits do not depend on threads, on the number of outputs or on what was fused: values are
//! folded in blocks of 1024, blocks in order into spans of 64 blocks, spans in order; sums of floats keep f64 between
//! blocks. Where an output axis is contiguous in memory, whole rows are folded side by side instead.

mod folds;

use crate::geometry::Loops;
use crate::pool::{self};
use crate::tape::{Bound, Program, with_scratch};
use folds::{
    Fold, Logic, MaxC64, MaxF32, MaxF64, MaxInt, MinInt, ProdC64, ProdFloat, ProdInt, SumC64, SumF32, SumF64, SumInt,
};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use lapis_core::ops::{Reduce, ReduceKind};
use lapis_core::schedule::tape::Tape;
use smallvec::SmallVec;

/// Elements folded at once.
const BLOCK: usize = 1024;
/// Blocks that one task folds.
const SPAN: usize = 64;
/// Rows that one task folds when rows are folded side by side.
const ROWS: usize = 4096;

/// Reduces the result of `tape`; see `Backend::reduce`.
pub(crate) fn run(tape: &Tape, op: &Reduce, inputs: &[Tensor], consts: &[u64], output: &mut Tensor) -> Result<()> {
    use ReduceKind::{All, Any, Max, Min, Prod, Sum};
    let job = Job { tape, op, inputs, consts, output };
    // Sums and products come widened to 32 or 64 bits.
    macro_rules! wide_integers {
        ($fold:ident) => {
            match tape.dtype() {
                Dtype::Uint32 => job.run::<$fold<u32>>(),
                Dtype::Uint64 => job.run::<$fold<u64>>(),
                Dtype::Int32 => job.run::<$fold<i32>>(),
                _ => job.run::<$fold<i64>>(),
            }
        };
    }
    macro_rules! integers {
        ($fold:ident) => {
            match tape.dtype() {
                Dtype::Bool | Dtype::Uint8 => job.run::<$fold<u8>>(),
                Dtype::Uint16 => job.run::<$fold<u16>>(),
                Dtype::Uint32 => job.run::<$fold<u32>>(),
                Dtype::Uint64 => job.run::<$fold<u64>>(),
                Dtype::Int8 => job.run::<$fold<i8>>(),
                Dtype::Int16 => job.run::<$fold<i16>>(),
                Dtype::Int32 => job.run::<$fold<i32>>(),
                _ => job.run::<$fold<i64>>(),
            }
        };
    }
    use Dtype::{Bfloat16, Complex64, Float16, Float32, Float64};
    match (op.kind, tape.dtype()) {
        (Sum, Float16 | Bfloat16 | Float32) => job.run::<SumF32>(),
        (Sum, Float64) => job.run::<SumF64>(),
        (Sum, Complex64) => job.run::<SumC64>(),
        (Sum, _) => wide_integers!(SumInt),
        (Prod, Float16 | Bfloat16 | Float32) => job.run::<ProdFloat<f32>>(),
        (Prod, Float64) => job.run::<ProdFloat<f64>>(),
        (Prod, Complex64) => job.run::<ProdC64>(),
        (Prod, _) => wide_integers!(ProdInt),
        (Max, Float16 | Bfloat16 | Float32) => job.run::<MaxF32<true>>(),
        (Min, Float16 | Bfloat16 | Float32) => job.run::<MaxF32<false>>(),
        (Max, Float64) => job.run::<MaxF64<true>>(),
        (Min, Float64) => job.run::<MaxF64<false>>(),
        (Max, Complex64) => job.run::<MaxC64<true>>(),
        (Min, Complex64) => job.run::<MaxC64<false>>(),
        (Max, _) => integers!(MaxInt),
        (Min, _) => integers!(MinInt),
        (All, _) => job.run::<Logic<true>>(),
        (Any, _) => job.run::<Logic<false>>(),
    }
    Ok(())
}

struct Job<'a> {
    tape: &'a Tape,
    op: &'a Reduce,
    inputs: &'a [Tensor],
    consts: &'a [u64],
    output: &'a Tensor,
}

#[derive(Clone, Copy)]
struct Out(*mut u8);
// SAFETY: tasks write different elements of the output.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}
impl Out {
    fn at(self, offset: usize) -> *mut u8 {
        self.0.wrapping_add(offset)
    }
}

impl Job<'_> {
    fn run<F: Fold>(self) {
        let outputs = self.output.size();
        if outputs == 0 {
            return;
        }
        let reduced: SmallVec<[usize; 6]> = self.op.axes.iter().copied().collect();
        let kept: SmallVec<[usize; 6]> = (0..self.op.from.len()).filter(|i| !reduced.contains(i)).collect();
        let count: usize = reduced.iter().map(|&i| self.op.from[i]).product();
        if count == 0 {
            for i in 0..outputs {
                // SAFETY: element `i` of the row-major output.
                unsafe { F::finish(F::START, self.output.dtype, self.output.ptr().add(i * self.output.dtype.size())) };
            }
            return;
        }
        match self.contiguous_kept_axis(&kept, &reduced) {
            Some(column) => self.side_by_side::<F>(&kept, &reduced, column, count),
            None => self.row_by_row::<F>(&kept, &reduced, count),
        }
    }

    /// A kept axis along which memory is contiguous while it is not along reduced ones.
    fn contiguous_kept_axis(&self, kept: &[usize], reduced: &[usize]) -> Option<usize> {
        let lead = self.inputs.iter().max_by_key(|t| t.strides.iter().filter(|&&s| s != 0).count())?;
        let stride = |i: usize| lead.strides[i].unsigned_abs();
        let best = kept.iter().copied().rev().find(|&i| self.op.from[i] >= 16 && stride(i) == 1)?;
        reduced.iter().all(|&i| self.op.from[i] == 1 || stride(i) > 1).then_some(best)
    }

    /// The loop nest that visits `axes` in this order, outermost first.
    fn nest(&self, axes: &[usize]) -> Loops {
        let mut order: SmallVec<[isize; 6]> = SmallVec::from_elem(0, self.op.from.len());
        let mut next = 1isize;
        for &i in axes.iter().rev() {
            order[i] = next;
            next *= self.op.from[i] as isize;
        }
        let mut operands: SmallVec<[&[isize]; 8]> = SmallVec::new();
        operands.push(&order);
        operands.extend(self.inputs.iter().map(|t| &*t.strides));
        Loops::new(&self.op.from, &operands)
    }

    /// Output elements are runs of the nest: `count` values each.
    fn row_by_row<F: Fold>(&self, kept: &[usize], reduced: &[usize], count: usize) {
        let axes: SmallVec<[usize; 6]> = kept.iter().chain(reduced).copied().collect();
        let loops = self.nest(&axes);
        let program = Program::new(self.tape, self.inputs, &loops);
        let outputs = self.output.size();
        let spans = count.div_ceil(BLOCK * SPAN);
        let (dtype, out) = (self.output.dtype, Out(self.output.ptr()));
        let fold_span = |tiles: &Bound<'_>, row: usize, span: usize| -> F::Acc {
            let mut acc = F::START;
            let mut at = span * BLOCK * SPAN;
            let end = count.min(at + BLOCK * SPAN);
            while at < end {
                let n = BLOCK.min(end - at);
                // SAFETY: tiles hold blocks; the range lies in the nest.
                let part = unsafe { F::block(tiles.run(row * count + at, n, None, None).cast(), n) };
                acc = F::merge(acc, part);
                at += n;
            }
            acc
        };
        let scratch_bytes = program.scratch_bytes(BLOCK);
        if spans == 1 {
            let grain = (SPAN * BLOCK / 2).div_ceil(count);
            pool::for_each_chunk(outputs, grain, &|range| {
                with_scratch(scratch_bytes, |scratch| {
                    // SAFETY: the scratch is large enough; chunks write different outputs.
                    unsafe {
                        let tiles = program.bind(scratch, BLOCK, self.consts);
                        for row in range {
                            F::finish(fold_span(&tiles, row, 0), dtype, out.at(row * dtype.size()));
                        }
                    }
                });
            });
            return;
        }
        let mut parts = vec![F::START; outputs * spans];
        pool::for_each_chunk_mut(&mut parts, 1, &|first, parts| {
            with_scratch(scratch_bytes, |scratch| {
                // SAFETY: the scratch is large enough.
                let tiles = unsafe { program.bind(scratch, BLOCK, self.consts) };
                for (i, part) in parts.iter_mut().enumerate() {
                    *part = fold_span(&tiles, (first + i) / spans, (first + i) % spans);
                }
            });
        });
        for (row, parts) in parts.chunks_exact(spans).enumerate() {
            let acc = parts.iter().copied().fold(F::START, F::merge);
            // SAFETY: element `row` of the output.
            unsafe { F::finish(acc, dtype, out.at(row * dtype.size())) };
        }
    }

    /// The innermost loop is a kept axis: rows of `width` values are folded into `width` accumulators.
    fn side_by_side<F: Fold>(&self, kept: &[usize], reduced: &[usize], column: usize, count: usize) {
        let others: SmallVec<[usize; 6]> = kept.iter().copied().filter(|&i| i != column).collect();
        let mut axes = others.clone();
        axes.extend(reduced.iter().copied());
        axes.push(column);
        let loops = self.nest(&axes);
        let program = Program::new(self.tape, self.inputs, &loops);
        let width = self.op.from[column];
        let planes: usize = others.iter().map(|&i| self.op.from[i]).product();
        let (bands, spans) = (width.div_ceil(BLOCK), count.div_ceil(ROWS));
        let (dtype, out) = (self.output.dtype, Out(self.output.ptr()));
        let out_strides = lapis_core::shape::row_strides(&self.output.shape);
        let out_step = out_strides[column] as usize;
        let out_base = |mut plane: usize| -> usize {
            let mut offset = 0;
            for &i in others.iter().rev() {
                offset += plane % self.op.from[i] * out_strides[i] as usize;
                plane /= self.op.from[i];
            }
            offset
        };
        let scratch_bytes = program.scratch_bytes(BLOCK);
        let fold_rows = |plane: usize, band: usize, span: usize, acc: &mut [F::Acc]| {
            with_scratch(scratch_bytes, |scratch| {
                // SAFETY: the scratch is large enough; rows lie in the nest.
                unsafe {
                    let tiles = program.bind(scratch, BLOCK, self.consts);
                    for row in span * ROWS..count.min(span * ROWS + ROWS) {
                        let start = (plane * count + row) * width + band * BLOCK;
                        F::row(acc, tiles.run(start, acc.len(), None, None).cast());
                    }
                }
            });
        };
        let finish = |plane: usize, band: usize, acc: &[F::Acc]| {
            let base = out_base(plane);
            for (i, &a) in acc.iter().enumerate() {
                let at = base + (band * BLOCK + i) * out_step;
                // SAFETY: an element of the output; tasks have different planes or bands.
                unsafe { F::finish(a, dtype, out.at(at * dtype.size())) };
            }
        };
        let cols = |band: usize| BLOCK.min(width - band * BLOCK);
        if spans == 1 {
            pool::run(planes * bands, &|task| {
                let (plane, band) = (task / bands, task % bands);
                let mut acc = [F::START; BLOCK];
                fold_rows(plane, band, 0, &mut acc[..cols(band)]);
                finish(plane, band, &acc[..cols(band)]);
            });
            return;
        }
        let mut parts = vec![F::START; planes * bands * spans * BLOCK];
        pool::for_each_chunk_mut(&mut parts, BLOCK, &|first, acc| {
            let task = first / BLOCK;
            let (plane, band, span) = (task / (bands * spans), task / spans % bands, task % spans);
            fold_rows(plane, band, span, &mut acc[..cols(band)]);
        });
        for (task, parts) in parts.chunks_exact_mut(BLOCK * spans).enumerate() {
            let (acc, rest) = parts.split_at_mut(BLOCK);
            for part in rest.chunks_exact(BLOCK) {
                acc.iter_mut().zip(part).for_each(|(a, &b)| *a = F::merge(*a, b));
            }
            finish(task / bands, task % bands, &acc[..cols(task % bands)]);
        }
    }
}
