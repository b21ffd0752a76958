//! Hadamard transform of rows of n = m * 2^k elements: `scale * (H_m ⊗ S) x`.
//!
//! Reads and writes each element once and does k + m additions on it. The butterflies of a row run in the first-level
//! cache, four levels at a time in registers for neighbours, then two at a time over whole vectors.
//! Sums are taken in the same order at every level and for every number of rows.

use crate::isa::{Isa, isa};
use crate::matmul::offsets;
use crate::pool::{self, SendPtr};
use crate::simd::{self, Kernel, Simd};
use half::slice::HalfFloatSliceExt;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::{Dtype, bf16, f16};
use lapis_core::error::{Error, Result};
use lapis_core::ops::hadamard::Hadamard;
use std::ops::{Add, AddAssign, Mul, Sub};

// Rows of the small matrices, first column in the highest bit; a set bit is -1.
const H12: [u32; 12] = [0x400, 0xd55, 0x13c, 0x769, 0x04f, 0x5da, 0x313, 0x676, 0x3c4, 0x69d, 0x0f1, 0x5a7];
const H20: [u32; 20] = [
    0x7bcc9, 0xbdc74, 0xdee2a, 0xef705, 0xf7992, 0x83ec6, 0x45d63, 0x26eb1, 0x17758, 0x0f9ac, 0xca5f0, 0xe52e8,
    0x72b64, 0x397a2, 0x9cbc1, 0xb65ef, 0x5f2f7, 0xabb7b, 0xd1fbd, 0x6cfde,
];
const H28: [u32; 28] = [
    0x7e796b3, 0xbe3eb59, 0xdf1d5ec, 0xef8eab6, 0xf7c751b, 0xfbe1acd, 0xfcf2d66, 0xc2fe62d, 0xe17d356, 0x71bc9ab,
    0x39de4d5, 0x1def26a, 0x0ff5935, 0x87f8cda, 0xa4cdfe1, 0x5366ff0, 0xa9b37b8, 0x54dbb9c, 0x2a6fd8e, 0x9537e87,
    0x4b9bf43, 0x9948f3f, 0x4ca47df, 0x27523ef, 0x92ab1f7, 0xc8578fb, 0x652bc7d, 0x3295e7e,
];

/// What rows are computed in.
trait Real: Copy + Default + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign + 'static {
    fn from_f64(x: f64) -> Self;
}
impl Real for f32 {
    fn from_f64(x: f64) -> f32 {
        x as f32
    }
}
impl Real for f64 {
    fn from_f64(x: f64) -> f64 {
        x
    }
}

/// What rows are stored in.
trait Element: Copy + 'static {
    type Acc: Real;
    fn widen(self) -> Self::Acc;
    fn widen_row(row: &[Self], to: &mut [Self::Acc]);
    fn narrow_row(row: &[Self::Acc], to: &mut [Self]);
}
macro_rules! whole {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Acc = $t;
            fn widen(self) -> $t {
                self
            }
            fn widen_row(row: &[$t], to: &mut [$t]) {
                to.copy_from_slice(row);
            }
            fn narrow_row(row: &[$t], to: &mut [$t]) {
                to.copy_from_slice(row);
            }
        }
    )*};
}
whole!(f32, f64);
macro_rules! halves {
    ($($t:ty),*) => {$(
        impl Element for $t {
            type Acc = f32;
            fn widen(self) -> f32 {
                self.to_f32()
            }
            fn widen_row(row: &[$t], to: &mut [f32]) {
                row.convert_to_f32_slice(to);
            }
            fn narrow_row(row: &[f32], to: &mut [$t]) {
                to.convert_from_f32_slice(row);
            }
        }
    )*};
}
halves!(f16, bf16);

/// The transform of one row in place; `out` has its size.
struct Row<'a, T> {
    m: usize,
    scale: T,
    row: &'a mut [T],
    out: &'a mut [T],
}

/// Neighbours that are transformed in registers.
const BASE: usize = 16;

impl<T: Real> Kernel for Row<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let block = self.row.len() / self.m;
        for x in self.row.chunks_exact_mut(block) {
            sylvester(x);
        }
        if self.m == 1 {
            for (o, &x) in self.out.iter_mut().zip(self.row.iter()) {
                *o = x * self.scale;
            }
            return;
        }
        let signs: &[u32] = match self.m {
            12 => &H12,
            20 => &H20,
            _ => &H28,
        };
        let (one, minus) = (T::from_f64(1.0), T::from_f64(-1.0));
        for (bits, out) in signs.iter().zip(self.out.chunks_exact_mut(block)) {
            out.fill(T::default());
            for (c, x) in self.row.chunks_exact(block).enumerate() {
                let sign = if bits >> (self.m - 1 - c) & 1 == 1 { minus } else { one };
                for (o, &x) in out.iter_mut().zip(x) {
                    *o += sign * x;
                }
            }
            for o in out {
                *o = *o * self.scale;
            }
        }
    }
}

