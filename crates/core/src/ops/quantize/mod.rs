//! Quantized weights: codes with a scale a group, packed as MLX packs them, and products with them.
//!
//! A matrix of codes travels as [`Quantized`]: packed words, scales, and what the mode adds. Groups run along the last
//! axis. Formats and roundings are MLX's, bit for bit.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::{Rule, astype, broadcast_to, expect, reshape_to};
use crate::shape::{self, Shape, show};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

mod format;
mod transform;

pub use format::{Format, Mode};

/// A packed matrix, or a stack of them along leading axes: what [`quantize`] gives and products take.
#[derive(Clone, Debug)]
pub struct Quantized {
    /// Codes: uint32, last axis `K * bits / 32`.
    pub packed: Array,
    /// Scales: last axis `K / group`; the weights' dtype (affine) or uint8.
    pub scales: Array,
    /// Affine biases, like the scales.
    pub biases: Option<Array>,
    /// nvfp4's scale of the whole tensor: float32, one element.
    pub global_scale: Option<Array>,
    /// Mode, width and group.
    pub format: Format,
}

impl Quantized {
    /// Parts that came from a file or another library, checked against each other.
    ///
    /// # Errors
    /// Dtypes and shapes that do not fit the format; missing or superfluous biases or global scale.
    pub fn new(
        packed: Array,
        scales: Array,
        biases: Option<Array>,
        global_scale: Option<Array>,
        format: Format,
    ) -> Result<Quantized> {
        let q = Quantized { packed, scales, biases, global_scale, format };
        q.check("quantized")?;
        Ok(q)
    }

    /// Elements of an unpacked row.
    pub fn columns(&self) -> usize {
        self.packed.shape().last().map_or(0, |n| n * 32 / self.format.bits)
    }

    /// The shape of the unpacked weights.
    pub fn shape(&self) -> Shape {
        let mut shape: Shape = self.packed.shape().into();
        if let Some(last) = shape.last_mut() {
            *last = self.columns();
        }
        shape
    }

    fn check(&self, op: &str) -> Result<()> {
        let Format { mode, bits, group } = self.format;
        let name = mode.name();
        if self.packed.dtype() != Dtype::Uint32 {
            return Err(Error::dtype(format!("[{op}] packed weights are uint32, not {}", self.packed.dtype())));
        }
        let words = self.packed.shape().last().copied().unwrap_or(0);
        if self.packed.ndim() < 2 || !words.saturating_mul(32).is_multiple_of(bits) {
            let s = show(self.packed.shape());
            return Err(Error::shape(format!("[{op}] packed weights of shape {s} with {bits} bits")));
        }
        let shape = self.shape();
        self.format.check_axis(op, &shape)?;
        let mut want = shape.clone();
        if let Some(last) = want.last_mut() {
            *last /= group;
        }
        let fits = |what: &str, a: &Array| -> Result<()> {
            if a.shape() != want.as_slice() {
                let (have, want) = (show(a.shape()), show(&want));
                return Err(Error::shape(format!(
                    "[{op}] {what} have shape {have}, the packed weights call for {want}"
                )));
            }
            let right = if mode == Mode::Affine {
                a.dtype().is_floating() && a.dtype() != Dtype::Float64
            } else {
                a.dtype() == Dtype::Uint8
            };
            if !right {
                return Err(Error::dtype(format!("[{op}] {what} of mode {name} cannot be {}", a.dtype())));
            }
            Ok(())
        };
        fits("scales", &self.scales)?;
        match (&self.biases, self.format.has_biases()) {
            (Some(b), true) => fits("biases", b)?,
            (None, false) => {}
            (None, true) => return Err(Error::value(format!("[{op}] mode {name} needs biases"))),
            (Some(_), false) => return Err(Error::value(format!("[{op}] mode {name} has no biases"))),
        }
        if let Some(g) = &self.global_scale
            && (mode != Mode::Nvfp4 || g.size() != 1)
        {
            return Err(Error::value(format!(
                "[{op}] a global_scale is one number and goes with nvfp4 only, not {name}"
            )));
        }
        Ok(())
    }

    /// The parts that are inputs of an op, checked.
    fn of_inputs(op: &str, inputs: &[Array], format: Format) -> Result<Quantized> {
        expect::at_least(op, inputs, 2)?;
        let (biases, global) = if format.has_biases() { (inputs.get(2), None) } else { (None, inputs.get(2)) };
        expect::count(op, inputs, 2 + usize::from(biases.is_some() || global.is_some()))?;
        if let Some(g) = global {
            expect::dtype(op, g, g.dtype() == Dtype::Float32)?;
        }
        Quantized::new(inputs[0].clone(), inputs[1].clone(), biases.cloned(), global.cloned(), format)
    }

