//! Normalisations along rows, and attention.

use super::{Case, Rotation, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::ops::fast::{self, AttentionMask, AttentionOptions};
use lapis::prelude::*;
use lapis::transforms::vjp;

pub(super) const CASES: &[Case] = &[
    Case { name: "softmax_f32_4096", run: softmax },
    Case { name: "rms_norm_f32_4096", run: rms_norm },
    Case { name: "sdpa_prefill_32x1024x128_bf16", run: |b| prefill(b, 1024) },
    Case { name: "sdpa_grad_16x8x256x32_f32", run: |b| gradient(b, [16, 8, 256, 32]) },
    Case { name: "sdpa_grad_1x16x2048x128_f32", run: |b| gradient(b, [1, 16, 2048, 128]) },
    Case { name: "sdpa_decode_32x4096x128_bf16", run: |b| decode(b, 4096) },
];

const ROWS: usize = 4096;
const HEADS: usize = 32;
const KEY_HEADS: usize = 8;
const WIDTH: usize = 128;

/// 4096 rows of 4096: one array in, one out. A row stays in cache between its passes.
fn softmax(bench: &Bench) -> Result<Measured> {
    let mut x = Rotation::new(&[&uniform(&[ROWS, ROWS], 1)])?;
    bench.time(Limit::Stream { reads: 1, bytes: 4 * ROWS * ROWS }, || Ok(ops::softmax(&x.next()[0], -1)?.eval()?))
}

/// As softmax; the weight is small.
fn rms_norm(bench: &Bench) -> Result<Measured> {
    let (mut x, w) = (Rotation::new(&[&uniform(&[ROWS, ROWS], 1)])?, uniform(&[ROWS], 2));
    bench.time(Limit::Stream { reads: 1, bytes: 4 * ROWS * ROWS }, || {
        Ok(fast::rms_norm(&x.next()[0], Some(&w), 1e-5)?.eval()?)
    })
}

/// Causal attention of a prompt on itself, 32 query heads on 8 key heads of 128: two products over half of the
/// score matrix, 2 * heads * len^2 * width operations, against the peak for bf16 operands.
fn prefill(bench: &Bench, len: usize) -> Result<Measured> {
    let (q, kv) = (heads(HEADS, len, 1)?, [heads(KEY_HEADS, len, 2)?, heads(KEY_HEADS, len, 3)?]);
    let count = 2.0 * (HEADS * len * len * WIDTH) as f64;
    let limit = Limit::Operations { count, peak: Peak::Bf16 };
    bench.time(limit, || attend(&q, &kv, AttentionMask::Causal))
}

/// Gradients of causal attention by queries, keys and values of this shape: five products over half of the score matrix.
fn gradient(bench: &Bench, shape: [usize; 4]) -> Result<Measured> {
    let [batch, heads, len, width] = shape;
    let inputs: Vec<Array> = (1..4).map(|seed| uniform(&shape, seed)).collect();
    let cotangents = vec![uniform(&shape, 4)];
    eval(inputs.iter().chain(&cotangents))?;
    let options =
        AttentionOptions { scale: (width as f64).powf(-0.5), mask: AttentionMask::Causal, ..Default::default() };
    let attend = |x: &Vec<Array>| -> lapis::Result<Vec<Array>> {
        Ok(vec![fast::scaled_dot_product_attention(&x[0], &x[1], &x[2], &options)?])
    };
    let count = 5.0 * (batch * heads * len * len * width) as f64;
    bench.time(Limit::Operations { count, peak: Peak::F32 }, || Ok(eval(&vjp(attend, &inputs, &cotangents)?.1)?))
}

/// One token of 32 query heads against `len` keys and values of 8 heads. The limit is reading them from memory; they
/// rotate through so many copies that no cache holds them.
fn decode(bench: &Bench, len: usize) -> Result<Measured> {
    let q = heads(HEADS, 1, 1)?;
    let bytes = 2 * 2 * KEY_HEADS * len * WIDTH;
    let copy = |i: usize| Ok([heads(KEY_HEADS, len, 2 * i as u64 + 2)?, heads(KEY_HEADS, len, 2 * i as u64 + 3)?]);
    let copies = (0..(512 << 20) / bytes).map(copy).collect::<Result<Vec<_>>>()?;
    let mut turn = 0;
    bench.time(Limit::Read { bytes: bytes as f64 }, || {
        turn = (turn + 1) % copies.len();
        attend(&q, &copies[turn], AttentionMask::None)
    })
}

fn attend(q: &Array, [k, v]: &[Array; 2], mask: AttentionMask<'_>) -> Result<()> {
    let options = AttentionOptions { scale: (WIDTH as f64).powf(-0.5), mask, ..Default::default() };
    Ok(fast::scaled_dot_product_attention(q, k, v, &options)?.eval()?)
}

/// `[1, heads, len, 128]` in bf16.
fn heads(heads: usize, len: usize, seed: u64) -> Result<Array> {
    let a = ops::astype(&uniform(&[1, heads, len, WIDTH], seed), Dtype::Bfloat16)?;
    a.eval()?;
    Ok(a)
}