/// Multiplies by Sylvester's matrix in place.
#[inline(always)]
fn sylvester<T: Real>(x: &mut [T]) {
    let n = x.len();
    let mut h = 1;
    if n >= BASE {
        for block in x.chunks_exact_mut(BASE) {
            let mut v = [T::default(); BASE];
            v.copy_from_slice(block);
            for step in [1, 2, 4, 8] {
                let mut w = v;
                for i in 0..BASE {
                    w[i] = if i & step == 0 { v[i] + v[i + step] } else { v[i - step] - v[i] };
                }
                v = w;
            }
            block.copy_from_slice(&v);
        }
        h = BASE;
    }
    while 4 * h <= n {
        for block in x.chunks_exact_mut(4 * h) {
            let (ab, cd) = block.split_at_mut(2 * h);
            let ((a, b), (c, d)) = (ab.split_at_mut(h), cd.split_at_mut(h));
            for i in 0..h {
                let (p, q, r, s) = (a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]);
                (a[i], b[i], c[i], d[i]) = (p + r, q + s, p - r, q - s);
            }
        }
        h *= 4;
    }
    if h < n {
        let (a, b) = x.split_at_mut(h);
        for i in 0..h {
            (a[i], b[i]) = (a[i] + b[i], a[i] - b[i]);
        }
    }
}

/// Transforms all rows: `rows` are the positions of their first elements, `stride` apart in elements within a row.
///
/// # Safety
/// Every element of the rows must be readable; `out` must hold the rows one after the other and belong to the caller.
unsafe fn rows<E: Element>(
    isa: Isa,
    op: &Hadamard,
    input: *const E,
    rows: &[isize],
    stride: isize,
    n: usize,
    out: *mut E,
) {
    let (input, out) = (SendPtr(input.cast_mut()), SendPtr(out));
    let grain = (1 << 15) / n.max(1) + 1;
    pool::for_each_chunk(rows.len(), grain, &|range| {
        let (mut row, mut result) = (vec![<E::Acc>::default(); n], vec![<E::Acc>::default(); n]);
        for r in range {
            // SAFETY: the caller's promise.
            unsafe {
                let first = input.get().cast_const().offset(rows[r]);
                if stride == 1 {
                    E::widen_row(std::slice::from_raw_parts(first, n), &mut row);
                } else {
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = (*first.offset(i as isize * stride)).widen();
                    }
                }
                let scale = <E::Acc>::from_f64(op.scale.0);
                simd::dispatch_with(isa, Row { m: op.m, scale, row: &mut row, out: &mut result });
                E::narrow_row(&result, std::slice::from_raw_parts_mut(out.get().add(r * n), n));
            }
        }
    });
}

/// The op, at the level in use.
pub(crate) fn hadamard(op: &Hadamard, input: &Tensor, out: &mut Tensor) -> Result<()> {
    hadamard_with(isa(), op, input, out)
}

fn hadamard_with(isa: Isa, op: &Hadamard, input: &Tensor, out: &mut Tensor) -> Result<()> {
    let lead = input.shape.len().saturating_sub(1);
    let (n, stride) = (input.shape.last().copied().unwrap_or(1), input.strides.last().copied().unwrap_or(1));
    let at = offsets(&input.shape[..lead], &input.strides[..lead]);
    // SAFETY: tensors lie inside their buffers; the output has the input's shape, is row-major and belongs to this call.
    unsafe {
        match input.dtype {
            Dtype::Float32 => rows::<f32>(isa, op, input.ptr().cast(), &at, stride, n, out.ptr().cast()),
            Dtype::Float64 => rows::<f64>(isa, op, input.ptr().cast(), &at, stride, n, out.ptr().cast()),
            Dtype::Float16 => rows::<f16>(isa, op, input.ptr().cast(), &at, stride, n, out.ptr().cast()),
            Dtype::Bfloat16 => rows::<bf16>(isa, op, input.ptr().cast(), &at, stride, n, out.ptr().cast()),
            other => return Err(Error::unsupported(format!("[hadamard_transform] {other} has no kernel"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa;

    fn matrix(m: usize, r: usize, c: usize) -> f64 {
        let bits = match m {
            1 => 0,
            12 => H12[r],
            20 => H20[r],
            _ => H28[r],
        };
        if bits >> (m - 1 - c) & 1 == 1 { -1.0 } else { 1.0 }
    }

    /// The small matrices are Hadamard: rows of +-1, orthogonal in pairs.
    #[test]
    fn small_matrices_are_orthogonal() {
        for m in [12, 20, 28] {
            for r in 0..m {
                for s in 0..m {
                    let dot: f64 = (0..m).map(|c| matrix(m, r, c) * matrix(m, s, c)).sum();
                    assert_eq!(dot, if r == s { m as f64 } else { 0.0 }, "H{m} rows {r} and {s}");
                }
            }
        }
    }

    /// Equal to the definition at every level: entries are small integers, so sums are exact.
    #[test]
    fn rows_match_the_definition_at_every_level() {
        for isa in isa::available() {
            for (m, k) in [(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (1, 6), (1, 9), (12, 0), (12, 2), (20, 3), (28, 5)] {
                let s = 1usize << k;
                let n = m * s;
                let x: Vec<f32> = (0..n).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
                let (mut row, mut out) = (x.clone(), vec![0.0; n]);
                simd::dispatch_with(isa, Row { m, scale: 0.5, row: &mut row, out: &mut out });
                for i in 0..n {
                    let sign = |j: usize| if ((i % s) & (j % s)).count_ones() % 2 == 1 { -1.0 } else { 1.0 };
                    let exact: f64 = (0..n).map(|j| matrix(m, i / s, j / s) * sign(j) * f64::from(x[j])).sum();
                    assert_eq!(f64::from(out[i]), 0.5 * exact, "{} n = {n}, element {i}", isa.name());
                }
            }
        }
    }
}
