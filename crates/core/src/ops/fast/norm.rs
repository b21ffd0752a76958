//! Normalisation over the last axis, and the cross entropy of logits.

use super::{check_floating, check_shape};
use crate::array::Array;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals, Inputs};
use crate::ops::softmax::CrossEntropy;
use crate::ops::{Rule, astype};
use crate::scalar::Real;
use crate::shape::show;
use smallvec::smallvec;

/// Root-mean-square or layer normalisation along the last axis. Inputs: x, then weight and bias where present.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
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
    let Some(&size) = x.shape().last() else {
        return Err(Error::shape(format!("[{name}] x is 0-d; at least one axis is needed")));
    };
    let mut dtype = x.dtype();
    for (what, a) in [("weight", weight), ("bias", bias)] {
        let Some(a) = a else { continue };
        check_floating(name, what, a)?;
        check_shape(name, what, a, &[size])?;
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
    match logits.shape().split_last() {
        Some((&classes, lead)) if classes > 0 && lead == targets.shape() => {}
        _ => {
            let (l, t) = (show(logits.shape()), show(targets.shape()));
            return Err(Error::shape(format!("[{op}] logits of shape {l} do not fit targets of shape {t}")));
        }
    }
    let targets = astype(targets, crate::Dtype::Int64)?;
    Array::apply1(CrossEntropy, smallvec![logits.clone(), targets])
}
