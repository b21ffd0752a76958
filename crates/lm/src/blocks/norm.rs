//! The norms of language models behind one type.

use crate::weights::At;
use lapis::ops::fast;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Layer, LayerNorm, Module, Param, RMSNorm};
use std::any::Any;

/// A norm along the last axis.
#[derive(Module, Clone)]
pub enum Norm {
    /// By the root mean square.
    Rms(RMSNorm),
    /// By the root mean square, with weights stored less one.
    RmsPlusOne(RMSNorm),
    /// By mean and variance.
    Layer(LayerNorm),
    /// By mean and variance, with weights stored less one.
    LayerPlusOne(LayerNorm),
    /// By mean and variance, of heads that have weights of their own.
    PerHead {
        /// (heads, width).
        weight: Param,
        /// Added to the variance.
        eps: f64,
    },
    /// By the root mean square, without weights; what is added to the mean of squares.
    Bare(f64),
    /// By mean and variance, without weights; what is added to the variance.
    BareLayer(f64),
}

impl Norm {
    /// [`Norm::Rms`] from a place in the names.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn rms(at: &At, name: &str, width: usize, eps: f64) -> Result<Norm> {
        at.rms_norm(name, width, eps).map(Norm::Rms)
    }

    /// [`Norm::RmsPlusOne`].
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn rms_plus_one(at: &At, name: &str, width: usize, eps: f64) -> Result<Norm> {
        at.rms_norm(name, width, eps).map(Norm::RmsPlusOne)
    }

    /// [`Norm::Layer`].
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn layer(at: &At, name: &str, width: usize, eps: f64, bias: bool) -> Result<Norm> {
        at.layer_norm(name, width, eps, bias).map(Norm::Layer)
    }

    /// [`Norm::LayerPlusOne`].
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn layer_plus_one(at: &At, name: &str, width: usize, eps: f64) -> Result<Norm> {
        at.layer_norm(name, width, eps, true).map(Norm::LayerPlusOne)
    }

    /// [`Norm::PerHead`].
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn per_head(at: &At, name: &str, heads: usize, width: usize, eps: f64) -> Result<Norm> {
        Ok(Norm::PerHead { weight: at.at(name).param("weight", &[heads, width])?, eps })
    }
}

impl Norm {
    /// Has the norm give its rows divided by `scales` (width,).
    ///
    /// # Errors
    /// A norm without weights, or with weights for each head; sizes that do not fit.
    pub fn divide(&mut self, scales: &Array) -> Result<()> {
        let less_one = |w: &Array| ops::subtract(ops::divide(&ops::add(w, 1.0)?, scales)?, 1.0);
        let in_type = |new: Array, old: &Array| ops::astype(&new, old.dtype());
        let wide = |w: &Array| ops::astype(w, Dtype::Float32);
        let divided = |w: &Array| in_type(ops::divide(wide(w)?, scales)?, w);
        let none = || Error::unsupported("[norm] there are no weights of this norm to divide");
        match self {
            Norm::Rms(norm) => norm.weight.set(divided(&norm.weight)?),
            Norm::RmsPlusOne(norm) => norm.weight.set(in_type(less_one(&wide(&norm.weight)?)?, &norm.weight)?),
            Norm::Layer(norm) | Norm::LayerPlusOne(norm) if norm.weight.is_none() => return Err(none()),
            Norm::PerHead { .. } | Norm::Bare(_) | Norm::BareLayer(_) => return Err(none()),
            Norm::Layer(norm) => each(norm, &divided, &divided)?,
            Norm::LayerPlusOne(norm) => each(norm, &|w| in_type(less_one(&wide(w)?)?, w), &divided)?,
        }
        Ok(())
    }
}

/// Changes weight and bias of a norm.
fn each(
    norm: &mut LayerNorm,
    weight: &dyn Fn(&Array) -> Result<Array>,
    bias: &dyn Fn(&Array) -> Result<Array>,
) -> Result<()> {
    if let Some(w) = &mut norm.weight {
        w.set(weight(w)?);
    }
    if let Some(b) = &mut norm.bias {
        b.set(bias(b)?);
    }
    Ok(())
}

/// Has the norm at a dotted name give its rows divided by `scales`, as [`Norm::divide`]; whether there is one.
///
/// # Errors
/// As there.
pub fn divide_norm(module: &mut dyn Module, path: &str, scales: &Array) -> Result<bool> {
    let mut done = Ok(false);
    module.fields_mut(&mut |name, field| {
        let rest = match path.strip_prefix(name) {
            Some("") => "",
            _ if name.is_empty() => path,
            Some(rest) if rest.starts_with('.') => &rest[1..],
            _ => return,
        };
        if !matches!(done, Ok(false)) {
            return;
        }
        done = match (rest, (&mut *field as &mut dyn Any).downcast_mut::<Norm>()) {
            ("", Some(norm)) => norm.divide(scales).map(|()| true),
            _ => divide_norm(field, rest, scales),
        };
    });
    done
}

impl Layer for Norm {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Norm::Rms(norm) => norm.forward(x),
            Norm::RmsPlusOne(norm) => fast::rms_norm(x, Some(&ops::add(norm.weight.value(), 1.0)?), norm.eps),
            Norm::Layer(norm) => norm.forward(x),
            Norm::LayerPlusOne(norm) => {
                let weight = norm.weight.as_deref().map(|w| ops::add(w, 1.0)).transpose()?;
                fast::layer_norm(x, weight.as_ref(), norm.bias.as_deref(), norm.eps)
            }
            Norm::Bare(eps) => fast::rms_norm(x, None, *eps),
            Norm::BareLayer(eps) => fast::layer_norm(x, None, None, *eps),
            Norm::PerHead { weight, eps } => ops::multiply(weight.value(), fast::layer_norm(x, None, None, *eps)?),
        }
    }
}
