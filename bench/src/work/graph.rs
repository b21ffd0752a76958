//! What lapis adds to the kernels: building a node, scheduling it, starting its kernel.

use super::Case;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::prelude::*;

pub(super) const CASES: &[Case] =
    &[Case { name: "graph_us_per_op", run: chain }, Case { name: "graph_us_per_unfused_op", run: unfused }];

const OPS: usize = 1000;

/// A chain of a thousand additions on 16 values, built and evaluated. The goal is one microsecond an addition.
fn chain(bench: &Bench) -> Result<Measured> {
    let a = Array::from_vec(vec![1f32; 16], &[16]);
    bench.time(Limit::Goal { count: OPS as f64, us: 1.0 }, || {
        let mut z = a.clone();
        for _ in 0..OPS {
            z = &z + &a;
        }
        Ok(z.eval()?)
    })
}

/// The same number of steps that cannot be fused with their neighbours: every other one is a sum over an axis.
fn unfused(bench: &Bench) -> Result<Measured> {
    let a = Array::from_vec(vec![1e-3f32; 16], &[4, 4]);
    bench.time(Limit::Goal { count: OPS as f64, us: 1.0 }, || {
        let mut z = a.clone();
        for _ in 0..OPS / 2 {
            z = &ops::sum(&z, -1, true)? + &a;
        }
        Ok(z.eval()?)
    })
}
