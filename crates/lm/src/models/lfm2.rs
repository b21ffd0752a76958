//! LFM 2: short convolutions between layers of attention.

use super::common::boxed;
use super::sanitize::move_conv;
use super::{Architecture, Config, all_alike, drop_tied_head, parse};
use crate::batch::Batch;
use crate::blocks::{Backbone, Heads, Layered, Norm, Rope, ShortConv, swiglu};
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Args {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    norm_eps: f64,
    #[serde(default)]
    conv_bias: bool,
    #[serde(rename = "conv_L_cache")]
    kernel: usize,
    block_ff_dim: Option<usize>,
    intermediate_size: Option<usize>,
    #[serde(default = "one")]
    block_multiple_of: usize,
    block_ffn_dim_multiplier: Option<f64>,
    #[serde(default)]
    block_auto_adjust_ff_dim: bool,
    rope_theta: Option<f64>,
    rope_parameters: Option<Config>,
    full_attn_idxs: Option<Vec<usize>>,
    layer_types: Option<Vec<String>>,
}

fn one() -> usize {
    1
}

impl Args {
    /// Between the products of a layer.
    fn inner(&self) -> Result<usize> {
        let missing = || Error::value("[load] config.json: block_ff_dim: missing, and intermediate_size too");
        let inner = self.block_ff_dim.or(self.intermediate_size).ok_or_else(missing)?;
        if !self.block_auto_adjust_ff_dim {
            return Ok(inner);
        }
        let part = (2 * inner / 3) as f64 * self.block_ffn_dim_multiplier.unwrap_or(1.0);
        Ok((part as usize).next_multiple_of(self.block_multiple_of.max(1)))
    }

    fn attends(&self, i: usize) -> Result<bool> {
        match (&self.full_attn_idxs, &self.layer_types) {
            (Some(list), _) => Ok(list.contains(&i)),
            (None, Some(kinds)) => Ok(kinds.get(i).is_some_and(|k| k == "full_attention")),
            (None, None) => Err(Error::value("[load] config.json: layer_types: missing, and full_attn_idxs too")),
        }
    }

    fn base(&self) -> f64 {
        let inner = self.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
        inner.or(self.rope_theta).unwrap_or(1e6)
    }
}

/// Attention, by the names of this family.
#[derive(Module, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    q_layernorm: Norm,
    k_layernorm: Norm,
    #[plain]
    heads: Heads,
}

impl Attention {
    fn load(at: &At, width: usize, heads: Heads, eps: f64) -> Result<Attention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        Ok(Attention {
            q_proj: at.linear("q_proj", width, q, false)?,
            k_proj: at.linear("k_proj", width, k, false)?,
            v_proj: at.linear("v_proj", width, k, false)?,
            out_proj: at.linear("out_proj", q, width, false)?,
            q_layernorm: Norm::rms(at, "q_layernorm", heads.width, eps)?,
            k_layernorm: Norm::rms(at, "k_layernorm", heads.width, eps)?,
            heads,
        })
    }

    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let each = |x: &Array| ops::reshape(x, &[x.dim(0) as i64, -1, self.heads.width as i64]);
        let q = self.q_layernorm.forward(&each(&self.q_proj.forward(x)?)?)?;
        let k = self.k_layernorm.forward(&each(&self.k_proj.forward(x)?)?)?;
        self.out_proj.forward(&self.heads.attend([&q, &k, &self.v_proj.forward(x)?], None, layer, batch)?)
    }
}

#[derive(Module, Clone)]
enum Mixer {
    Attention { self_attn: Attention },
    Conv { conv: ShortConv },
}

/// `w2(silu(w1(x)) * w3(x))`.
#[derive(Module, Clone)]
struct FeedForward {
    w1: Linear,
    w3: Linear,
    w2: Linear,
}

#[derive(Module, Clone)]
struct Block {
    #[flatten]
    mixer: Mixer,
    feed_forward: FeedForward,
    operator_norm: Norm,
    ffn_norm: Norm,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = self.operator_norm.forward(x)?;
        let y = match &self.mixer {
            Mixer::Attention { self_attn } => self_attn.forward(&rows, layer, batch)?,
            Mixer::Conv { conv } => conv.forward(&rows, layer, batch)?,
        };
        let x = ops::add(x, y)?;
        let (rows, f) = (self.ffn_norm.forward(&x)?, &self.feed_forward);
        ops::add(&x, f.w2.forward(&swiglu(&f.w1.forward(&rows)?, &f.w3.forward(&rows)?)?)?)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["lfm2"],
    sanitize: |_, tensors| {
        drop_tied_head(true, tensors);
        move_conv(tensors, "conv.conv").map(drop)
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(config)?;
        let (width, inner) = (a.hidden_size, a.inner()?);
        let head = width / a.num_attention_heads.max(1);
        let keys = a.num_key_value_heads.unwrap_or(a.num_attention_heads);
        let rope = Rope::plain(head, a.base(), false);
        boxed(Backbone::load_model(at, [a.vocab_size, width, a.num_hidden_layers], a.norm_eps, |at, i| {
            let mixer = if a.attends(i)? {
                let heads = Heads::new(a.num_attention_heads, keys, head, Some(rope.clone()));
                Mixer::Attention { self_attn: Attention::load(&at.at("self_attn"), width, heads, a.norm_eps)? }
            } else {
                Mixer::Conv { conv: ShortConv::load(&at.at("conv"), width, a.kernel, a.conv_bias)? }
            };
            let f = at.at("feed_forward");
            Ok(Block {
                mixer,
                feed_forward: FeedForward {
                    w1: f.linear("w1", width, inner, false)?,
                    w3: f.linear("w3", width, inner, false)?,
                    w2: f.linear("w2", inner, width, false)?,
                },
                operator_norm: Norm::rms(&at, "operator_norm", width, a.norm_eps)?,
                ffn_norm: Norm::rms(&at, "ffn_norm", width, a.norm_eps)?,
            })
        })?)
    },
};
