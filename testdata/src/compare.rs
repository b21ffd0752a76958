//! Compares a result with what a case expects.
//!
//! Without a tolerance every bit counts (the sign of zero too), but any NaN equals any NaN.

use crate::case::Expected;
use crate::values::Values;
use lapis_core::dtype::{Dtype, bf16, f16};
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
    let (mut bad, mut shown, mut checked) = (0, String::new(), 0);
    for (i, bytes) in want.bytes.chunks_exact(size).enumerate() {
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
