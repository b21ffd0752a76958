//! Quantized weights under transforms. Codes are constants; what has derivatives are x, the affine scales and biases,
//! and nvfp4's scale of the tensor. A gradient of x is a quantized product again, the other way round; the rounding of
//! x in qqmm counts as the identity.

use super::{ConvertFp8, Dequantize, Format, Mode, Quantize, QuantizedMatmul};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::node::Inputs;
use crate::ops::scatter::Combine;
use crate::ops::{self, GatherMM, Op, astype, matmul, multiply, reshape_to};
use crate::shape::Shape;
use crate::transforms::decompose::{map_each, pull};
use crate::transforms::{Decompose, Grads, Lane, Site, Transform, behind};
use smallvec::{SmallVec, smallvec};

/// Where the factor of the whole tensor is among packed words, scales and what follows them.
fn global_at(format: Format, parts: usize) -> Option<usize> {
    (format.mode == Mode::Nvfp4 && parts == 3).then_some(2)
}

// ------------------------------------------------------------------ quantize

/// The affine scales and biases of `w`, as the kernel finds them.
fn edges(format: Format, w: &Array) -> Result<Vec<Array>> {
    let wide = astype(w, Dtype::Float32)?;
    let groups = (w.shape()[w.ndim() - 1] / format.group) as i64;
    let wide = ops::unflatten(&wide, -1, &[groups, format.group as i64])?;
    let (hi, lo) = (ops::max(&wide, -1, false)?, ops::min(&wide, -1, false)?);
    let levels = ((1u32 << format.bits) - 1) as f64;
    let step = ops::maximum(&ops::divide(&ops::subtract(&hi, &lo)?, levels)?, 1e-7)?;
    if format.bits == 1 {
        return Ok(vec![astype(&step, w.dtype())?, astype(&lo, w.dtype())?]);
    }
    // The end that is farther from zero is met exactly.
    let below = ops::greater(&ops::abs(&lo)?, &ops::abs(&hi)?)?;
    let step = ops::select(&below, &step, &ops::negative(&step)?)?;
    let edge = ops::select(&below, &lo, &hi)?;
    let code = ops::stop_gradient(&ops::round(&ops::divide(&edge, &step)?, 0)?)?;
    let met = ops::not_equal(&code, 0)?;
    let scale = ops::select(&met, &ops::divide(&edge, &ops::select(&met, &code, 1)?)?, &step)?;
    let bias = ops::select(&met, &edge, 0)?;
    Ok(vec![astype(&scale, w.dtype())?, astype(&bias, w.dtype())?])
}

impl Transform for Quantize {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        if !self.format.has_biases() {
            return Ok(at.none());
        }
        let at = Site { cotangents: &at.cotangents[1..], ..*at };
        pull(&at, |inputs| edges(self.format, &inputs[0]))
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        if lanes[1..].iter().any(|l| l.mapped) {
            return map_each(&Op::from(self.clone()), lanes, size);
        }
        Ok(Array::apply(self.clone(), lanes.iter().map(|l| l.array.clone()).collect())?.into_vec())
    }
}

// ------------------------------------------------------------------ dequantize

/// The codes as numbers of `dtype`: weights of scale 1 and bias 0, or of a tensor scale of 1.
fn codes(format: Format, parts: &[Array], dtype: Dtype) -> Result<Array> {
    let mut parts: Inputs = parts.into();
    if format.has_biases() {
        parts[1] = ops::full(parts[1].shape(), 1, Some(dtype))?;
        parts[2] = ops::full(parts[1].shape(), 0, Some(dtype))?;
    } else if let Some(i) = global_at(format, parts.len()) {
        parts[i] = ops::ones_like(&parts[i], None)?;
    }
    Array::apply1(Dequantize { format, dtype }, parts)
}

/// Gradients of packed words, scales and the rest from that of the unpacked weights, in float32.
fn grads_of_parts(format: Format, g: &Array, parts: &[Array], wanted: &[bool]) -> Result<SmallVec<[Option<Array>; 3]>> {
    let mut grads: SmallVec<[Option<Array>; 3]> = SmallVec::from_elem(None, parts.len());
    let by_codes = || multiply(g, &codes(format, parts, Dtype::Float32)?);
    if format.has_biases() {
        let groups = parts[1].shape()[parts[1].ndim() - 1] as i64;
        let grouped = |a: &Array| ops::sum(&ops::unflatten(a, -1, &[groups, format.group as i64])?, -1, false);
        grads[1] = wanted[1].then(|| grouped(&by_codes()?)).transpose()?;
        grads[2] = wanted[2].then(|| grouped(g)).transpose()?;
    } else if let Some(i) = global_at(format, parts.len()).filter(|&i| wanted[i]) {
        let sum = ops::sum(&by_codes()?, (), false)?;
        grads[i] = Some(reshape_to(&sum, parts[i].shape().into())?);
    }
    Ok(grads)
}