    /// Packed words, scales, biases, global scale: as inputs of an op.
    fn push_to(&self, inputs: &mut Inputs) -> Result<()> {
        inputs.extend([self.packed.clone(), self.scales.clone()]);
        inputs.extend(self.biases.clone());
        if let Some(g) = &self.global_scale {
            inputs.push(astype(g, Dtype::Float32)?);
        }
        Ok(())
    }

    fn scale_dtype(&self) -> Dtype {
        match &self.biases {
            Some(b) => self.scales.dtype().promote(b.dtype()),
            None => Dtype::Bfloat16,
        }
    }
}

// ------------------------------------------------------------------ quantize, dequantize

/// Weights to codes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantize {
    /// Mode, width and group.
    pub format: Format,
}

impl Rule for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::at_least("quantize", inputs, 1)?;
        let w = &inputs[0];
        check_floating("quantize", w)?;
        if let Some(g) = inputs.get(1) {
            expect::count("quantize", inputs, 2)?;
            expect::dtype("quantize", g, g.dtype() == Dtype::Float32)?;
            if self.format.mode != Mode::Nvfp4 || g.size() != 1 {
                let name = self.format.mode.name();
                return Err(Error::value(format!(
                    "[quantize] a global_scale is one number and goes with nvfp4 only, not {name}"
                )));
            }
        }
        self.format.check_axis("quantize", w.shape())?;
        let lead: Shape = w.shape()[..w.ndim() - 1].into();
        let k = w.shape()[w.ndim() - 1];
        let with = |n: usize, dtype| {
            let mut shape = lead.clone();
            shape.push(n);
            Aval::new(shape, dtype)
        };
        let scale = if self.format.has_biases() { w.dtype() } else { Dtype::Uint8 };
        let mut outs: Avals =
            smallvec![with(k * self.format.bits / 32, Dtype::Uint32), with(k / self.format.group, scale)];
        if self.format.has_biases() {
            outs.push(with(k / self.format.group, scale));
        }
        Ok(outs)
    }
}

fn check_floating(op: &str, a: &Array) -> Result<()> {
    if a.dtype().is_floating() && a.dtype() != Dtype::Float64 {
        return Ok(());
    }
    Err(Error::dtype(format!("[{op}] {} is not float32, float16 or bfloat16", a.dtype())))
}

/// Quantizes `w` (at least 2-D, floating; the last axis a multiple of the group) (`mx.quantize`). `global_scale` is
/// nvfp4's: the largest magnitude of the tensor.
///
/// # Errors
/// A dtype that is not floating; an axis that does not divide; a global scale outside nvfp4.
pub fn quantize(w: &Array, format: Format, global_scale: Option<&Array>) -> Result<Quantized> {
    let mut inputs: Inputs = smallvec![w.clone()];
    if let Some(g) = global_scale {
        inputs.push(astype(g, Dtype::Float32)?);
    }
    let outs = Array::apply(Quantize { format }, inputs)?;
    let global_scale = global_scale.cloned();
    Ok(Quantized {
        packed: outs[0].clone(),
        scales: outs[1].clone(),
        biases: outs.get(2).cloned(),
        global_scale,
        format,
    })
}

/// Codes to weights.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dequantize {
    /// Mode, width and group.
    pub format: Format,
    /// Element type of the result.
    pub dtype: Dtype,
}

impl Rule for Dequantize {
    fn name(&self) -> &'static str {
        "dequantize"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let q = Quantized::of_inputs("dequantize", inputs, self.format)?;
        let fits = match &q.biases {
            Some(b) => self.dtype == b.dtype() && self.dtype == q.scales.dtype(),
            None => self.dtype.is_floating() && self.dtype != Dtype::Float64,
        };
        expect::dtype("dequantize", &q.scales, fits)?;
        Ok(smallvec![Aval::new(q.shape(), self.dtype)])
    }
}

