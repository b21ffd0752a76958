//! Products in which both sides are quantized: activations on the fly, in the format of the weights.
//!
//! The result is the product of the two decoded operands. In nvfp4 the sum of each group is an exact integer, so only
//! the sum over groups rounds; in mxfp8 both sides are decoded to f32.

use super::activations::{Rows, from_fp4};
use super::codes::decode_e4m3;
use super::dequantize::dequantize;
use super::format::{Mode, check_global, check_len};
use super::gather::Grouped;
use super::qmm::{Floats, Left, Target, check_product, multiply};
use super::quantize::quantize;
use super::tasks::{Job, Pair};
use super::weights::Weights;
use crate::isa::Isa;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};

/// `quantized(x) @ w.T` with `w` of mode nvfp4 or mxfp8, `[n, k]`, into contiguous `out`, `[rows of x, n]`.
///
/// `global_scale` is that of `x` (nvfp4 only). Unpacked weights are to be quantized first.
///
/// # Errors
/// Sizes or dtypes that do not fit, another mode, a `global_scale` outside nvfp4.
pub fn qqmm(
    isa: Isa,
    x: &Rows,
    global_scale: Option<f32>,
    w: &Weights,
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let op = "qqmm";
    if w.stack != 1 {
        return Err(Error::shape(format!("[{op}] one matrix is taken, not a stack of {}", w.stack)));
    }
    let n = check_product(op, x, w, true, out_dtype)?;
    check_len(op, "the result", out.len(), x.rows() * n * out_dtype.size())?;
    let pairs: Vec<Pair> = (0..x.rows()).map(|r| Pair { x: r, out: r }).collect();
    let x = quantized(op, isa, x, global_scale, w)?;
    multiply(isa, x, &mut [Target { w, out }], true, &[Job { matrix: 0, pairs: &pairs }], None, out_dtype);
    Ok(())
}

/// [`qqmm`] of matrix `lhs[i]` of `x` (`m` rows each) with matrix `rhs[i]` of `w`, to rows `i * m..` of `out`.
///
/// # Errors
/// As [`qqmm`], and an index outside its stack.
pub fn gather_qqmm(
    isa: Isa,
    x: &Rows,
    m: usize,
    global_scale: Option<f32>,
    w: &Weights,
    lhs: &[u32],
    rhs: &[u32],
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let op = "gather_qqmm";
    let n = check_product(op, x, w, true, out_dtype)?;
    let grouped = Grouped::new(op, x.rows(), m, w.stack, lhs, rhs)?;
    check_len(op, "the result", out.len(), lhs.len() * m * n * out_dtype.size())?;
    let x = quantized(op, isa, x, global_scale, w)?;
    multiply(isa, x, &mut [Target { w, out }], true, &grouped.jobs(), None, out_dtype);
    Ok(())
}

/// All rows of `x` in the format of `w`, ready to be multiplied.
fn quantized(op: &str, isa: Isa, x: &Rows, global_scale: Option<f32>, w: &Weights) -> Result<Left> {
    let (format, cols) = (w.format, x.cols());
    if !matches!(format.mode(), Mode::Nvfp4 | Mode::Mxfp8) {
        let name = format.mode().name();
        return Err(Error::value(format!("[{op}] mode {name}; allowed: nvfp4, mxfp8")));
    }
    check_global(op, format, global_scale)?;
    let bytes: Vec<u8> = (0..x.rows()).flat_map(|r| x.row(r)).copied().collect();
    let count = x.rows() * cols;
    let mut packed = vec![0; format.row_bytes(count)];
    let mut scales = vec![0; count / format.group()];
    quantize(isa, format, x.dtype(), &bytes, cols, global_scale, &mut packed, &mut scales, &mut [])?;
    if format.mode() == Mode::Nvfp4 {
        let factor = global_scale.map_or(1.0, |g| g / 2688.0);
        let scales: Vec<f32> = scales.iter().map(|&s| decode_e4m3(s) * factor).collect();
        return Ok(Left::Bytes(from_fp4(isa, &packed, &scales, x.rows(), cols, format.group())));
    }
    let mut values = vec![0f32; count];
    let out = bytemuck::cast_slice_mut(&mut values);
    dequantize(isa, format, &packed, &scales, &[], x.dtype(), cols, None, Dtype::Float32, out)?;
    Ok(Left::Floats(Floats::owned(values, cols)))
}