impl Transform for Dequantize {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = astype(&at.cotangent(0)?, Dtype::Float32)?;
        Ok(grads_of_parts(self.format, &g, at.inputs, at.wanted)?.into_iter().collect())
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let global = global_at(self.format, lanes.len());
        if global.is_some_and(|i| lanes[i].mapped) {
            return map_each(&Op::from(self.clone()), lanes, size);
        }
        let part = |(i, l): (usize, &Lane)| if Some(i) == global { Ok(l.array.clone()) } else { l.spread(size) };
        let inputs = lanes.iter().enumerate().map(part).collect::<Result<_>>()?;
        Ok(vec![Array::apply1(self.clone(), inputs)?])
    }
}

// ------------------------------------------------------------------ products

impl QuantizedMatmul {
    /// How many inputs are parts of w; they follow x.
    fn parts(&self, inputs: usize) -> usize {
        inputs - 1 - if self.gathered { 2 } else { 0 } - usize::from(self.rounds_x == Some(true))
    }

    /// The same product without rounding x.
    fn exact(&self, transpose: bool) -> QuantizedMatmul {
        QuantizedMatmul { transpose, rounds_x: None, ..self.clone() }
    }

    /// x, rounded to the format of w where the op does so.
    fn rounded(&self, inputs: &[Array]) -> Result<Array> {
        let x = &inputs[0];
        let Some(global) = self.rounds_x else { return Ok(x.clone()) };
        // Quantize takes matrices.
        let row = if x.ndim() == 1 { ops::expand_dims(x, 0)? } else { x.clone() };
        let global = if global { Some(inputs[1 + self.parts(inputs.len())].clone()) } else { None };
        let coded = Array::apply(Quantize { format: self.format }, [row].into_iter().chain(global.clone()).collect())?;
        let coded = coded.into_iter().chain(global).collect();
        let decoded = Array::apply1(Dequantize { format: self.format, dtype: Dtype::Float32 }, coded)?;
        reshape_to(&decoded, x.shape().into())
    }

    /// The gradient of the unpacked weights in float32: the sum over pairs of gᵀ x, or xᵀ g for `x @ w`.
    fn grad_of_weights(&self, g: &Array, x: &Array, packed: &Array, pairs: Option<[&Array; 2]>) -> Result<Array> {
        let (g, x) = (astype(g, Dtype::Float32)?, astype(x, Dtype::Float32)?);
        let outer = |g: &Array, x: &Array| {
            let (left, right) = if self.transpose { (g, x) } else { (x, g) };
            matmul(&ops::matrix_transpose(left)?, right)
        };
        let Some([lhs, rhs]) = pairs else { return outer(&rows(&g)?, &rows(&x)?) };
        let (g, x) = (stack(&g)?, stack(&x)?);
        let picked = ops::take(&x, &reshape_to(lhs, smallvec![lhs.size()])?, 0)?;
        let each = outer(&g, &picked)?;
        let count: usize = packed.shape()[..packed.ndim() - 2].iter().product();
        let zeros = ops::full(&[count, each.shape()[1], each.shape()[2]], 0, Some(Dtype::Float32))?;
        let sum = ops::index_combine(&zeros, &reshape_to(rhs, smallvec![rhs.size()])?, &each, Combine::Sum)?;
        let lead = packed.shape()[..packed.ndim() - 2].iter().chain(&each.shape()[1..]);
        reshape_to(&sum, lead.copied().collect())
    }
}

/// All leading axes as rows of one matrix.
fn rows(a: &Array) -> Result<Array> {
    let n = a.shape().last().copied().unwrap_or(1);
    let rows = a.shape()[..a.ndim() - 1].iter().product();
    reshape_to(a, smallvec![rows, n])
}

/// All leading axes as one stack of matrices.
fn stack(a: &Array) -> Result<Array> {
    let (lead, matrix) = a.shape().split_at(a.ndim() - 2);
    reshape_to(a, smallvec![lead.iter().product(), matrix[0], matrix[1]])
}

/// 0, 1, 2, ... as positions in an array of `shape`.
fn places(shape: &[usize]) -> Result<Array> {
    let count: usize = shape.iter().product();
    reshape_to(&ops::arange(0, count, 1, Some(Dtype::Int64))?, shape.into())
}

impl Decompose for QuantizedMatmul {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let x = &inputs[0];
        let parts = &inputs[1..1 + self.parts(inputs.len())];
        let natural =
            if self.format.has_biases() { parts[1].dtype().promote(parts[2].dtype()) } else { Dtype::Float32 };
        let weights = Array::apply1(Dequantize { format: self.format, dtype: natural }, parts.into())?;
        let mut weights = astype(&weights, Dtype::Float32)?;
        if self.transpose {
            weights = ops::matrix_transpose(&weights)?;
        }
        let rounded = astype(&self.rounded(inputs)?, Dtype::Float32)?;
        let out = if self.gathered {
            let pairs = inputs[inputs.len() - 2..].iter().cloned();
            Array::apply1(GatherMM { sorted: false }, [rounded, weights].into_iter().chain(pairs).collect())?
        } else {
            matmul(&rounded, &weights)?
        };
        Ok(vec![astype(&out, x.dtype())?])
    }
}

