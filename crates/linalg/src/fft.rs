//! Fourier transforms of lines by rustfft and realfft; plans are kept.
//!
//! Reads and writes each element once beside the transforms themselves. Lines along an axis that is not the last are
//! gathered sixteen at a time, so that whole cache lines are used. Each line is transformed alone, so its bits depend
//! neither on the number of lines nor on threads.

use crate::host::{output, values};
use lapis_core::backend::each;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Element, c64};
use lapis_core::error::Result;
use lapis_core::ops::fft::{Fft, FftKind};
use realfft::{ComplexToReal, RealFftPlanner, RealToComplex};
use rustfft::{FftDirection, FftPlanner};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// How to transform one line.
#[derive(Clone)]
enum Plan {
    Complex(Arc<dyn rustfft::Fft<f32>>),
    Real(Arc<dyn RealToComplex<f32>>),
    RealInverse(Arc<dyn ComplexToReal<f32>>),
}

/// The most plans that are kept.
const PLANS: usize = 64;

fn plan(kind: FftKind, n: usize) -> Plan {
    static KEPT: Mutex<Option<HashMap<(FftKind, usize), Plan>>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.get_or_insert_with(HashMap::new);
    if let Some(plan) = kept.get(&(kind, n)) {
        return plan.clone();
    }
    let plan = match kind {
        FftKind::Forward => Plan::Complex(FftPlanner::new().plan_fft(n, FftDirection::Forward)),
        FftKind::Inverse => Plan::Complex(FftPlanner::new().plan_fft(n, FftDirection::Inverse)),
        FftKind::Real => Plan::Real(RealFftPlanner::new().plan_fft_forward(n)),
        FftKind::RealInverse => Plan::RealInverse(RealFftPlanner::new().plan_fft_inverse(n)),
    };
    if kept.len() >= PLANS {
        kept.clear();
    }
    kept.insert((kind, n), plan.clone());
    plan
}

/// Lines gathered at once.
const TILE: usize = 16;
/// Elements a task should have at least.
const GRAIN: usize = 1 << 14;
/// The most tasks that lines of one block are dealt to.
const PARTS: usize = 64;

/// Where lines lie: `outer x len x inner` in row-major order, before and after.
struct Lines {
    outer: usize,
    inner: usize,
    /// Elements of a line in the input.
    from: usize,
    /// Elements of a line in the output.
    to: usize,
    /// Elements of a line that the transform reads.
    read: usize,
}

/// Neighbouring lines of one block: `columns` of them from `first` on, and where they go.
struct Part<'a, O> {
    block: usize,
    first: usize,
    columns: usize,
    to: Target<'a, O>,
}