/// The weights that the codes stand for (`mx.dequantize`): in `dtype`, by default that of the affine scales, bfloat16
/// for the block modes.
///
/// # Errors
/// Parts that do not fit together; a dtype that is not floating.
pub fn dequantize(q: &Quantized, dtype: Option<Dtype>) -> Result<Array> {
    q.check("dequantize")?;
    let natural = q.scale_dtype();
    let dtype = dtype.unwrap_or(natural);
    if !dtype.is_floating() {
        return Err(Error::dtype(format!("[dequantize] {dtype} is not a floating type")));
    }
    // Affine codes are decoded in the dtype of the scales and then cast; block codes directly.
    let direct = if q.format.has_biases() || dtype == Dtype::Float64 { natural } else { dtype };
    let mut q = q.clone();
    if let Some(b) = &q.biases {
        q.biases = Some(astype(b, natural)?);
        q.scales = astype(&q.scales, natural)?;
    }
    let direct = if dtype == Dtype::Float64 && !q.format.has_biases() { Dtype::Float32 } else { direct };
    let mut inputs = Inputs::new();
    q.push_to(&mut inputs)?;
    astype(&Array::apply1(Dequantize { format: q.format, dtype: direct }, inputs)?, dtype)
}

// ------------------------------------------------------------------ products

/// Rows times a packed matrix, or gathered pairs of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizedMatmul {
    /// Mode, width and group.
    pub format: Format,
    /// `x @ w.T` (w is `[N, K]`) or `x @ w` (w is `[K, N]`).
    pub transpose: bool,
    /// The last two inputs are the flat positions (int64) of the matrices of x and w to pair.
    pub gathered: bool,
    /// x is rounded to the format of w first; with `Some(true)` its global scale (float32) follows the parts of w.
    pub rounds_x: Option<bool>,
}

impl Rule for QuantizedMatmul {
    fn name(&self) -> &'static str {
        match (self.rounds_x, self.gathered) {
            (None, false) => "quantized_matmul",
            (None, true) => "gather_qmm",
            (Some(_), false) => "qqmm",
            (Some(_), true) => "gather_qqmm",
        }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let op = self.name();
        let (globals, indices) = (usize::from(self.rounds_x == Some(true)), 2 * usize::from(self.gathered));
        expect::at_least(op, inputs, 3 + globals + indices)?;
        let (x, rest) = (&inputs[0], &inputs[1..]);
        let (rest, indices) = rest.split_at(rest.len() - indices);
        let (parts, global) = rest.split_at(rest.len() - globals);
        let w = Quantized::of_inputs(op, parts, self.format)?;
        check_floating(op, x)?;
        expect::fit(op, x.ndim() > usize::from(self.gathered), inputs)?;
        expect::fit(op, self.gathered || w.packed.ndim() == 2, inputs)?;
        expect::dtype(op, x, w.biases.is_none() || x.dtype().promote(w.scale_dtype()) == x.dtype())?;
        if self.rounds_x.is_some() {
            expect_rounding(op, self.format.mode)?;
            expect::fit(op, self.transpose, inputs)?;
        }
        for g in global {
            let one = g.size() == 1 && self.format.mode == Mode::Nvfp4;
            expect::dtype(op, g, g.dtype() == Dtype::Float32 && one)?;
        }
        for i in indices {
            expect::dtype(op, i, i.dtype() == Dtype::Int64)?;
            expect::fit(op, i.shape() == indices[0].shape(), inputs)?;
        }
        let n = output_columns(op, self.format, x, &w.packed, self.transpose)?;
        let mut shape: Shape = if self.gathered {
            let mut shape: Shape = inputs[inputs.len() - 1].shape().into();
            shape.push(x.shape()[x.ndim() - 2]);
            shape
        } else {
            x.shape()[..x.ndim() - 1].into()
        };
        shape.push(n);
        Ok(smallvec![Aval::new(shape, x.dtype())])
    }
}

fn expect_rounding(op: &str, mode: Mode) -> Result<()> {
    if matches!(mode, Mode::Nvfp4 | Mode::Mxfp8) {
        return Ok(());
    }
    Err(Error::value(format!("[{op}] mode {}; allowed: nvfp4, mxfp8", mode.name())))
}

fn output_columns(op: &str, format: Format, x: &Array, packed: &Array, transpose: bool) -> Result<usize> {
    let s = packed.shape();
    let (rows, cols) = (s[s.len() - 2], s[s.len() - 1] * 32 / format.bits);
    let (k, n) = if transpose { (cols, rows) } else { (rows, cols) };
    if x.shape().last() != Some(&k) {
        let (x, w) = (show(x.shape()), format!("({rows},{cols})"));
        let t = if transpose { " transposed" } else { "" };
        return Err(Error::shape(format!("[{op}] x of shape {x} does not fit weights of shape {w}{t}")));
    }
    Ok(n)
}