impl Transform for QuantizedMatmul {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (g, x, n) = (at.cotangent(0)?, &at.inputs[0], at.inputs.len());
        let parts = &at.inputs[1..1 + self.parts(n)];
        let pairs = self.gathered.then(|| [&at.inputs[n - 2], &at.inputs[n - 1]]);
        let mut grads = at.none();
        if at.wanted[0] {
            let back = self.exact(!self.transpose);
            let inputs = std::iter::once(g.clone()).chain(parts.iter().cloned());
            grads[0] = Some(match pairs {
                None => Array::apply1(back, inputs.collect())?,
                Some([lhs, rhs]) => {
                    let pairs = [places(lhs.shape())?, rhs.clone()];
                    let each = stack(&Array::apply1(back, inputs.chain(pairs).collect())?)?;
                    let zeros = ops::full(stack(x)?.shape(), 0, Some(g.dtype()))?;
                    let lhs = reshape_to(lhs, smallvec![lhs.size()])?;
                    reshape_to(&ops::index_combine(&zeros, &lhs, &each, Combine::Sum)?, x.shape().into())?
                }
            });
        }
        let wanted = &at.wanted[1..1 + parts.len()];
        if wanted.contains(&true) {
            let of_weights = self.grad_of_weights(&g, &self.rounded(at.inputs)?, &parts[0], pairs)?;
            let given = grads_of_parts(self.format, &of_weights, parts, wanted)?;
            grads[1..].iter_mut().zip(given).for_each(|(to, from)| *to = from);
        }
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let n = self.parts(lanes.len());
        let (x, parts) = (&lanes[0], &lanes[1..=n]);
        let lists = lanes.len() - if self.gathered { 2 } else { 0 };
        let global = global_at(self.format, n);
        // A scale of a whole tensor is one for the call.
        if global.is_some_and(|i| parts[i].mapped) || lanes[1 + n..lists].iter().any(|l| l.mapped) {
            return map_each(&Op::from(self.clone()), lanes, size);
        }
        let mapped = parts.iter().any(|l| l.mapped);
        let shared = || lanes[1..].iter().map(|l| l.array.clone());
        if !mapped && !self.gathered {
            let inputs = std::iter::once(x.array.clone()).chain(shared()).collect();
            return Ok(vec![Array::apply1(self.clone(), inputs)?]);
        }
        // Lanes of x and w become matrices of their stacks.
        let single = x.shape();
        let rows: usize =
            if self.gathered { single[single.len() - 2] } else { single[..single.len() - 1].iter().product() };
        let k = single[single.len() - 1];
        let count = |l: &Lane, each: usize| if l.mapped { size * each } else { each };
        let per_x: usize = if self.gathered { single[..single.len() - 2].iter().product() } else { 1 };
        let per_w: usize = parts[0].shape()[..parts[0].shape().len() - 2].iter().product();
        let mut inputs = Inputs::new();
        inputs.push(reshape_to(&x.array, smallvec![count(x, per_x), rows, k])?);
        for (i, l) in parts.iter().enumerate() {
            let whole = Some(i) != global && mapped;
            inputs.push(if whole { l.spread(size)? } else { l.array.clone() });
        }
        inputs.extend(lanes[1 + n..lists].iter().map(|l| l.array.clone()));
        let [lhs, rhs] = match self.gathered {
            true => [lanes[lists].clone(), lanes[lists + 1].clone()],
            false => {
                let only = Lane { array: places(&[])?, mapped: false };
                [only.clone(), only]
            }
        };
        let shape = behind(size, lhs.shape());
        inputs.push(in_lane(&lhs, size, per_x, x.mapped)?);
        inputs.push(in_lane(&rhs, size, per_w, mapped)?);
        let out = Array::apply1(QuantizedMatmul { gathered: true, ..self.clone() }, inputs)?;
        let columns = out.shape()[out.ndim() - 1];
        let shape: Shape = match self.gathered {
            true => shape.into_iter().chain([rows, columns]).collect(),
            false => behind(size, &single[..single.len() - 1]).into_iter().chain([columns]).collect(),
        };
        Ok(vec![reshape_to(&out, shape)?])
    }
}

/// Positions in stacks of `each` matrices as positions in the joined stack. One out of range stays out of range.
fn in_lane(list: &Lane, size: usize, each: usize, mapped: bool) -> Result<Array> {
    let all = list.spread(size)?;
    if !mapped {
        return Ok(all);
    }
    let mut shape: Shape = SmallVec::from_elem(1, all.ndim());
    shape[0] = size;
    let first = reshape_to(&ops::arange(0, size * each, each.max(1), Some(Dtype::Int64))?, shape)?;
    let inside = ops::logical_and(&ops::greater_equal(&all, 0)?, &ops::less(&all, each as i64)?)?;
    ops::select(&inside, &ops::add(&all, &first)?, -1i64)
}

// ------------------------------------------------------------------ fp8

impl Transform for ConvertFp8 {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        // Codes are constants.
        Ok(at.none())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        Ok(vec![Array::apply1(self.clone(), smallvec![lanes[0].array.clone()])?])
    }
}
