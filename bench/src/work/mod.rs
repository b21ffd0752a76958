//! The benchmarks, one file a group. Each states the bytes or operations that bound it.

mod elementwise;
mod fast;
mod graph;
mod matmul;
mod quantized;

use crate::measure::{Bench, Measured, Result};
use lapis::prelude::*;

/// One benchmark.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Bench) -> Result<Measured>,
}

/// Every benchmark, in the order of the report.
pub(crate) fn all() -> Vec<Case> {
    [matmul::CASES, quantized::CASES, fast::CASES, elementwise::CASES, graph::CASES].concat()
}

/// An array of values from -1 to 1, the same for the same seed (xorshift).
fn uniform(shape: &[usize], seed: u64) -> Array {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Array::from_slice(&values, shape)
}
