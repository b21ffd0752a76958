//! Elementwise work, alone and fused. All of it should run at the speed of memory: the limit is a loop that moves the
//! same bytes (each input once, the output once) and does nothing else, inputs coming from memory in both.

use super::{Case, Rotation, uniform};
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::prelude::*;

pub(super) const CASES: &[Case] = &[
    Case { name: "fused_silu_mul_add_4m", run: silu_mul_add },
    Case { name: "exp_f32_16m", run: |b| unary(b, ops::exp) },
    Case { name: "tanh_f32_16m", run: |b| unary(b, ops::tanh) },
    Case { name: "erf_f32_16m", run: |b| unary(b, ops::erf) },
];

/// silu(x) * y + z. A function of its own, because a handle that lives through `eval` is a value that is wanted.
fn expression(x: &Array, y: &Array, z: &Array) -> Result<Array> {
    Ok(x * &ops::sigmoid(x)? * y + z)
}

/// silu(x) * y + z on 2^22 values: three arrays in, one out.
fn silu_mul_add(bench: &Bench) -> Result<Measured> {
    let n = 1 << 22;
    let mut inputs = Rotation::new(&[&uniform(&[n], 1), &uniform(&[n], 2), &uniform(&[n], 3)])?;
    bench.time(Limit::Stream { reads: 3, bytes: 4 * n }, || {
        let [x, y, z] = inputs.next() else { return Err("three inputs".into()) };
        Ok(expression(x, y, z)?.eval()?)
    })
}

/// One function of 2^24 values: one array in, one out.
fn unary(bench: &Bench, f: fn(&Array) -> lapis::Result<Array>) -> Result<Measured> {
    let n = 1 << 24;
    let mut x = Rotation::new(&[&uniform(&[n], 1)])?;
    bench.time(Limit::Stream { reads: 1, bytes: 4 * n }, || Ok(f(&x.next()[0])?.eval()?))
}
