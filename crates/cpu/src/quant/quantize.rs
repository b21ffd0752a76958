//! Weights to codes, scales and biases; and the bare E4M3 conversion.
//!
//! Bit-equal to MLX, except that E8M0 exponents are clamped where MLX wraps. All arithmetic is f32 in MLX's order. A
//! tensor is a flat sequence of groups here, since rows are whole numbers of groups and groups whole numbers of bytes.
//! Reads the weights once and writes `bits / 8` bytes an element; offline work, bound by the divisions.

use super::codes::*;
use super::format::{Format, Mode, check_axis, check_float, check_global, check_len};
use super::halves;
use crate::isa::Isa;
use crate::pool;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use std::sync::Mutex;

/// Groups of one task: enough work to pay for handing it out.
const TASK_GROUPS: usize = 512;

/// The largest group.
const MAX_GROUP: usize = 128;

/// Quantizes contiguous rows of `k` weights (f32, f16 or bf16, little-endian).
///
/// `packed` takes `weights * bits / 8` bytes; `scales` one entry a group in `dtype` (affine) or one byte; `biases` as
/// the affine scales, empty in the other modes. `global_scale` (nvfp4) is the largest magnitude of the tensor.
///
/// # Errors
/// A last axis that is not a multiple of the group, a dtype or a buffer length that does not fit, a `global_scale`
/// outside nvfp4.
pub fn quantize(
    isa: Isa,
    format: Format,
    dtype: Dtype,
    weights: &[u8],
    k: usize,
    global_scale: Option<f32>,
    packed: &mut [u8],
    scales: &mut [u8],
    biases: &mut [u8],
) -> Result<()> {
    let op = "quantize";
    check_float(op, "w", dtype)?;
    check_global(op, format, global_scale)?;
    check_axis(op, format, k)?;
    let count = weights.len() / dtype.size();
    let rows = count.checked_div(k).unwrap_or(0);
    let groups = rows * k / format.group();
    check_len(op, "w", weights.len(), rows * k * dtype.size())?;
    check_len(op, "packed codes", packed.len(), format.row_bytes(rows * k))?;
    check_len(op, "scales", scales.len(), groups * format.scale_bytes(dtype))?;
    check_len(op, "biases", biases.len(), if format.has_biases() { scales.len() } else { 0 })?;

    let step = TASK_GROUPS * format.group();
    let scale_step = TASK_GROUPS * format.scale_bytes(dtype);
    let mut biases = biases.chunks_mut(scale_step);
    let tasks: Vec<_> = packed
        .chunks_mut(format.row_bytes(step))
        .zip(scales.chunks_mut(scale_step))
        .map(|(packed, scales)| Mutex::new((packed, scales, biases.next().unwrap_or_default())))
        .collect();
    pool::run(tasks.len(), &|i| {
        let weights = &weights[i * step * dtype.size()..];
        let (packed, scales, biases) = &mut *tasks[i].lock().unwrap_or_else(|e| e.into_inner());
        if format.has_biases() {
            affine(isa, format, dtype, weights, packed, scales, biases);
        } else {
            block(isa, format, dtype, global_scale, weights, packed, scales);
        }
    });
    Ok(())
}

/// E4M3 codes of floating values, as `mx.to_fp8`.
///
/// # Errors
/// A dtype that is not f32, f16 or bf16; lengths that differ.
pub fn to_fp8(isa: Isa, dtype: Dtype, values: &[u8], codes: &mut [u8]) -> Result<()> {
    check_float("to_fp8", "x", dtype)?;
    check_len("to_fp8", "x", values.len(), codes.len() * dtype.size())?;
    let step = 1 << 15;
    let tasks: Vec<_> = values.chunks(step * dtype.size()).zip(codes.chunks_mut(step).map(Mutex::new)).collect();
    pool::run(tasks.len(), &|i| {
        let (values, codes) = &tasks[i];
        fp8_chunk(isa, dtype, values, &mut codes.lock().unwrap_or_else(|e| e.into_inner()));
    });
    Ok(())
}

versions! { fn fp8_chunk(dtype: Dtype, values: &[u8], codes: &mut [u8]) = fp8_body; }

#[inline(always)]
fn fp8_body(dtype: Dtype, values: &[u8], codes: &mut [u8]) {
    let mut x = [0.0; 128];
    for (codes, values) in codes.chunks_mut(128).zip(values.chunks(128 * dtype.size())) {
        halves::load_body(dtype, values, &mut x[..codes.len()]);
        for (code, x) in codes.iter_mut().zip(x) {
            *code = encode_e4m3(x);
        }
    }
}

