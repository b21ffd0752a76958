//! Slices of f32, f16 and bf16, to f32 and back (nearest, ties to even).

use half::f16;
use lapis_core::dtype::Dtype;

versions! {
    /// Reads `out.len()` elements of a floating `dtype` as f32.
    pub(super) fn load(dtype: Dtype, bytes: &[u8], out: &mut [f32]) = load_body;
}
#[cfg(test)]
versions! {
    /// Writes f32 values as a floating `dtype`.
    pub(super) fn store(dtype: Dtype, values: &[f32], bytes: &mut [u8]) = store_body;
}

/// [`load`], to be inlined into a kernel.
#[inline(always)]
pub(super) fn load_body(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::Bfloat16 => load_bf16(bytes, out),
        Dtype::Float16 => load_f16(bytes, out),
        _ => load_f32(bytes, out),
    }
}

/// [`store`], to be inlined into a kernel.
#[inline(always)]
pub(super) fn store_body(dtype: Dtype, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        Dtype::Bfloat16 => store_bf16(values, bytes),
        Dtype::Float16 => store_f16(values, bytes),
        _ => store_f32(values, bytes),
    }
}

/// Rounds f32 values to those a floating `dtype` can hold.
#[inline(always)]
pub(super) fn round_body(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::Bfloat16 => round_bf16(values),
        Dtype::Float16 => round_f16(values),
        _ => {}
    }
}

/// Rounds one value to those a floating `dtype` can hold.
#[inline(always)]
pub(super) fn round_one(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::Bfloat16 => bf16_to_f32(f32_to_bf16(x)),
        Dtype::Float16 => f16::from_f32(x).to_f32(),
        _ => x,
    }
}

/// Writes one value as a floating `dtype`.
#[inline(always)]
pub(super) fn store_one(dtype: Dtype, x: f32, bytes: &mut [u8]) {
    match dtype {
        Dtype::Bfloat16 => bytes.copy_from_slice(&f32_to_bf16(x).to_le_bytes()),
        Dtype::Float16 => bytes.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
        _ => bytes.copy_from_slice(&x.to_le_bytes()),
    }
}

/// Reads one value of a floating `dtype`.
#[inline(always)]
pub(super) fn load_one(dtype: Dtype, bytes: &[u8]) -> f32 {
    match (dtype, bytes) {
        (Dtype::Bfloat16, &[a, b, ..]) => bf16_to_f32(u16::from_le_bytes([a, b])),
        (Dtype::Float16, &[a, b, ..]) => f16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d, ..]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

#[inline(always)]
fn bf16_to_f32(x: u16) -> f32 {
    f32::from_bits((x as u32) << 16)
}

/// As `bf16::from_f32`, written without a branch so that loops of it are vectorised.
#[inline(always)]
pub(super) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

#[inline(always)]
fn load_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks::<2>().0.iter().zip(out) {
        *x = bf16_to_f32(u16::from_le_bytes(*b));
    }
}

#[inline(always)]
fn load_f32(bytes: &[u8], out: &mut [f32]) {
    for (b, x) in bytes.as_chunks::<4>().0.iter().zip(out) {
        *x = f32::from_le_bytes(*b);
    }
}

/// `half` converts slices with F16C where it is present.
#[inline(always)]
fn load_f16(bytes: &[u8], out: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    let mut halves = [f16::ZERO; 64];
    for (b, x) in bytes.chunks(128).zip(out.chunks_mut(64)) {
        let n = x.len();
        bytemuck::cast_slice_mut(&mut halves[..n]).copy_from_slice(&b[..2 * n]);
        halves[..n].convert_to_f32_slice(x);
    }
}

#[inline(always)]
fn store_bf16(values: &[f32], bytes: &mut [u8]) {
    for (x, b) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
        *b = f32_to_bf16(*x).to_le_bytes();
    }
}

#[inline(always)]
fn store_f32(values: &[f32], bytes: &mut [u8]) {
    for (x, b) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
        *b = x.to_le_bytes();
    }
}

#[inline(always)]
fn store_f16(values: &[f32], bytes: &mut [u8]) {
    use half::slice::HalfFloatSliceExt;
    let mut halves = [f16::ZERO; 64];
    for (x, b) in values.chunks(64).zip(bytes.chunks_mut(128)) {
        let n = x.len();
        halves[..n].convert_from_f32_slice(x);
        b[..2 * n].copy_from_slice(bytemuck::cast_slice(&halves[..n]));
    }
}

#[inline(always)]
fn round_bf16(values: &mut [f32]) {
    for x in values {
        *x = bf16_to_f32(f32_to_bf16(*x));
    }
}

#[inline(always)]
fn round_f16(values: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    let mut halves = [f16::ZERO; 64];
    for x in values.chunks_mut(64) {
        let n = x.len();
        halves[..n].convert_from_f32_slice(x);
        halves[..n].convert_to_f32_slice(x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn bf16_rounds_as_half_does() {
        for i in 0..=u16::MAX {
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits((i as u32) << 16 | low);
                let (ours, theirs) = (f32_to_bf16(x), bf16::from_f32(x).to_bits());
                assert!(ours == theirs || x.is_nan() && bf16::from_bits(ours).is_nan(), "{x:e}");
            }
        }
    }
}
