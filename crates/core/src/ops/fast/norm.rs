//! Normalisation over the last axis, and the cross entropy of logits.

use super::{check_floating, check_shape, wide};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::softmax::CrossEntropy;
use crate::ops::{self, Rule, add, astype, expect, multiply, reshape_to, subtract, sum_to};
use crate::scalar::Real;
use crate::shape::Shape;
use crate::transforms::{Decompose, Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Root-mean-square or layer normalisation along the last axis. Inputs: x, then weight and bias where present.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// Added to the mean square or the variance.
    pub eps: Real,
    /// Subtract the mean first: layer normalisation.
    pub centred: bool,
    /// Whether the second input is a weight.
    pub weight: bool,
    /// Whether the last input is a bias.
    pub bias: bool,
}

impl Rule for Norm {
    fn name(&self) -> &'static str {
        if self.centred { "layer_norm" } else { "rms_norm" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let name = self.name();
        expect::count(name, inputs, 1 + usize::from(self.weight) + usize::from(self.bias))?;
        let x = &inputs[0];
        check_floating(name, "x", x)?;
        let Some(&size) = x.shape().last() else {
            return Err(Error::shape(format!("[{name}] x is 0-d; at least one axis is needed")));
        };
        expect::alike(name, inputs)?;
        let rest = ["weight", "bias"].into_iter().skip(usize::from(!self.weight));
        for (what, a) in rest.zip(&inputs[1..]) {
            check_shape(name, what, a, &[size])?;
        }
        Ok(smallvec![Aval::new(x.shape(), x.dtype())])
    }
}

impl Norm {
    fn plain(&self) -> Norm {
        Norm { weight: false, bias: false, ..self.clone() }
    }

    /// x in the dtype the op computes in, less its mean where it is centred, and the factor that normalises it.
    fn parts(&self, x: &Array) -> Result<(Array, Array)> {
        let mut x = astype(x, wide(x.dtype()))?;
        if self.centred {
            x = subtract(&x, &ops::mean(&x, -1, true)?)?;
        }
        let spread = ops::mean(&ops::square(&x)?, -1, true)?;
        Ok((x, ops::rsqrt(&add(&spread, self.eps.0)?)?))
    }

    /// A normalised x times the weight plus the bias, which broadcast.
    fn affine(&self, mut y: Array, rest: &[Array]) -> Result<Array> {
        let mut rest = rest.iter();
        if self.weight
            && let Some(w) = rest.next()
        {
            y = multiply(&y, w)?;
        }
        if self.bias
            && let Some(b) = rest.next()
        {
            y = add(&y, b)?;
        }
        Ok(y)
    }
}

impl Decompose for Norm {
    fn decompose(&self, inputs: &[Array]) -> Result<Vec<Array>> {
        let (x, scale) = self.parts(&inputs[0])?;
        Ok(vec![self.affine(astype(&multiply(&x, &scale)?, inputs[0].dtype())?, &inputs[1..])?])
    }
}

