//! Typed elements: from JSON numbers and from the generator to the bytes of a dtype.

use crate::attrs::number;
use lapis_core::dtype::{Dtype, bf16, f16};
use serde_json::Value;

/// Row-major elements of a dtype, as bytes of this machine's order.
#[derive(Clone, Debug)]
pub struct Values {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Vec<u8>,
}

/// The nearest f32 whose last bit also says whether anything was cut off, so that rounding once more to a narrower
/// type rounds as if from the double.
fn round_to_odd(v: f64) -> f32 {
    let near = v as f32;
    if f64::from(near) == v || !near.is_finite() || !v.is_finite() {
        return near;
    }
    let toward_zero = if f64::from(near).abs() > v.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(toward_zero | 1)
}

/// The nearest f16, ties to even, in one rounding.
pub fn round_f16(v: f64) -> f16 {
    f16::from_f32(round_to_odd(v))
}

/// The nearest bf16, ties to even, in one rounding.
pub fn round_bf16(v: f64) -> bf16 {
    bf16::from_f32(round_to_odd(v))
}

/// Appends one element, given as a double or (where doubles are too narrow) as an integer.
fn push(out: &mut Vec<u8>, dtype: Dtype, float: f64, int: i128) {
    match dtype {
        Dtype::Bool => out.push(u8::from(int != 0)),
        Dtype::Float16 => out.extend(round_f16(float).to_ne_bytes()),
        Dtype::Bfloat16 => out.extend(round_bf16(float).to_ne_bytes()),
        Dtype::Float32 | Dtype::Complex64 => out.extend((float as f32).to_ne_bytes()),
        Dtype::Float64 => out.extend(float.to_ne_bytes()),
        _ => match dtype.size() {
            1 => out.extend((int as u8).to_ne_bytes()),
            2 => out.extend((int as u16).to_ne_bytes()),
            4 => out.extend((int as u32).to_ne_bytes()),
            _ => out.extend((int as u64).to_ne_bytes()),
        },
    }
}

fn element(out: &mut Vec<u8>, dtype: Dtype, v: &Value) -> Option<()> {
    match dtype {
        Dtype::Bool => push(out, dtype, 0.0, i128::from(v.as_bool()?)),
        Dtype::Complex64 => {
            let [re, im] = v.as_array()?.as_slice() else { return None };
            push(out, dtype, number(re)?, 0);
            push(out, dtype, number(im)?, 0);
        }
        _ if dtype.is_integer() => {
            let int = v.as_i64().map(i128::from).or_else(|| v.as_u64().map(i128::from))?;
            push(out, dtype, 0.0, int);
        }
        _ => push(out, dtype, number(v)?, 0),
    }
    Some(())
}

/// The bytes of a list of JSON values of `dtype`.
pub(crate) fn bytes_of(dtype: Dtype, data: &[Value]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(data.len() * dtype.size());
    for v in data {
        element(&mut out, dtype, v).ok_or_else(|| format!("{v} is no {dtype}"))?;
    }
    Ok(out)
}

/// The documented generator: `state = state * 6364136223846793005 + 1442695040888963407`, its upper 24 bits scaled to
/// `[lo, hi)`, rounded down for integers and to nearest for floats.
pub(crate) fn generate(dtype: Dtype, n: usize, seed: u64, lo: f64, hi: f64) -> Vec<u8> {
    let mut out = Vec::with_capacity(n * dtype.size());
    let mut state = seed;
    for _ in 0..n {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let v = lo + (hi - lo) * ((state >> 40) as f64 / (1u64 << 24) as f64);
        push(&mut out, dtype, v, v.floor() as i128);
    }
    out
}

impl Values {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
