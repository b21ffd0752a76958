//! What the configs of mixtures and hybrids have in common.

use super::{Config, Model, Packing};
use crate::blocks::{Attention, Decoder, Heads, Hybrid, Mixer, Mlp, Norm, Product, Rope};
use crate::weights::At;
use lapis::ops::quantize::Format;
use lapis::{Error, Result};
use lapis_nn::activations::silu;
use serde::Deserialize;
use serde_json::Value;

/// Sizes by their usual keys.
#[derive(Deserialize)]
pub(super) struct Common {
    pub vocab_size: usize,
    pub hidden_size: usize,
    #[serde(default)]
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub max_position_embeddings: Option<usize>,
    #[serde(default = "eps")]
    pub rms_norm_eps: f64,
    pub rope_theta: Option<f64>,
    pub rope_scaling: Option<Config>,
    pub rope_parameters: Option<Config>,
    pub partial_rotary_factor: Option<f64>,
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    pub attention_bias: bool,
}

fn eps() -> f64 {
    1e-6
}

impl Common {
    /// Width of a head.
    pub(super) fn head(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// A number of `rope_parameters`.
    pub(super) fn inner(&self, key: &str) -> Option<f64> {
        self.rope_parameters.as_ref()?.get(key).and_then(Value::as_f64)
    }

    /// The base of positions.
    pub(super) fn base(&self) -> f64 {
        self.rope_theta.or(self.inner("rope_theta")).unwrap_or(10000.0)
    }

    /// How many features of heads of this width are turned, as `partial_rotary_factor` says.
    pub(super) fn turned(&self, head: usize) -> Result<usize> {
        let part = self.partial_rotary_factor.or(self.inner("partial_rotary_factor")).unwrap_or(1.0);
        match part > 0.0 && part <= 1.0 {
            true => Ok((head as f64 * part) as usize),
            false => Err(super::settings::wrong("partial_rotary_factor", format!("{part} is not between 0 and 1"))),
        }
    }

    /// Positions of the first features of a head, as `partial_rotary_factor` says.
    pub(super) fn rope(&self) -> Result<Rope> {
        let dims = self.turned(self.head())?;
        let scaling = self.rope_scaling.as_ref().or(self.rope_parameters.as_ref());
        Rope::new(dims, self.base(), false, scaling, self.max_position_embeddings)
    }

    /// Heads of attention.
    pub(super) fn heads(&self) -> Result<Heads> {
        let keys = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        multiple("num_attention_heads", self.num_attention_heads, "num_key_value_heads", keys)?;
        Ok(Heads::new(self.num_attention_heads, keys, self.head(), Some(self.rope()?)))
    }

    /// The norm `name` of this width.
    pub(super) fn norm(&self, at: &At, name: &str, width: usize) -> Result<Norm> {
        Norm::rms(at, name, width, self.rms_norm_eps)
    }

    /// Attention with biases as `attention_bias` says, and with norms of each head if wanted.
    pub(super) fn attention(&self, at: &At, bias: [bool; 2], norms: bool) -> Result<Mixer> {
        self.attention_of(at, self.heads()?, bias, norms)
    }

    /// As [`Common::attention`], of heads of its own.
    pub(super) fn attention_of(&self, at: &At, heads: Heads, bias: [bool; 2], norms: bool) -> Result<Mixer> {
        let at = at.at("self_attn");
        let mut attention = Attention::load(&at, self.hidden_size, heads, bias)?;
        if norms {
            let norm = |name: &str| self.norm(&at, name, self.head());
            attention = attention.with_head_norms(norm("q_norm")?, norm("k_norm")?);
        }
        Ok(Mixer::Attention { self_attn: attention })
    }

    /// Attention with a norm of all heads of queries, and one of all of keys.
    pub(super) fn attention_whole(&self, at: &At, heads: Heads, bias: [bool; 2]) -> Result<Mixer> {
        let (at, q, k) = (at.at("self_attn"), heads.count * heads.width, heads.keys * heads.width);
        let attention = Attention::load(&at, self.hidden_size, heads, bias)?;
        let self_attn = attention.with_whole_norms(self.norm(&at, "q_norm", q)?, self.norm(&at, "k_norm", k)?);
        Ok(Mixer::Attention { self_attn })
    }

    /// A gated product `name`.
    pub(super) fn mlp(&self, at: &At, name: &str, inner: usize) -> Result<Mlp> {
        Mlp::load(&at.at(name), self.hidden_size, inner, false, silu)
    }

    /// The gated product of a layer without experts.
    pub(super) fn dense(&self, at: &At) -> Result<Product> {
        Ok(Product::Dense { mlp: self.mlp(at, "mlp", self.intermediate_size)? })
    }

    /// A model whose layers have these parts.
    pub(super) fn decoder(
        &self,
        at: &At,
        layer: impl Fn(&At, usize) -> Result<(Mixer, Product)>,
    ) -> Result<Decoder<Hybrid>> {
        let sizes = [self.vocab_size, self.hidden_size, self.num_hidden_layers];
        let norm = |at: &At, name: &str| self.norm(at, name, self.hidden_size);
        Decoder::load(at, sizes, self.tie_word_embeddings, norm, |at, i| {
            let (mixer, product) = layer(&at, i)?;
            Hybrid::new(&at, self.hidden_size, self.rms_norm_eps, mixer, product)
        })
    }
}

/// As a model is given out.
pub(super) fn boxed<M: Model + 'static>(model: M) -> Result<Box<dyn Model>> {
    Ok(Box::new(model))
}

/// Checks that `n` is some times `d`.
pub(super) fn multiple(key: &str, n: usize, of: &str, d: usize) -> Result<()> {
    match d > 0 && n.is_multiple_of(d) {
        true => Ok(()),
        false => Err(Error::value(format!("[load] config.json: {key}, {n}, is no multiple of {of}, {d}"))),
    }
}

/// Layers whose path ends so are packed with 8 bits in groups of 64.
pub(super) fn eight_bits(path: &str, ends: &[&str]) -> Packing {
    match ends.iter().any(|end| path.ends_with(end)) {
        true => Format::affine(8, 64).map_or(Packing::Base, Packing::As),
        false => Packing::Base,
    }
}