/// Where the lines of a part go.
enum Target<'a, O> {
    /// All of the block.
    Whole(&'a mut [O]),
    /// Their columns of it, a slice a row.
    Rows(Vec<&'a mut [O]>),
}

impl Lines {
    /// Runs `transform(read, written)` on every line; `make` is called once a task.
    fn each<I, O, F>(&self, input: &[I], out: &mut [O], make: impl Fn() -> F + Sync)
    where
        I: Element + Default,
        O: Element + Default,
        F: FnMut(&mut [I], &mut [O]),
    {
        let tile = self.inner.min(TILE);
        let workspace = || (make(), vec![I::default(); tile * self.read], vec![O::default(); tile * self.to]);
        let block = self.inner * self.read.max(self.to);
        let (size, per) = (self.to * self.inner, (GRAIN / block).max(1));
        if self.inner == 1 {
            let known = self.from.min(self.read);
            return each(
                out.chunks_mut(per * size).enumerate().collect(),
                1,
                workspace,
                |(transform, line, _), (t, to)| {
                    for (o, result) in (t * per..).zip(to.chunks_exact_mut(size)) {
                        line[..known].copy_from_slice(&input[o * self.from..][..known]);
                        line[known..].fill(I::default());
                        transform(line, result);
                    }
                },
            );
        }
        let run = |(transform, before, after): &mut (F, Vec<I>, Vec<O>), part: Part<'_, O>| {
            self.part(input, part, transform, before, after);
        };
        // Whole blocks, or a few broad parts of each where there are few blocks.
        let parts = (PARTS / self.outer).min(block / GRAIN).min(self.inner.div_ceil(tile));
        if parts < 2 {
            return each(out.chunks_mut(per * size).enumerate().collect(), 1, workspace, |w, (t, to)| {
                for (block, rows) in (t * per..).zip(to.chunks_exact_mut(size)) {
                    run(w, Part { block, first: 0, columns: self.inner, to: Target::Whole(rows) });
                }
            });
        }
        let columns = self.inner.div_ceil(parts).next_multiple_of(tile);
        let mut items = Vec::new();
        for (block, whole) in out.chunks_exact_mut(size).enumerate() {
            let mut cut: Vec<Vec<&mut [O]>> = Vec::new();
            cut.resize_with(self.inner.div_ceil(columns), || Vec::with_capacity(self.to));
            for row in whole.chunks_exact_mut(self.inner) {
                cut.iter_mut().zip(row.chunks_mut(columns)).for_each(|(part, row)| part.push(row));
            }
            items.extend(cut.into_iter().zip((0..).step_by(columns)).map(|(rows, first)| {
                let columns = columns.min(self.inner - first);
                Part { block, first, columns, to: Target::Rows(rows) }
            }));
        }
        each(items, 1, workspace, run);
    }

    /// Transforms the lines of a part, a tile at a time.
    fn part<I, O>(
        &self,
        input: &[I],
        mut part: Part<'_, O>,
        transform: &mut impl FnMut(&mut [I], &mut [O]),
        before: &mut [I],
        after: &mut [O],
    ) where
        I: Element + Default,
        O: Element,
    {
        let (tile, known) = (self.inner.min(TILE), self.from.min(self.read));
        for first in (0..part.columns).step_by(tile) {
            let width = tile.min(part.columns - first);
            for i in 0..known {
                let row = &input[(part.block * self.from + i) * self.inner + part.first + first..][..width];
                for (b, &x) in row.iter().enumerate() {
                    before[b * self.read + i] = x;
                }
            }
            for line in before.chunks_exact_mut(self.read).take(width) {
                line[known..].fill(I::default());
            }
            for (line, result) in before.chunks_exact_mut(self.read).zip(after.chunks_exact_mut(self.to)).take(width) {
                transform(line, result);
            }
            for i in 0..self.to {
                let row = match &mut part.to {
                    Target::Whole(block) => &mut block[i * self.inner + first..][..width],
                    Target::Rows(rows) => &mut rows[i][first..][..width],
                };
                for b in 0..width {
                    row[b] = after[b * self.to + i];
                }
            }
        }
    }
}

/// `fft.fft` and its kin.
pub(crate) fn fft(op: &Fft, input: &Tensor, out: &mut Tensor) -> Result<()> {
    let lines = Lines {
        outer: input.shape[..op.axis].iter().product(),
        inner: input.shape[op.axis + 1..].iter().product(),
        from: input.shape[op.axis],
        to: out.shape[op.axis],
        read: if op.kind == FftKind::RealInverse { op.n / 2 + 1 } else { op.n },
    };
    if lines.outer * lines.inner == 0 {
        return Ok(());
    }
    let (n, scale) = (op.n, op.scale.0 as f32);
    match plan(op.kind, n) {
        Plan::Complex(plan) => lines.each(&values::<c64>(input), output::<c64>(out)?, || {
            let mut scratch = vec![c64::default(); plan.get_outofplace_scratch_len()];
            let plan = &plan;
            move |from: &mut [c64], to: &mut [c64]| {
                plan.process_outofplace_with_scratch(from, to, &mut scratch);
                to.iter_mut().for_each(|z| *z *= scale);
            }
        }),
        Plan::Real(plan) => lines.each(&values::<f32>(input), output::<c64>(out)?, || {
            let mut scratch = plan.make_scratch_vec();
            let plan = &plan;
            move |from: &mut [f32], to: &mut [c64]| {
                // The lengths are the plan's, which is all that it refuses.
                let _ = plan.process_with_scratch(from, to, &mut scratch);
                to.iter_mut().for_each(|z| *z *= scale);
            }
        }),
        Plan::RealInverse(plan) => lines.each(&values::<c64>(input), output::<f32>(out)?, || {
            let mut scratch = plan.make_scratch_vec();
            let plan = &plan;
            move |from: &mut [c64], to: &mut [f32]| {
                // A Hermitian sequence is real at 0 and in the middle; what else stands there does not count.
                from[0].im = 0.0;
                if n % 2 == 0 {
                    from[n / 2].im = 0.0;
                }
                let _ = plan.process_with_scratch(from, to, &mut scratch);
                to.iter_mut().for_each(|x| *x *= scale);
            }
        }),
    }
    Ok(())
}
