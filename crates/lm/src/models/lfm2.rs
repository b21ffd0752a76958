//! LFM 2: short convolutions between layers of attention; with experts or without.

use super::common::{boxed, eight_bits, multiple};
use super::sanitize::{move_conv, replace, stack_experts};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config, all_alike, parse};
use crate::batch::Batch;
use crate::blocks::{
    Backbone, FrameNames, Gate, Heads, Layered, Mixture, Mlp, Norm, Rope, Router, Rule, ShortConv, swiglu,
};
use crate::weights::At;
use lapis::io::Arrays;
use lapis::{Array, Error, Result, ops};
use lapis_nn::activations::silu;
use lapis_nn::{Layer, Linear, Module};
use serde::Deserialize;
use serde_json::{Value, json};

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
#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum Mixer {
    Attention { self_attn: Attention },
    Conv { conv: ShortConv },
}

#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
enum FeedForward {
    /// `w2(silu(w1(x)) * w3(x))`.
    Numbered {
        w1: Linear,
        w3: Linear,
        w2: Linear,
    },
    Dense(Mlp),
    Experts(Mixture),
}

impl Layer for FeedForward {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            FeedForward::Numbered { w1, w3, w2 } => w2.forward(&swiglu(&w1.forward(x)?, &w3.forward(x)?)?),
            FeedForward::Dense(mlp) => mlp.forward(x),
            FeedForward::Experts(mixture) => mixture.forward(x),
        }
    }
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
        ops::add(&x, self.feed_forward.forward(&self.ffn_norm.forward(&x)?)?)
    }
}

/// A model whose layers have these products.
fn load(a: &Args, at: &At, product: impl Fn(&At, usize) -> Result<FeedForward>) -> Result<Backbone<Block>> {
    let width = a.hidden_size;
    let head = width / a.num_attention_heads.max(1);
    let keys = a.num_key_value_heads.unwrap_or(a.num_attention_heads);
    multiple("num_attention_heads", a.num_attention_heads, "num_key_value_heads", keys)?;
    let rope = Rope::new(head, a.base(), false, None, None)?;
    let norm = |at: &At, name: &str| Norm::rms(at, name, width, a.norm_eps);
    let all = [a.vocab_size, width, a.num_hidden_layers];
    Backbone::load(at, FrameNames::model("embedding_norm"), all, None, norm, |at, i| {
        let mixer = if a.attends(i)? {
            let heads = Heads::new(a.num_attention_heads, keys, head, Some(rope.clone()));
            Mixer::Attention { self_attn: Attention::load(&at.at("self_attn"), width, heads, a.norm_eps)? }
        } else {
            Mixer::Conv { conv: ShortConv::load(&at.at("conv"), width, a.kernel, a.conv_bias)? }
        };
        Ok(Block {
            mixer,
            feed_forward: product(&at.at("feed_forward"), i)?,
            operator_norm: norm(&at, "operator_norm")?,
            ffn_norm: norm(&at, "ffn_norm")?,
        })
    })
}

/// One without experts.
fn dense(config: &Config, at: &At) -> Result<Backbone<Block>> {
    let a: Args = parse(config)?;
    let (width, inner) = (a.hidden_size, a.inner()?);
    load(&a, at, |at, _| {
        Ok(FeedForward::Numbered {
            w1: at.linear("w1", width, inner, false)?,
            w3: at.linear("w3", width, inner, false)?,
            w2: at.linear("w2", inner, width, false)?,
        })
    })
}

fn sanitize(_: &Config, tensors: &mut Arrays) -> Result<()> {
    tensors.retain(|name, _| !name.split('.').any(|part| part == "lm_head"));
    move_conv(tensors, "conv.conv").map(drop)
}

pub(super) const ARCHITECTURE: Architecture =
    Architecture { names: &["lfm2"], sanitize, quantize: all_alike, load: |config, at| boxed(dense(config, at)?) };

/// Inside a model that sees.
pub(super) const VISION: Architecture = Architecture {
    names: &["lfm2_vl"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        sanitize(config, tensors)
    },
    quantize: all_alike,
    load: |config, at| {
        let language_model = dense(&text(config, json!({}))?, &at.at("language_model"))?;
        boxed(Wrapped { language_model })
    },
};

#[derive(Deserialize)]
struct Sparse {
    moe_intermediate_size: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    norm_topk_prob: bool,
    #[serde(default)]
    use_expert_bias: bool,
    num_dense_layers: usize,
    routed_scaling_factor: Option<f64>,
}

pub(super) const MOE: Architecture = Architecture {
    names: &["lfm2_moe"],
    sanitize: |config, tensors| {
        sanitize(config, tensors)?;
        stack_experts(tensors, "switch_mlp", &[])?;
        for (from, to) in [("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")] {
            for leaf in ["weight", "scales", "biases"] {
                let (from, to) = (format!("feed_forward.{from}.{leaf}"), format!("feed_forward.{to}.{leaf}"));
                replace(tensors, &from, [&to], |w| Ok([w.clone()]))?;
            }
        }
        Ok(())
    },
    quantize: |path| eight_bits(path, &["feed_forward.gate"]),
    load: |config, at| {
        let (a, s): (Args, Sparse) = (parse(config)?, parse(config)?);
        let (width, inner) = (a.hidden_size, a.inner()?);
        let model = load(&a, at, |at, i| {
            if i < s.num_dense_layers {
                return Ok(FeedForward::Dense(Mlp::load(at, width, inner, false, silu)?));
            }
            let bias = || at.param("expert_bias", &[s.num_experts]);
            let gate = Gate::Expert {
                gate: at.linear("gate", width, s.num_experts, false)?,
                expert_bias: s.use_expert_bias.then(bias).transpose()?,
            };
            let router = Router {
                rule: Rule::Sigmoid,
                scale: s.routed_scaling_factor.unwrap_or(1.0),
                ..Router::softmax(s.num_experts_per_tok, s.norm_topk_prob)
            };
            let sizes = [s.num_experts, width, s.moe_intermediate_size];
            Ok(FeedForward::Experts(Mixture::behind(gate, at, sizes, router)?))
        })?;
        boxed(model)
    },
};
