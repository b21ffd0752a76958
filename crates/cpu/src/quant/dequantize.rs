//! Codes, scales and biases back to values, with MLX's roundings; and the bare E4M3 conversion.
//!
//! Reads `bits / 8` bytes an element and writes the dtype's; bound by the writes.

use super::codes::*;
use super::format::{Format, Mode, check_axis, check_float, check_global, check_len};
use super::halves;
use crate::isa::Isa;
use crate::pool;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
use std::sync::Mutex;

/// Groups of one task.
const TASK_GROUPS: usize = 512;

/// Decodes contiguous rows of `k` codes into `out` (f32, f16 or bf16).
///
/// Affine: `round(round(code * scale) + bias)` in the dtype of scales and biases, `scale_dtype`, then a cast to
/// `out_dtype`. Block modes: `value * scale` rounded once to `out_dtype`, the scale first rounded to it.
///
/// # Errors
/// Sizes that do not fit together, a dtype that is not floating, a `global_scale` outside nvfp4.
pub fn dequantize(
    isa: Isa,
    format: Format,
    packed: &[u8],
    scales: &[u8],
    biases: &[u8],
    scale_dtype: Dtype,
    k: usize,
    global_scale: Option<f32>,
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let op = "dequantize";
    check_float(op, "the result", out_dtype)?;
    if format.has_biases() {
        check_float(op, "scales", scale_dtype)?;
    }
    check_global(op, format, global_scale)?;
    check_axis(op, format, k)?;
    let rows = packed.len().checked_div(format.row_bytes(k)).unwrap_or(0);
    let groups = rows * k / format.group();
    check_len(op, "packed codes", packed.len(), format.row_bytes(rows * k))?;
    check_len(op, "scales", scales.len(), groups * format.scale_bytes(scale_dtype))?;
    check_len(op, "biases", biases.len(), if format.has_biases() { scales.len() } else { 0 })?;
    check_len(op, "the result", out.len(), rows * k * out_dtype.size())?;

    let step = TASK_GROUPS * format.group();
    let tasks: Vec<_> = out.chunks_mut(step * out_dtype.size()).map(Mutex::new).collect();
    pool::run(tasks.len(), &|i| {
        let out = std::mem::take(&mut *tasks[i].lock().unwrap_or_else(|e| e.into_inner()));
        let packed = &packed[i * format.row_bytes(step)..];
        let skip = i * TASK_GROUPS * format.scale_bytes(scale_dtype);
        if format.has_biases() {
            affine(isa, format, packed, &scales[skip..], &biases[skip..], scale_dtype, out_dtype, out);
        } else {
            block(isa, format, packed, &scales[skip..], global_scale, out_dtype, out);
        }
    });
    Ok(())
}

/// Values of E4M3 codes in a floating dtype, as `mx.from_fp8`.
///
/// # Errors
/// A dtype that is not f32, f16 or bf16; lengths that differ.
pub fn from_fp8(isa: Isa, codes: &[u8], dtype: Dtype, out: &mut [u8]) -> Result<()> {
    check_float("from_fp8", "the result", dtype)?;
    check_len("from_fp8", "the result", out.len(), codes.len() * dtype.size())?;
    let step = 1 << 15;
    let tasks: Vec<_> = codes.chunks(step).zip(out.chunks_mut(step * dtype.size()).map(Mutex::new)).collect();
    pool::run(tasks.len(), &|i| {
        let (codes, out) = &tasks[i];
        fp8_chunk(isa, codes, dtype, &mut out.lock().unwrap_or_else(|e| e.into_inner()));
    });
    Ok(())
}

versions! { fn fp8_chunk(codes: &[u8], dtype: Dtype, out: &mut [u8]) = fp8_body; }

#[inline(always)]
fn fp8_body(codes: &[u8], dtype: Dtype, out: &mut [u8]) {
    let mut values = [0.0; 128];
    for (codes, out) in codes.chunks(128).zip(out.chunks_mut(128 * dtype.size())) {
        for (x, &code) in values.iter_mut().zip(codes) {
            *x = decode_e4m3(code);
        }
        halves::store_body(dtype, &values[..codes.len()], out);
    }
}

versions! {
    fn affine(f: Format, packed: &[u8], scales: &[u8], biases: &[u8], dtype: Dtype, out_dtype: Dtype, out: &mut [u8])
        = affine_body;
}

#[inline(always)]
fn affine_body(f: Format, packed: &[u8], scales: &[u8], biases: &[u8], dtype: Dtype, out_dtype: Dtype, out: &mut [u8]) {
    let (group, size) = (f.group(), dtype.size());
    let (mut values, mut codes) = ([0.0; 128], [0; 128]);
    for (i, out) in out.chunks_mut(group * out_dtype.size()).enumerate() {
        let (values, codes) = (&mut values[..group], &mut codes[..group]);
        unpack_any(f.bits(), &packed[i * f.row_bytes(group)..][..f.row_bytes(group)], codes);
        let scale = halves::load_one(dtype, &scales[i * size..]);
        let bias = halves::load_one(dtype, &biases[i * size..]);
        for (x, &code) in values.iter_mut().zip(&*codes) {
            *x = code as f32 * scale;
        }
        halves::round_body(dtype, values);
        for x in values.iter_mut() {
            *x += bias;
        }
        halves::round_body(dtype, values);
        halves::store_body(out_dtype, values, out);
    }
}

versions! {
    fn block(f: Format, packed: &[u8], scales: &[u8], global: Option<f32>, dtype: Dtype, out: &mut [u8]) = block_body;
}

#[inline(always)]
fn block_body(f: Format, packed: &[u8], scales: &[u8], global: Option<f32>, dtype: Dtype, out: &mut [u8]) {
    let group = f.group();
    let (mut values, mut codes) = ([0.0; 128], [0; 128]);
    for (i, out) in out.chunks_mut(group * dtype.size()).enumerate() {
        let (values, codes) = (&mut values[..group], &mut codes[..group]);
        unpack_any(f.bits(), &packed[i * f.row_bytes(group)..][..f.row_bytes(group)], codes);
        let scale = if f.mode() == Mode::Nvfp4 {
            halves::round_one(dtype, decode_e4m3(scales[i])) * global.map_or(1.0, |g| g / 2688.0)
        } else {
            halves::round_one(dtype, decode_e8m0(scales[i]))
        };
        if f.mode() == Mode::Mxfp8 {
            for (x, &code) in values.iter_mut().zip(&*codes) {
                *x = decode_e4m3(code) * scale;
            }
        } else {
            for (x, &code) in values.iter_mut().zip(&*codes) {
                *x = decode_e2m1(code) * scale;
            }
        }
        halves::store_body(dtype, values, out);
    }
}