/// The dtype of a product, and x in it.
fn in_product_dtype(op: &str, x: &Array, w: &Quantized) -> Result<Array> {
    check_floating(op, x)?;
    let dtype = if w.format.has_biases() { x.dtype().promote(w.scale_dtype()) } else { x.dtype() };
    astype(x, dtype)
}

/// `x @ w.T` (`transpose`, w is `[N, K]`) or `x @ w` (w is `[K, N]`) with packed weights (`mx.quantized_matmul`). All
/// axes but the last two broadcast. The result has the dtype of x promoted with affine scales.
///
/// Half-precision x may be rounded to 8 bits a group on the way; float32 x is multiplied exactly.
///
/// # Errors
/// Shapes that do not fit; dtypes that are not floating; parts of `w` that do not fit together.
pub fn quantized_matmul(x: &Array, w: &Quantized, transpose: bool) -> Result<Array> {
    let op = "quantized_matmul";
    w.check(op)?;
    let x = in_product_dtype(op, x, w)?;
    if x.ndim() == 0 {
        return Err(Error::shape(format!("[{op}] x is 0-d")));
    }
    if w.packed.ndim() == 2 {
        let mut inputs: Inputs = smallvec![x];
        w.push_to(&mut inputs)?;
        return Array::apply1(QuantizedMatmul { format: w.format, transpose, gathered: false, rounds_x: None }, inputs);
    }
    // A stack of matrices: pair each matrix of x with its own.
    let vector = x.ndim() == 1;
    let x = if vector { super::expand_dims(&x, [0])? } else { x };
    let batch = shape::broadcast(op, &x.shape()[..x.ndim() - 2], &w.packed.shape()[..w.packed.ndim() - 2])?;
    let positions = |shape: &[usize]| -> Result<Array> {
        let n = shape::elements(op, shape)?;
        broadcast_to(&reshape_to(&super::arange(0, n, 1, Some(Dtype::Uint32))?, shape.into())?, &batch)
    };
    let lhs = positions(&x.shape()[..x.ndim() - 2])?;
    let rhs = positions(&w.packed.shape()[..w.packed.ndim() - 2])?;
    let out = gather_qmm(&x, w, Some(&lhs), Some(&rhs), transpose)?;
    if vector { super::squeeze(&out, [-2]) } else { Ok(out) }
}

/// Pairs of matrices of `x` and of the stack `w`, picked by flat positions along their leading axes
/// (`mx.gather_qmm`). A missing list means every matrix in order. The result has the shape of the broadcast indices
/// followed by `(M, N)`.
///
/// # Errors
/// As [`quantized_matmul`]; indices that are not integers; at evaluation, positions out of range.
pub fn gather_qmm(
    x: &Array,
    w: &Quantized,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    transpose: bool,
) -> Result<Array> {
    let op = "gather_qmm";
    w.check(op)?;
    let x = in_product_dtype(op, x, w)?;
    let (lhs, rhs) = index_pair(op, &x, &w.packed, lhs_indices, rhs_indices)?;
    let mut inputs: Inputs = smallvec![x];
    w.push_to(&mut inputs)?;
    inputs.extend([lhs, rhs]);
    Array::apply1(QuantizedMatmul { format: w.format, transpose, gathered: true, rounds_x: None }, inputs)
}

/// `x @ w.T` with x rounded on the fly to the format of w, nvfp4 or mxfp8 (`mx.qqmm`; quantize a plain w first).
/// `global_scale_x` is nvfp4's, for x. The result has the dtype of x.
///
/// # Errors
/// Another mode, a stack of matrices in `w`; else as [`quantized_matmul`].
pub fn qqmm(x: &Array, w: &Quantized, global_scale_x: Option<&Array>) -> Result<Array> {
    if w.packed.ndim() != 2 {
        let s = show(w.packed.shape());
        return Err(Error::shape(format!("[qqmm] packed weights of shape {s}: one matrix is taken; see gather_qqmm")));
    }
    let inputs = rounded_inputs("qqmm", x, w, global_scale_x)?;
    let rounds_x = Some(global_scale_x.is_some());
    Array::apply1(QuantizedMatmul { format: w.format, transpose: true, gathered: false, rounds_x }, inputs)
}

/// [`qqmm`] of pairs of matrices, picked as by [`gather_qmm`] (`mx.gather_qqmm`).
///
/// # Errors
/// As [`qqmm`] and [`gather_qmm`].
pub fn gather_qqmm(
    x: &Array,
    w: &Quantized,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    global_scale_x: Option<&Array>,
) -> Result<Array> {
    let op = "gather_qqmm";
    let mut inputs = rounded_inputs(op, x, w, global_scale_x)?;
    let (lhs, rhs) = index_pair(op, x, &w.packed, lhs_indices, rhs_indices)?;
    inputs.extend([lhs, rhs]);
    let rounds_x = Some(global_scale_x.is_some());
    Array::apply1(QuantizedMatmul { format: w.format, transpose: true, gathered: true, rounds_x }, inputs)
}

