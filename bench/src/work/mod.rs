//! The benchmarks, one file a group. Each states the bytes or operations that bound it.

mod elementwise;
mod fast;
mod finetuning;
mod graph;
mod matmul;
mod quantized;
mod training;

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
    [matmul::CASES, quantized::CASES, fast::CASES, elementwise::CASES, training::CASES, finetuning::CASES, graph::CASES]
        .concat()
}

/// Bytes that a rotation goes through: more than a last-level cache holds.
const COLD: usize = 512 << 20;

/// The same arrays again and again, elsewhere in memory: each turn finds them as a program does that has done other
/// things meanwhile, in no cache.
struct Rotation {
    copies: Vec<Vec<Array>>,
    turn: usize,
}

impl Rotation {
    fn new(arrays: &[&Array]) -> lapis::Result<Rotation> {
        let bytes: usize = arrays.iter().map(|a| a.nbytes()).sum();
        let copy = |a: &&Array| Array::from_bytes(&a.to_bytes()?, a.shape(), a.dtype());
        let copies = (0..COLD.div_ceil(bytes)).map(|_| arrays.iter().map(copy).collect());
        Ok(Rotation { copies: copies.collect::<lapis::Result<_>>()?, turn: 0 })
    }

    fn next(&mut self) -> &[Array] {
        self.turn = (self.turn + 1) % self.copies.len();
        &self.copies[self.turn]
    }
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