versions! {
    fn affine(f: Format, dtype: Dtype, weights: &[u8], packed: &mut [u8], scales: &mut [u8], biases: &mut [u8])
        = affine_body;
}

#[inline(always)]
fn affine_body(f: Format, dtype: Dtype, weights: &[u8], packed: &mut [u8], scales: &mut [u8], biases: &mut [u8]) {
    let (group, size) = (f.group(), dtype.size());
    let (mut values, mut codes) = ([0.0; MAX_GROUP], [0; MAX_GROUP]);
    for (i, packed) in packed.chunks_mut(f.row_bytes(group)).enumerate() {
        let (values, codes) = (&mut values[..group], &mut codes[..group]);
        halves::load_body(dtype, &weights[i * group * size..][..group * size], values);
        let (scale, bias) = affine_parameters(f.bits(), values);
        let top = ((1u32 << f.bits()) - 1) as f32;
        for (code, &w) in codes.iter_mut().zip(&*values) {
            *code = ((w - bias) / scale).round_ties_even().clamp(0.0, top) as u8;
        }
        pack_any(f.bits(), codes, packed);
        halves::store_one(dtype, scale, &mut scales[i * size..][..size]);
        halves::store_one(dtype, bias, &mut biases[i * size..][..size]);
    }
}

/// Scale and bias of a group, in f32: the end of the range with the larger magnitude is represented exactly, and from
/// 2 bits on zero is a code.
#[inline(always)]
fn affine_parameters(bits: usize, group: &[f32]) -> (f32, f32) {
    let mut high = [f32::NEG_INFINITY; 16];
    let mut low = [f32::INFINITY; 16];
    for part in group.as_chunks::<16>().0 {
        for j in 0..16 {
            high[j] = if part[j] > high[j] { part[j] } else { high[j] };
            low[j] = if part[j] < low[j] { part[j] } else { low[j] };
        }
    }
    let high = high.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let low = low.into_iter().fold(f32::INFINITY, f32::min);
    const TINY: f32 = 1e-7;
    if bits == 1 {
        return ((high - low).max(TINY), low);
    }
    let levels = ((1u32 << bits) - 1) as f32;
    let below = low.abs() > high.abs();
    let span = ((high - low) / levels).max(TINY);
    let scale = if below { span } else { -span };
    let edge = if below { low } else { high };
    let steps = (edge / scale).round_ties_even();
    if steps != 0.0 { (edge / steps, edge) } else { (scale, 0.0) }
}

versions! {
    fn block(f: Format, dtype: Dtype, global: Option<f32>, weights: &[u8], packed: &mut [u8], scales: &mut [u8])
        = block_body;
}

#[inline(always)]
fn block_body(f: Format, dtype: Dtype, global: Option<f32>, weights: &[u8], packed: &mut [u8], scales: &mut [u8]) {
    let (group, size) = (f.group(), dtype.size());
    let top = if f.mode() == Mode::Mxfp8 { 448.0 } else { 6.0 };
    let encode = global.map_or(1.0, |g| 2688.0 / g);
    let (mut values, mut codes) = ([0.0f32; MAX_GROUP], [0; MAX_GROUP]);
    for (i, packed) in packed.chunks_mut(f.row_bytes(group)).enumerate() {
        let (values, codes) = (&mut values[..group], &mut codes[..group]);
        halves::load_body(dtype, &weights[i * group * size..][..group * size], values);
        // As bits, magnitudes order like integers, and NaN is above everything.
        let largest = f32::from_bits(values.iter().fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
        let scale = halves::round_one(dtype, largest / top);
        let (byte, scale) = if f.mode() == Mode::Nvfp4 {
            let byte = encode_e4m3(scale * encode);
            (byte, decode_e4m3(byte))
        } else {
            let byte = encode_e8m0(scale);
            (byte, decode_e8m0(byte))
        };
        scales[i] = byte;
        let scale = halves::round_one(dtype, scale);
        for w in values.iter_mut() {
            *w /= scale;
        }
        halves::round_body(dtype, values);
        for w in values.iter_mut() {
            *w *= encode;
        }
        if f.mode() == Mode::Mxfp8 {
            for (code, &w) in codes.iter_mut().zip(&*values) {
                *code = encode_e4m3(w);
            }
        } else if values.iter().all(|w| w.abs() < 1048576.0) {
            for (code, &w) in codes.iter_mut().zip(&*values) {
                *code = encode_e2m1_moderate(w);
            }
        } else {
            for (code, &w) in codes.iter_mut().zip(&*values) {
                *code = encode_e2m1(w);
            }
        }
        pack_any(f.bits(), codes, packed);
    }
}