fn rounded_inputs(op: &str, x: &Array, w: &Quantized, global_scale_x: Option<&Array>) -> Result<Inputs> {
    w.check(op)?;
    check_floating(op, x)?;
    let mode = w.format.mode;
    expect_rounding(op, mode)?;
    if x.ndim() == 0 {
        return Err(Error::shape(format!("[{op}] x is 0-d")));
    }
    let mut inputs: Inputs = smallvec![x.clone()];
    w.push_to(&mut inputs)?;
    if let Some(g) = global_scale_x {
        if mode != Mode::Nvfp4 || g.size() != 1 {
            return Err(Error::value(format!("[{op}] a global scale is one number and goes with nvfp4 only")));
        }
        inputs.push(astype(g, Dtype::Float32)?);
    }
    Ok(inputs)
}

/// Index lists of a gathered product, broadcast together, as uint32.
pub(crate) fn index_pair(
    op: &str,
    x: &Array,
    w: &Array,
    lhs: Option<&Array>,
    rhs: Option<&Array>,
) -> Result<(Array, Array)> {
    for (what, a) in [("x", x), ("w", w)] {
        if a.ndim() < 2 {
            let s = show(a.shape());
            return Err(Error::shape(format!("[{op}] {what} of shape {s} is not a matrix or a stack of matrices")));
        }
    }
    let list = |a: &Array, given: Option<&Array>| -> Result<Array> {
        let lead: Shape = a.shape()[..a.ndim() - 2].into();
        let count = shape::elements(op, &lead)?;
        match given {
            Some(i) if i.dtype().is_integer() => Ok(i.clone()),
            Some(i) => Err(Error::dtype(format!("[{op}] indices are integers, not {}", i.dtype()))),
            None => reshape_to(&super::arange(0, count, 1, Some(Dtype::Uint32))?, lead),
        }
    };
    let (lhs, rhs) = (list(x, lhs)?, list(w, rhs)?);
    let shape = shape::broadcast(op, lhs.shape(), rhs.shape())?;
    // Signed positions stay signed, so that a negative one is an error at evaluation and not a huge number.
    let index = |a: &Array| broadcast_to(&astype(a, Dtype::Int64)?, &shape);
    Ok((index(&lhs)?, index(&rhs)?))
}

/// fp8 (E4M3) codes of `x`, uint8 (`mx.to_fp8`): nearest, ties to even; 448 and beyond, infinities and NaN saturate.
///
/// # Errors
/// A dtype that is not floating.
pub fn to_fp8(x: &Array) -> Result<Array> {
    check_floating("to_fp8", x)?;
    Array::apply1(ConvertFp8 { to: Dtype::Uint8 }, smallvec![x.clone()])
}

/// The numbers that fp8 (E4M3) codes stand for (`mx.from_fp8`).
///
/// # Errors
/// Codes that are not uint8; a dtype that is not floating.
pub fn from_fp8(codes: &Array, dtype: Dtype) -> Result<Array> {
    if codes.dtype() != Dtype::Uint8 || !dtype.is_floating() {
        let d = codes.dtype();
        return Err(Error::dtype(format!("[from_fp8] takes uint8 and gives a floating type, not {d} and {dtype}")));
    }
    let near = if dtype == Dtype::Float64 { Dtype::Float32 } else { dtype };
    astype(&Array::apply1(ConvertFp8 { to: near }, smallvec![codes.clone()])?, dtype)
}

/// Between fp8 codes and numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertFp8 {
    /// uint8: encode; else decode to this.
    pub to: Dtype,
}

impl Rule for ConvertFp8 {
    fn name(&self) -> &'static str {
        if self.to == Dtype::Uint8 { "to_fp8" } else { "from_fp8" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let shape = expect::only(self.name(), inputs)?;
        let narrow = |d: Dtype| d.is_floating() && d != Dtype::Float64;
        let from = inputs[0].dtype();
        let fits = if self.to == Dtype::Uint8 { narrow(from) } else { narrow(self.to) && from == Dtype::Uint8 };
        expect::dtype(self.name(), &inputs[0], fits)?;
        Ok(smallvec![Aval::new(shape, self.to)])
    }
}
