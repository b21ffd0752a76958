//! erf. (erfinv is in `random`, whose bits depend on it.)

use super::exp::{exp_parts, horner32, rounded, with_sign_of};
use crate::simd::{Float, Simd, Vector};

/// The error function, at most 1 ulp off: x + x·P(x²) up to 0.92, from there on 1 - e^Q(|x|).
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // From 3.95 on the result rounds to 1.
    let a = s.f32(3.95).min(x.abs());
    let small = horner32(s, &SMALL, a * a).fma(a, a);
    let (m, power) = exp_parts(s, horner32(s, &LOG_ERFC, a));
    let large = m.fnma(power, s.f32(1.0) - power);
    with_sign_of(s, S::F32::select(a.lt(s.f32(0.921875)), small, large), x)
}

// Minimax coefficients (Remez), lowest power first, and their largest errors.
/// erf(x)/x - 1 in x² for x up to 0.92; 2^-31 of erf.
const SMALL: [f32; 7] = rounded([
    0.12837916663741264,
    -0.3761263373506674,
    0.1128369549391262,
    -0.02685939826873712,
    0.005201032317541037,
    -0.0008142704605897111,
    8.370101661073022e-05,
]);
/// ln(1 - erf x) for x from 0.92 to 3.95; 2^-29 of erf.
const LOG_ERFC: [f32; 7] = rounded([
    -0.00019713654504553238,
    -1.12766958942244,
    -0.6371924143213081,
    -0.10392267263888352,
    0.022222617791546027,
    -0.003042137835746508,
    0.00019582715915286337,
]);
