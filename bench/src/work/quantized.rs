//! Products with weights packed in 4 bits, groups of 64, bf16 scales and biases: MLX's default checkpoint.

use super::{Case, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::ops::{Format, Quantized};
use lapis::prelude::*;

pub(super) const CASES: &[Case] = &[
    Case { name: "qmv_4bit_g64_4096x14336_bf16", run: |b| vector(b, 4096, 14336) },
    Case { name: "qmm_4bit_g64_512x4096x4096_bf16", run: |b| matrix(b, 512, 4096, 4096) },
];

/// One row times the weights, as in decoding. The limit is reading the packed weights, scales and biases from memory;
/// they rotate through so many copies that no cache holds them, as the layers of a model do.
fn vector(bench: &Bench, k: usize, n: usize) -> Result<Measured> {
    let x = activations(1, k)?;
    let first = weights(k, n)?;
    let bytes: usize = parts(&first).iter().map(|a| a.nbytes()).sum();
    let mut copies = vec![first];
    while copies.len() * bytes < 512 << 20 {
        copies.push(copy(&copies[0])?);
    }
    let mut turn = 0;
    bench.time(Limit::Read { bytes: bytes as f64 }, || {
        turn = (turn + 1) % copies.len();
        Ok(ops::quantized_matmul(&x, &copies[turn], true)?.eval()?)
    })
}

/// Many rows, as in prefill: 2 m k n operations against the peak of the 8-bit dot product, the fastest instruction that
/// could do the work (bf16 activations may be rounded to 8 bits a group).
fn matrix(bench: &Bench, m: usize, k: usize, n: usize) -> Result<Measured> {
    let (x, w) = (activations(m, k)?, weights(k, n)?);
    let count = 2.0 * (m * k * n) as f64;
    bench.time(Limit::Operations { count, peak: Peak::Int8 }, || Ok(ops::quantized_matmul(&x, &w, true)?.eval()?))
}

fn activations(m: usize, k: usize) -> Result<Array> {
    let x = ops::astype(&uniform(&[m, k], 1), Dtype::Bfloat16)?;
    x.eval()?;
    Ok(x)
}

fn weights(k: usize, n: usize) -> Result<Quantized> {
    let w = ops::astype(&uniform(&[n, k], 2), Dtype::Bfloat16)?;
    let q = ops::quantize(&w, Format::affine(4, 64)?, None)?;
    eval(parts(&q))?;
    Ok(q)
}

fn parts(q: &Quantized) -> Vec<&Array> {
    [&q.packed, &q.scales].into_iter().chain(&q.biases).collect()
}

/// The same weights elsewhere in memory.
fn copy(q: &Quantized) -> Result<Quantized> {
    let elsewhere = |a: &Array| Array::from_bytes(&a.to_bytes()?, a.shape(), a.dtype());
    Ok(Quantized {
        packed: elsewhere(&q.packed)?,
        scales: elsewhere(&q.scales)?,
        biases: q.biases.as_ref().map(elsewhere).transpose()?,
        ..q.clone()
    })
}
