//! Compares a result with what a case expects.
//!
//! Without a tolerance every bit counts (the sign of zero too), but any NaN equals any NaN.

use crate::case::{Expected, Freedom};
use crate::values::{Values, round_bf16, round_f16};
use lapis_core::dtype::{Dtype, bf16, f16};
use num_complex::Complex;
use std::fmt::Write;

/// How far a result may be from the expected value. An element passes when one of the bounds holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// `|got - expected| <= atol + rtol * |expected|`.
    #[serde(default)]
    pub rtol: f64,
    /// See `rtol`.
    #[serde(default)]
    pub atol: f64,
    /// At most so many representable numbers away.
    #[serde(default)]
    pub ulp: u64,
}

/// One element: the value (imaginary part 0 for reals), the bits, and its place among all numbers of the dtype.
struct Element {
    re: f64,
    im: f64,
    bits: u64,
    inexact: bool,
    rank: Option<i64>,
}

fn element(dtype: Dtype, bytes: &[u8]) -> Element {
    let mut raw = [0; 8];
    raw[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(raw);
    let width = 8 * dtype.size() as u32;
    let magnitude = (bits & ((1u64 << (width - 1)) - 1)) as i64;
    let negative = bits >> (width - 1) & 1 == 1;
    let rank = dtype.is_floating().then_some(if negative { -magnitude } else { magnitude });
    let signed = (bits << (64 - width)) as i64 >> (64 - width);
    let (re, im) = match dtype {
        Dtype::Float16 => (f64::from(f16::from_bits(bits as u16)), 0.0),
        Dtype::Bfloat16 => (f64::from(bf16::from_bits(bits as u16)), 0.0),
        Dtype::Float32 => (f64::from(f32::from_bits(bits as u32)), 0.0),
        Dtype::Float64 => (f64::from_bits(bits), 0.0),
        Dtype::Complex64 => (f64::from(f32::from_bits(bits as u32)), f64::from(f32::from_bits((bits >> 32) as u32))),
        Dtype::Int8 | Dtype::Int16 | Dtype::Int32 | Dtype::Int64 => (signed as f64, 0.0),
        _ => (bits as f64, 0.0),
    };
    Element { re, im, bits, inexact: dtype.is_inexact(), rank }
}

fn same_part(a: f64, b: f64) -> bool {
    (a.is_nan() && b.is_nan()) || a.to_bits() == b.to_bits()
}

impl Tolerance {
    fn accepts(&self, want: &Element, got: &Element) -> bool {
        if want.bits == got.bits || want.inexact && same_part(want.re, got.re) && same_part(want.im, got.im) {
            return true;
        }
        if *self == Tolerance::default() || [want.re, want.im, got.re, got.im].iter().any(|v| v.is_nan()) {
            return false;
        }
        if let (Some(a), Some(b)) = (want.rank, got.rank)
            && a.abs_diff(b) <= self.ulp
        {
            return true;
        }
        if [want.re, want.im, got.re, got.im].iter().any(|v| v.is_infinite()) {
            return want.re == got.re && want.im == got.im;
        }
        let distance = (want.re - got.re).hypot(want.im - got.im);
        distance <= self.atol + self.rtol * want.re.hypot(want.im)
    }
}

/// The elements of an output as complex doubles, and back. Only for the inexact outputs of decompositions.
fn wide(dtype: Dtype, bytes: &[u8]) -> Vec<Complex<f64>> {
    bytes.chunks_exact(dtype.size()).map(|b| element(dtype, b)).map(|e| Complex::new(e.re, e.im)).collect()
}

fn narrow(dtype: Dtype, values: &[Complex<f64>]) -> Vec<u8> {
    let mut out = Vec::new();
    for v in values {
        match dtype {
            Dtype::Float16 => out.extend(round_f16(v.re).to_ne_bytes()),
            Dtype::Bfloat16 => out.extend(round_bf16(v.re).to_ne_bytes()),
            Dtype::Float32 => out.extend((v.re as f32).to_ne_bytes()),
            Dtype::Float64 => out.extend(v.re.to_ne_bytes()),
            _ => {
                out.extend((v.re as f32).to_ne_bytes());
                out.extend((v.im as f32).to_ne_bytes());
            }
        }
    }
    out
}

/// Puts the columns of an expected matrix in the order of those of the result that they are closest to in direction.
fn pair_columns(expected: &mut [Complex<f64>], result: &[Complex<f64>], columns: usize) {
    let column = |m: &[Complex<f64>], j: usize| m.iter().skip(j).step_by(columns).copied().collect::<Vec<_>>();
    let mut left: Vec<_> = (0..columns).map(|j| column(expected, j)).collect();
    for j in 0..columns {
        let got = column(result, j);
        let angle = |v: &Vec<Complex<f64>>| v.iter().zip(&got).map(|(a, b)| a.conj() * b).sum::<Complex<f64>>().norm();
        let best = (0..left.len()).max_by(|&a, &b| angle(&left[a]).total_cmp(&angle(&left[b]))).unwrap_or(0);
        for (place, v) in expected.iter_mut().skip(j).step_by(columns).zip(left.swap_remove(best)) {
            *place = v;
        }
    }
}

/// The expected bytes after the choice that the definition leaves open: signs (phases) of vectors that bring them
/// closest to the result, the order of the result, or both.
fn settle(want: &Expected, got: &Values, freedom: Freedom) -> Vec<u8> {
    let (mut expected, result) = (wide(want.dtype, &want.bytes), wide(got.dtype, &got.bytes));
    let columns = want.shape.last().copied().unwrap_or(1).max(1);
    let rows = if want.shape.len() > 1 { want.shape[want.shape.len() - 2].max(1) } else { 1 };
    // Where the elements of vector `v` of a matrix lie.
    let (vectors, length, between, within) = match freedom {
        Freedom::Columns | Freedom::Vectors => (columns, rows, 1, columns),
        Freedom::Rows => (rows, columns, columns, 1),
        Freedom::Order => (rows, columns, columns, 1),
    };
    for matrix in (0..expected.len()).step_by(rows * columns) {
        if freedom == Freedom::Vectors {
            let all = matrix..matrix + rows * columns;
            pair_columns(&mut expected[all.clone()], &result[all], columns);
        }
        for v in 0..vectors {
            let at = |i: usize| matrix + v * between + i * within;
            if freedom == Freedom::Order {
                // Each element of the result takes the nearest expected one that is left.
                let mut left: Vec<_> = (0..length).map(|i| expected[at(i)]).collect();
                for i in 0..length {
                    let near = |a: &Complex<f64>| (a - result[at(i)]).norm();
                    let best = (0..left.len()).min_by(|&a, &b| near(&left[a]).total_cmp(&near(&left[b])));
                    expected[at(i)] = left.swap_remove(best.unwrap_or(0));
                }
                continue;
            }
            let dot: Complex<f64> = (0..length).map(|i| expected[at(i)].conj() * result[at(i)]).sum();
            if dot.norm() > 0.0 {
                (0..length).for_each(|i| expected[at(i)] *= dot / dot.norm());
            }
        }
    }
    narrow(want.dtype, &expected)
}

fn show(dtype: Dtype, e: &Element) -> String {
    match dtype {
        Dtype::Complex64 => format!("{}{:+}j", e.re, e.im),
        Dtype::Bool => (e.bits != 0).to_string(),
        Dtype::Uint64 => e.bits.to_string(),
        Dtype::Int64 => (e.bits as i64).to_string(),
        Dtype::Float32 => format!("{}", e.re as f32),
        _ => format!("{}", e.re),
    }
}

/// Compares dtype, shape and every stored element.
///
/// # Errors
/// What differs: dtype, shape, or the number of bad elements with the first few, their distance and their index.
pub fn compare(want: &Expected, got: &Values, tolerance: &Tolerance) -> Result<(), String> {
    if want.dtype != got.dtype {
        return Err(format!("dtype {} expected, got {}", want.dtype, got.dtype));
    }
    if want.shape != got.shape {
        return Err(format!("shape {:?} expected, got {:?}", want.shape, got.shape));
    }
    let size = want.dtype.size();
    let settled = want.free.map(|freedom| settle(want, got, freedom));
    let stored = settled.as_ref().unwrap_or(&want.bytes);
    let (mut bad, mut shown, mut checked) = (0, String::new(), 0);
    for (i, bytes) in stored.chunks_exact(size).enumerate() {
        checked += 1;
        let at = i * want.step;
        let expected = element(want.dtype, bytes);
        let value = element(got.dtype, &got.bytes[at * size..(at + 1) * size]);
        if tolerance.accepts(&expected, &value) {
            continue;
        }
        bad += 1;
        if bad <= 4 {
            let _ = write!(shown, "; [{at}] expected {} got {}", show(want.dtype, &expected), show(got.dtype, &value));
            if let (Some(a), Some(b)) = (expected.rank, value.rank)
                && !(expected.re.is_nan() || value.re.is_nan())
            {
                let _ = write!(shown, " ({} ulp)", a.abs_diff(b));
            }
        }
    }
    if bad == 0 { Ok(()) } else { Err(format!("{bad} of {checked} elements differ (allowed {tolerance:?}){shown}")) }
}
