//! Quantization ops on tensors: finds the bytes and calls the kernels of [`crate::quant`].

use crate::isa::isa;
use crate::quant::{self, Arithmetic, Rows, Weights};
use crate::tape::contiguous;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::{ConvertFp8, Dequantize, Format, Quantize, QuantizedMatmul};

/// The bytes of a row-major output.
fn bytes_mut(t: &mut Tensor) -> &mut [u8] {
    // SAFETY: an output belongs to its kernel alone and is row-major.
    unsafe { std::slice::from_raw_parts_mut(t.ptr(), t.nbytes()) }
}

fn global_scale(t: Option<&Tensor>) -> Option<f32> {
    // SAFETY: the op checked that it is one float32.
    t.map(|t| unsafe { t.ptr().cast::<f32>().read() })
}

/// Weights to codes.
pub(crate) fn quantize(op: &Quantize, inputs: &[Tensor], outputs: &mut [Tensor]) -> Result<()> {
    let w = contiguous(&inputs[0])?;
    let k = w.shape[w.shape.len() - 1];
    let global = global_scale(inputs.get(1));
    let (packed, rest) = outputs.split_at_mut(1);
    let (scales, biases) = rest.split_at_mut(1);
    let biases = biases.first_mut().map_or(&mut [][..], bytes_mut);
    let (packed, scales) = (bytes_mut(&mut packed[0]), bytes_mut(&mut scales[0]));
    quant::quantize(isa(), op.format, w.dtype, w.contiguous_bytes(), k, global, packed, scales, biases)
}

/// Packed words, scales and biases, row-major.
struct Parts {
    packed: Tensor,
    scales: Tensor,
    biases: Option<Tensor>,
    global: Option<f32>,
}

impl Parts {
    fn new(format: Format, inputs: &[Tensor]) -> Result<Parts> {
        let biases = if format.has_biases() { Some(contiguous(&inputs[2])?) } else { None };
        let global = if format.has_biases() { None } else { global_scale(inputs.get(2)) };
        Ok(Parts { packed: contiguous(&inputs[0])?, scales: contiguous(&inputs[1])?, biases, global })
    }

    fn biases(&self) -> &[u8] {
        self.biases.as_ref().map_or(&[], |b| b.contiguous_bytes())
    }
}

/// Codes to weights.
pub(crate) fn dequantize(op: &Dequantize, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let parts = Parts::new(op.format, inputs)?;
    let k = out.shape[out.shape.len() - 1];
    quant::dequantize(
        isa(),
        op.format,
        parts.packed.contiguous_bytes(),
        parts.scales.contiguous_bytes(),
        parts.biases(),
        parts.scales.dtype,
        k,
        parts.global,
        out.dtype,
        bytes_mut(out),
    )
}

/// Between fp8 codes and numbers.
pub(crate) fn convert_fp8(op: &ConvertFp8, input: &Tensor, out: &mut Tensor) -> Result<()> {
    let x = contiguous(input)?;
    if op.to == Dtype::Uint8 {
        quant::to_fp8(isa(), x.dtype, x.contiguous_bytes(), bytes_mut(out))
    } else {
        quant::from_fp8(isa(), x.contiguous_bytes(), out.dtype, bytes_mut(out))
    }
}

/// Products with packed weights.
pub(crate) fn matmul(op: &QuantizedMatmul, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    let name = if op.gathered { "gather_qmm" } else { "quantized_matmul" };
    let x = contiguous(&inputs[0])?;
    let last = inputs.len() - if op.gathered { 2 } else { 0 };
    let parts = Parts::new(op.format, &inputs[1..last])?;
    let shape = &parts.packed.shape;
    let (rows, cols) = (shape[shape.len() - 2], shape[shape.len() - 1] * 32 / op.format.bits());
    let stack: usize = shape[..shape.len() - 2].iter().product();
    let k = x.shape[x.shape.len() - 1];
    let dtype = out.dtype;
    let weights = |from: usize, count: usize| {
        let slice = |bytes: &[u8]| {
            let one = bytes.len() / stack.max(1);
            (from * one, (from + count) * one)
        };
        let (p, s, b) = (parts.packed.contiguous_bytes(), parts.scales.contiguous_bytes(), parts.biases());
        let ((p0, p1), (s0, s1), (b0, b1)) = (slice(p), slice(s), slice(b));
        let (p, s, b) = (&p[p0..p1], &s[s0..s1], &b[b0..b1]);
        Weights::new(name, op.format, p, s, b, parts.scales.dtype, parts.global, count, rows, cols)
    };
    if !op.gathered {
        let m = x.size() / k.max(1);
        let x = Rows::new(name, x.contiguous_bytes(), x.dtype, m, k, k)?;
        return quant::qmm(isa(), &x, &weights(0, stack)?, op.transpose, Arithmetic::Fast, dtype, bytes_mut(out));
    }
    let m = x.shape[x.shape.len() - 2];
    let batches = x.shape[..x.shape.len() - 2].iter().product();
    let lhs = positions(name, "lhs_indices", &inputs[last], batches)?;
    let rhs = positions(name, "rhs_indices", &inputs[last + 1], stack)?;
    let (in_bytes, out_bytes) = (m * k * x.dtype.size(), out.nbytes() / lhs.len().max(1));
    let bytes = bytes_mut(out);
    for (i, (&l, &r)) in lhs.iter().zip(&rhs).enumerate() {
        let rows = &x.contiguous_bytes()[l * in_bytes..(l + 1) * in_bytes];
        let rows = Rows::new(name, rows, x.dtype, m, k, k)?;
        let to = &mut bytes[i * out_bytes..(i + 1) * out_bytes];
        quant::qmm(isa(), &rows, &weights(r, 1)?, op.transpose, Arithmetic::Fast, dtype, to)?;
    }
    Ok(())
}

/// Flat positions (int64) in `0..count`.
pub(crate) fn positions(op: &str, what: &str, t: &Tensor, count: usize) -> Result<Vec<usize>> {
    let t = contiguous(t)?;
    let check = |bytes: &[u8]| {
        let i = i64::from_le_bytes(bytes.try_into().unwrap_or_default());
        usize::try_from(i)
            .ok()
            .filter(|&i| i < count)
            .ok_or_else(|| Error::index(format!("[{op}] position {i} of {what} is outside a batch of {count}")))
    };
    t.contiguous_bytes().chunks_exact(8).map(check).collect()
}
