//! The norms of language models behind one type.

use crate::weights::At;
use lapis::ops::fast;
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, LayerNorm, Module, Param, RMSNorm};

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
            Norm::PerHead { weight, eps } => ops::multiply(weight.value(), fast::layer_norm(x, None, None, *eps)?),
        }
    }
}
