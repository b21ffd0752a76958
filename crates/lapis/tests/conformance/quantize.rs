//! Quantization and products with packed weights.

use crate::call::{Call, Outcome, one};
use lapis::ops::{self, Format, Mode, Quantized};
use lapis::{Array, Dtype, Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    if c.op == "quantize" {
        return Some(format(c).and_then(|f| ops::quantize(&c.array(0), f, c.maybe(1).as_ref())).map(parts));
    }
    one(product(c)?)
}

fn parts(q: Quantized) -> Vec<Array> {
    [Some(q.packed), Some(q.scales), q.biases].into_iter().flatten().collect()
}

fn format(c: &Call) -> Result<Format> {
    let count = |name: &str| {
        let n = c.attrs.int(name).map(usize::try_from).transpose();
        n.map_err(|_| Error::value(format!("[quantize] {name} is negative")))
    };
    let default = if c.op.ends_with("qqmm") { "nvfp4" } else { "affine" };
    Format::new(Mode::from_name(c.attrs.text("mode").unwrap_or(default))?, count("bits")?, count("group_size")?)
}

/// Packed weights from operand `i` on: codes, scales, biases.
fn packed(c: &Call, i: usize, global_scale: Option<Array>) -> Result<Quantized> {
    Quantized::new(c.array(i), c.array(i + 1), c.maybe(i + 2), global_scale, format(c)?)
}

/// The weights of `qqmm`: operand 1, packed when operand 2 has their scales.
fn packed_or_plain(c: &Call) -> Result<Quantized> {
    match c.maybe(2) {
        Some(scales) => Quantized::new(c.array(1), scales, None, None, format(c)?),
        None => ops::quantize(&c.array(1), format(c)?, None),
    }
}

fn product(c: &Call) -> Option<Result<Array>> {
    let transpose = c.attrs.bool("transpose").unwrap_or(true);
    Some(match c.op {
        "dequantize" => packed(c, 0, c.maybe(3)).and_then(|q| ops::dequantize(&q, c.attrs.dtype("dtype"))),
        "quantized_matmul" => packed(c, 1, None).and_then(|w| ops::quantized_matmul(&c.array(0), &w, transpose)),
        // `sorted_indices` is a hint that nothing needs here.
        "gather_qmm" => packed(c, 1, None)
            .and_then(|w| ops::gather_qmm(&c.array(0), &w, c.maybe(4).as_ref(), c.maybe(5).as_ref(), transpose)),
        "qqmm" => packed_or_plain(c).and_then(|w| ops::qqmm(&c.array(0), &w, None)),
        "gather_qqmm" => packed_or_plain(c)
            .and_then(|w| ops::gather_qqmm(&c.array(0), &w, c.maybe(3).as_ref(), c.maybe(4).as_ref(), None)),
        "to_fp8" => ops::to_fp8(&c.array(0)),
        "from_fp8" => ops::from_fp8(&c.array(0), c.attrs.dtype("dtype").unwrap_or(Dtype::Bfloat16)),
        _ => return None,
    })
}
