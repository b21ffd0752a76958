//! Rotary position embedding. Moves x and the result once; angles are made once a position in f64, so that they are
//! right at any position, and shared by all heads.

use super::Shared;
use crate::pool;
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, f16};
use lapis_core::error::Result;
use lapis_core::ops::fast::rope::Rope;

/// Rotates the first `dims` features of every row.
pub(crate) fn rope(op: &Rope, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let x = contiguous(&inputs[0])?;
    let offsets = contiguous(&inputs[1])?;
    let offsets: &[i64] = bytemuck::cast_slice(offsets.contiguous_bytes());
    let half = op.dims / 2;
    let frequencies: Vec<f64> = match (op.base, inputs.get(2)) {
        (None, Some(freqs)) => {
            let freqs = contiguous(freqs)?;
            bytemuck::cast_slice::<u8, f32>(freqs.contiguous_bytes()).iter().map(|&f| 1.0 / f64::from(f)).collect()
        }
        (base, _) => {
            let base = base.map_or(10000.0, |b| b.0);
            (0..half).map(|j| libm::pow(base, -2.0 * j as f64 / op.dims as f64)).collect()
        }
    };
    let nd = x.shape.len();
    let (steps, features) = (x.shape[nd - 2], x.shape[nd - 1]);
    if x.size() == 0 {
        return Ok(());
    }
    let mut table = vec![(0f64, 0f64); offsets.len() * steps * half];
    pool::for_each_chunk_mut(&mut table, 16 * half, &|first, part| {
        for (i, slot) in part.iter_mut().enumerate() {
            let (row, j) = ((first + i) / half, (first + i) % half);
            let position = offsets[row / steps] as f64 + (row % steps) as f64;
            let (sin, cos) = libm::sincos(position * op.scale.0 * frequencies[j]);
            *slot = (cos, sin);
        }
    });
    let job = Job {
        op,
        steps,
        features,
        table: &table,
        per_batch: x.size() / x.shape[0] / features,
        many: offsets.len() > 1,
    };
    match x.dtype {
        Dtype::Float16 => job.run(&x, out, f16::to_f32, f16::from_f32),
        Dtype::Bfloat16 => job.run(&x, out, bf16::to_f32, bf16::from_f32),
        Dtype::Float32 => job.run(&x, out, |v: f32| v, |v| v),
        _ => job.double(&x, out),
    }
    Ok(())
}

struct Job<'a> {
    op: &'a Rope,
    steps: usize,
    features: usize,
    /// Cosine and sine of every (offset, step, pair).
    table: &'a [(f64, f64)],
    /// Rows of one batch entry.
    per_batch: usize,
    /// Whether batch entries have offsets of their own.
    many: bool,
}

impl Job<'_> {
    fn angles(&self, row: usize) -> &[(f64, f64)] {
        let half = self.op.dims / 2;
        let batch = if self.many { row / self.per_batch } else { 0 };
        let at = (batch * self.steps + row % self.steps) * half;
        &self.table[at..at + half]
    }

    /// Places of the two numbers of pair `j`.
    #[inline(always)]
    fn pair(&self, j: usize) -> (usize, usize) {
        if self.op.traditional { (2 * j, 2 * j + 1) } else { (j, j + self.op.dims / 2) }
    }

    fn run<T: Copy + Send + Sync>(
        &self,
        x: &Tensor,
        out: &Tensor,
        up: impl Fn(T) -> f32 + Sync,
        down: impl Fn(f32) -> T + Sync,
    ) {
        let d = self.features;
        let (from, to) = (Shared(x.ptr().cast::<T>()), Shared(out.ptr().cast::<T>()));
        pool::for_each_chunk(x.size() / d, super::grain(d), &|range| {
            for row in range {
                // SAFETY: the row lies in both tensors, which have one layout; tasks write different rows.
                let (x, y) = unsafe {
                    (std::slice::from_raw_parts(from.at(row * d), d), std::slice::from_raw_parts_mut(to.at(row * d), d))
                };
                for (j, &(cos, sin)) in self.angles(row).iter().enumerate() {
                    // Angles take the dtype of x; the rotation is in f32.
                    let (cos, sin) = (up(down(cos as f32)), up(down(sin as f32)));
                    let (a, b) = self.pair(j);
                    let (x1, x2) = (up(x[a]), up(x[b]));
                    y[a] = down(x1 * cos - x2 * sin);
                    y[b] = down(x1 * sin + x2 * cos);
                }
                y[self.op.dims..].copy_from_slice(&x[self.op.dims..]);
            }
        });
    }

    fn double(&self, x: &Tensor, out: &Tensor) {
        let d = self.features;
        let (from, to) = (Shared(x.ptr().cast::<f64>()), Shared(out.ptr().cast::<f64>()));
        for row in 0..x.size() / d {
            // SAFETY: the row lies in both tensors.
            let (x, y) = unsafe {
                (std::slice::from_raw_parts(from.at(row * d), d), std::slice::from_raw_parts_mut(to.at(row * d), d))
            };
            for (j, &(cos, sin)) in self.angles(row).iter().enumerate() {
                let (a, b) = self.pair(j);
                y[a] = x[a] * cos - x[b] * sin;
                y[b] = x[a] * sin + x[b] * cos;
            }
            y[self.op.dims..].copy_from_slice(&x[self.op.dims..]);
        }
    }
}