impl Transform for Norm {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (x, scale) = self.parts(&at.inputs[0])?;
        let g = astype(&at.cotangent(0)?, x.dtype())?;
        let mut grads = at.none();
        if at.wanted[0] {
            // The share of g that a normalised row cannot follow: along the row, and all elements alike.
            let g = if self.weight { multiply(&g, &astype(&at.inputs[1], x.dtype())?)? } else { g.clone() };
            let along = ops::mean(&multiply(&g, &x)?, -1, true)?;
            let along = multiply(&along, &multiply(&ops::square(&scale)?, &scale)?)?;
            let free = if self.centred { subtract(&g, &ops::mean(&g, -1, true)?)? } else { g };
            grads[0] = Some(subtract(&multiply(&free, &scale)?, &multiply(&x, &along)?)?);
        }
        let last = at.inputs.len() - 1;
        if self.weight && at.wanted[1] {
            let y = multiply(&x, &scale)?;
            grads[1] = Some(sum_to(&multiply(&g, &y)?, at.inputs[1].shape())?);
        }
        if self.bias && at.wanted[last] {
            grads[last] = Some(sum_to(&g, at.inputs[last].shape())?);
        }
        // In the dtypes of the inputs, so that no wide array outlives its use.
        for (g, a) in grads.iter_mut().zip(at.inputs) {
            *g = g.take().map(|g| astype(&g, a.dtype())).transpose()?;
        }
        Ok(grads)
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        if lanes[1..].iter().all(|l| !l.mapped) {
            return Ok(vec![Array::apply1(self.clone(), lanes.iter().map(|l| l.array.clone()).collect())?]);
        }
        let y = Array::apply1(self.plain(), smallvec![lanes[0].array.clone()])?;
        let y = Lane { array: y, mapped: lanes[0].mapped }.spread(size)?;
        let beside = |l: &Lane| -> Result<Array> {
            if !l.mapped {
                return Ok(l.array.clone());
            }
            let mut shape: Shape = Shape::from_elem(1, y.ndim());
            (shape[0], shape[y.ndim() - 1]) = (size, l.shape()[0]);
            reshape_to(&l.array, shape)
        };
        let rest = lanes[1..].iter().map(beside).collect::<Result<Vec<_>>>()?;
        Ok(vec![self.affine(y, &rest)?])
    }
}

/// `x * rsqrt(mean(x^2) + eps)` over the last axis, times `weight` of that size (`mx.fast.rms_norm`). The result has the
/// dtype of x promoted with the weight.
///
/// # Errors
/// A 0-d x, a weight of another shape, dtypes that are not real floating.
pub fn rms_norm(x: &Array, weight: Option<&Array>, eps: f64) -> Result<Array> {
    norm(Norm { eps: Real(eps), centred: false, weight: false, bias: false }, x, weight, None)
}

/// `(x - mean) * rsqrt(var + eps)` over the last axis, times `weight`, plus `bias` (`mx.fast.layer_norm`). The result has
/// the dtype of x, with a weight promoted with weight and bias.
///
/// # Errors
/// As [`rms_norm`].
pub fn layer_norm(x: &Array, weight: Option<&Array>, bias: Option<&Array>, eps: f64) -> Result<Array> {
    norm(Norm { eps: Real(eps), centred: true, weight: false, bias: false }, x, weight, bias)
}

fn norm(op: Norm, x: &Array, weight: Option<&Array>, bias: Option<&Array>) -> Result<Array> {
    let name = op.name();
    check_floating(name, "x", x)?;
    let mut dtype = x.dtype();
    for (what, a) in [("weight", weight), ("bias", bias)] {
        let Some(a) = a else { continue };
        check_floating(name, what, a)?;
        if weight.is_some() {
            dtype = dtype.promote(a.dtype());
        }
    }
    let mut inputs: Inputs = smallvec![astype(x, dtype)?];
    for a in [weight, bias].into_iter().flatten() {
        inputs.push(astype(a, dtype)?);
    }
    Array::apply1(Norm { weight: weight.is_some(), bias: bias.is_some(), ..op }, inputs)
}

/// `logsumexp(logits) - logits[target]` over the last axis, in float32; `targets` (integers) have the shape of logits
/// without that axis (`mx.fast.cross_entropy`).
///
/// # Errors
/// Shapes that do not fit, targets that are not integers; at evaluation, a target that is no class.
pub fn cross_entropy(logits: &Array, targets: &Array) -> Result<Array> {
    let op = "cross_entropy";
    check_floating(op, "logits", logits)?;
    if !targets.dtype().is_integer() {
        return Err(Error::dtype(format!("[{op}] targets are integers, not {}", targets.dtype())));
    }
    let targets = astype(targets, crate::Dtype::Int64)?;
    Array::apply1(CrossEntropy, smallvec![logits.clone(), targets])
}
