//! Dense products. The limit is the peak of the best instruction for the type, measured with registers only.

use super::{Case, uniform};
use crate::limits::Peak;
use crate::measure::{Bench, Limit, Measured, Result};
use lapis::prelude::*;

pub(super) const CASES: &[Case] = &[
    Case { name: "matmul_f32_2048", run: |b| square(b, Dtype::Float32, Peak::F32) },
    Case { name: "matmul_bf16_2048", run: |b| square(b, Dtype::Bfloat16, Peak::Bf16) },
];

/// A product of two square matrices of side 2048: 2 * 2048^3 operations.
fn square(bench: &Bench, dtype: Dtype, peak: Peak) -> Result<Measured> {
    let n = 2048;
    let a = ops::astype(&uniform(&[n, n], 1), dtype)?;
    let b = ops::astype(&uniform(&[n, n], 2), dtype)?;
    eval([&a, &b])?;
    bench.time(Limit::Operations { count: 2.0 * (n as f64).powi(3), peak }, || Ok(ops::matmul(&a, &b)?.eval()?))
}
