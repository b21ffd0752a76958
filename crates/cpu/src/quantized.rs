//! Quantization ops on tensors: finds the bytes and calls the kernels of [`crate::quant`].

use crate::isa::isa;
use crate::quant::{self, Rows, Source, Tail, Target, Weights};
use crate::tape::{Dense, contiguous};
use lapis_core::backend::Argument;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::{ConvertFp8, Dequantize, Format, Quantize, QuantizedMatmul, Rule};
use lapis_core::schedule::tape::Tape;
use smallvec::SmallVec;

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
struct Parts<'a> {
    packed: Dense<'a>,
    scales: Dense<'a>,
    biases: Option<Dense<'a>>,
    global: Option<f32>,
}

impl<'a> Parts<'a> {
    fn new(format: Format, inputs: &'a [Tensor]) -> Result<Parts<'a>> {
        let biases = if format.has_biases() { Some(contiguous(&inputs[2])?) } else { None };
        let global = if format.has_biases() { None } else { global_scale(inputs.get(2)) };
        Ok(Parts { packed: contiguous(&inputs[0])?, scales: contiguous(&inputs[1])?, biases, global })
    }

    fn biases(&self) -> &[u8] {
        self.biases.as_ref().map_or(&[], |b| b.contiguous_bytes())
    }

    /// Matrices that are packed here.
    fn stack(&self) -> usize {
        let shape = &self.packed.shape;
        shape[..shape.len() - 2].iter().product()
    }

    fn weights(&self, op: &QuantizedMatmul) -> Result<Weights<'_>> {
        let shape = &self.packed.shape;
        let (rows, cols) = (shape[shape.len() - 2], shape[shape.len() - 1] * 32 / op.format.bits());
        let (packed, scales) = (self.packed.contiguous_bytes(), self.scales.contiguous_bytes());
        let dtype = self.scales.dtype;
        let (format, global, stack) = (op.format, self.global, self.stack());
        Weights::new(op.name(), format, packed, scales, self.biases(), dtype, global, stack, rows, cols)
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
    let name = op.name();
    let x = contiguous(&inputs[0])?;
    let indices = inputs.len() - if op.gathered { 2 } else { 0 };
    let last = indices - usize::from(op.rounds_x == Some(true));
    let parts = Parts::new(op.format, &inputs[1..last])?;
    let global_x = if last < indices { global_scale(inputs.get(last)) } else { None };

    let w = parts.weights(op)?;
    let x_rows = rows(name, &x)?;
    let (dtype, how) = (out.dtype, quant::arithmetic());
    if !op.gathered {
        return match op.rounds_x {
            None => quant::qmm(isa(), &x_rows, &w, op.transpose, how, dtype, bytes_mut(out)),
            Some(_) => quant::qqmm(isa(), &x_rows, global_x, &w, dtype, bytes_mut(out)),
        };
    }
    let m = x.shape[x.shape.len() - 2];
    let batches = x.shape[..x.shape.len() - 2].iter().product();
    let lhs = positions(name, "lhs_indices", &inputs[indices], batches)?;
    let rhs = positions(name, "rhs_indices", &inputs[indices + 1], parts.stack())?;
    match op.rounds_x {
        None => quant::gather_qmm(isa(), &x_rows, m, &w, &lhs, &rhs, op.transpose, how, dtype, bytes_mut(out)),
        Some(_) => quant::gather_qqmm(isa(), &x_rows, m, global_x, &w, &lhs, &rhs, dtype, bytes_mut(out)),
    }
}

/// Row-major `x` as rows.
fn rows<'a>(op: &str, x: &'a Tensor) -> Result<Rows<'a>> {
    let k = x.shape[x.shape.len() - 1];
    Rows::new(op, x.contiguous_bytes(), x.dtype, x.size() / k.max(1), k, k)
}

/// Products of the same rows with several matrices: all whose format is the first one's at once.
pub(crate) fn matmul_together(calls: &mut [(&QuantizedMatmul, &[Tensor], &mut Tensor)]) -> Result<()> {
    let Some((first, inputs, _)) = calls.first() else { return Ok(()) };
    let (first, x) = (*first, contiguous(&inputs[0])?);
    let parts = calls.iter().map(|(op, inputs, _)| Parts::new(op.format, &inputs[1..]));
    let parts = parts.collect::<Result<SmallVec<[_; 4]>>>()?;
    let weights = calls.iter().zip(&parts).map(|((op, ..), p)| p.weights(op)).collect::<Result<SmallVec<[_; 4]>>>()?;
    let mut targets: SmallVec<[Target; 4]> = SmallVec::new();
    for ((op, inputs, out), w) in calls.iter_mut().zip(&weights) {
        if op.format == first.format {
            targets.push(Target { w, out: bytes_mut(out) });
        } else {
            matmul(op, inputs, out)?;
        }
    }
    quant::qmm_all(isa(), &rows(first.name(), &x)?, &mut targets, first.transpose, quant::arithmetic(), x.dtype)
}

/// A fused group of products of the same rows: many, in one format, and half precision throughout. `None` where it is anything else.
pub(crate) fn matmul_through(
    products: &[(&QuantizedMatmul, &[Tensor])],
    tape: &Tape,
    arguments: &[Argument],
    consts: &[u64],
    output: &mut Tensor,
) -> Option<Result<()>> {
    let (&(first, inputs), dtype) = (products.first()?, output.dtype);
    let plain = |t: &Tensor| t.is_row_contiguous() && t.shape == output.shape;
    let fits = arguments.iter().all(|argument| match argument {
        Argument::Call(_) => true,
        Argument::Tensor(t) => plain(t),
    });
    let halves = dtype.is_half() && tape.dtype() == dtype && tape.inputs.iter().all(|&of| of == dtype);
    let alike = products.iter().all(|(op, _)| op.format == first.format);
    let rows_of_x = inputs[0].size() / inputs[0].shape.last()?.max(&1);
    if !(fits && halves && alike && output.is_row_contiguous() && rows_of_x > quant::THIN_ROWS) {
        return None;
    }
    let from = arguments.iter().map(|argument| match *argument {
        Argument::Call(i) => Source::Product(i),
        Argument::Tensor(t) => Source::Values(t.contiguous_bytes()),
    });
    let tail = Tail::new(tape, consts, from.collect());
    Some((|| {
        let x = contiguous(&inputs[0])?;
        let parts = products.iter().map(|(op, inputs)| Parts::new(op.format, &inputs[1..]));
        let parts = parts.collect::<Result<SmallVec<[_; 4]>>>()?;
        let weights = products.iter().zip(&parts).map(|((op, _), p)| p.weights(op));
        let weights = weights.collect::<Result<SmallVec<[_; 4]>>>()?;
        let rows = rows(first.name(), &x)?;
        quant::qmm_through(
            isa(),
            &rows,
            &weights,
            first.transpose,
            quant::arithmetic(),
            &tail,
            dtype,
            bytes_mut(output),
        )
    })())
}

/// Flat positions (int64) in `0..count`.
fn positions(op: &str, what: &str, t: &Tensor, count: usize) -> Result<Vec<u32>> {
    let t = contiguous(t)?;
    let check = |&i: &i64| {
        u32::try_from(i)
            .ok()
            .filter(|&p| (p as usize) < count)
            .ok_or_else(|| Error::index(format!("[{op}] position {i} of {what} is outside a batch of {count}")))
    };
    bytemuck::cast_slice(t.contiguous_bytes()).iter().map(check).collect()
}
