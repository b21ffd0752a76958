//! Fourier transforms of lines by rustfft and realfft; plans are kept.
//!
//! Reads and writes each element once beside the transforms themselves. Lines along an axis that is not the last are
//! gathered sixteen at a time, so that whole cache lines are used. Each line is transformed alone, so its bits depend
//! neither on the number of lines nor on threads.

use crate::host::{Shared, output, parallel, values};
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

impl Lines {
    /// Runs `transform(read, written)` on every line; `make` is called once a task.
    fn each<I, O, F>(&self, input: &[I], out: &mut [O], make: impl Fn() -> F + Sync)
    where
        I: Element + Default,
        O: Element + Default,
        F: FnMut(&mut [I], &mut [O]),
    {
        let tile = self.inner.min(TILE);
        let across = self.inner.div_ceil(tile.max(1));
        let tiles = self.outer * across;
        let per = (GRAIN / (tile * self.read.max(self.to)).max(1)).max(1);
        let out = Shared::new(out);
        parallel(tiles.div_ceil(per), &|task| {
            let mut transform = make();
            let (mut before, mut after) = (vec![I::default(); tile * self.read], vec![O::default(); tile * self.to]);
            for t in task * per..tiles.min((task + 1) * per) {
                let (o, first) = (t / across, t % across * tile);
                let width = tile.min(self.inner - first);
                let known = self.from.min(self.read);
                for i in 0..known {
                    let row = &input[(o * self.from + i) * self.inner + first..][..width];
                    for (b, &x) in row.iter().enumerate() {
                        before[b * self.read + i] = x;
                    }
                }
                for line in before.chunks_exact_mut(self.read).take(width) {
                    line[known..].fill(I::default());
                }
                for (line, result) in
                    before.chunks_exact_mut(self.read).zip(after.chunks_exact_mut(self.to)).take(width)
                {
                    transform(line, result);
                }
                for i in 0..self.to {
                    let at = (o * self.to + i) * self.inner + first;
                    for b in 0..width {
                        // SAFETY: tiles write different elements, all inside the output.
                        unsafe { out.write(at + b, after[b * self.to + i]) };
                    }
                }
            }
        });
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
        Plan::Complex(plan) => lines.each(&values::<c64>(input), output::<c64>(out), || {
            let mut scratch = vec![c64::default(); plan.get_outofplace_scratch_len()];
            let plan = &plan;
            move |from: &mut [c64], to: &mut [c64]| {
                plan.process_outofplace_with_scratch(from, to, &mut scratch);
                to.iter_mut().for_each(|z| *z *= scale);
            }
        }),
        Plan::Real(plan) => lines.each(&values::<f32>(input), output::<c64>(out), || {
            let mut scratch = plan.make_scratch_vec();
            let plan = &plan;
            move |from: &mut [f32], to: &mut [c64]| {
                // The lengths are the plan's, which is all that it refuses.
                let _ = plan.process_with_scratch(from, to, &mut scratch);
                to.iter_mut().for_each(|z| *z *= scale);
            }
        }),
        Plan::RealInverse(plan) => lines.each(&values::<c64>(input), output::<f32>(out), || {
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
