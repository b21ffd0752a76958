//! Dense products. The limit is the peak of the best instruction for the type, measured with registers only.

use super::{Case, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::prelude::*;

pub(super) const CASES: &[Case] = &[
    Case { name: "matmul_f32_2048", run: |b| square(b, Dtype::Float32, Peak::F32) },
    Case { name: "matmul_bf16_2048", run: |b| square(b, Dtype::Bfloat16, Peak::Bf16) },
    Case { name: "matvec_bf16_2048x8192", run: |b| vector(b, 1, 2048, 8192) },
    Case { name: "matvec_bf16_4x2048x8192", run: |b| vector(b, 4, 2048, 8192) },
];

/// A product of two square matrices of side 2048: 2 * 2048^3 operations.
fn square(bench: &Bench, dtype: Dtype, peak: Peak) -> Result<Measured> {
    let n = 2048;
    let a = ops::astype(&uniform(&[n, n], 1), dtype)?;
    let b = ops::astype(&uniform(&[n, n], 2), dtype)?;
    eval([&a, &b])?;
    bench.time(Limit::Operations { count: 2.0 * (n as f64).powi(3), peak }, || Ok(ops::matmul(&a, &b)?.eval()?))
}

/// Few rows times the transpose of weights `[n, k]`, as in decoding. The limit is reading the weights from memory; they
/// rotate through so many copies that no cache holds them, as the layers of a model do.
fn vector(bench: &Bench, m: usize, k: usize, n: usize) -> Result<Measured> {
    let x = ops::astype(&uniform(&[m, k], 1), Dtype::Bfloat16)?;
    let first = ops::astype(&uniform(&[n, k], 2), Dtype::Bfloat16)?;
    let bytes = first.to_bytes()?;
    let count = (512usize << 20).div_ceil(bytes.len());
    let copy = |_| Ok(Array::from_bytes(&bytes, first.shape(), Dtype::Bfloat16)?.t());
    let copies = (0..count).map(copy).collect::<Result<Vec<_>>>()?;
    eval(copies.iter().chain([&x]))?;
    let mut turn = 0;
    bench.time(Limit::Read { bytes: bytes.len() as f64 }, || {
        turn = (turn + 1) % copies.len();
        Ok(ops::matmul(&x, &copies[turn])?.eval()?)
    })
}
