//! Jamba: layers of Mamba, now and then attention without positions; a gated product or experts in each. Weights of
//! experts are a softmax over all of them, as its makers have it; mlx-lm's sum to one.

use super::common::{Common, boxed, eight_bits};
use super::mamba::Rank;
use super::sanitize::{move_conv, split_experts, stack_experts};
use super::{Architecture, Config, drop_tied_head, parse};
use crate::batch::Batch;
use crate::blocks::{
    Attention, Backbone, Feed, FrameNames, Gate, Layered, Mixture, Mlp, Named, NamedBlock, Router, Scan, ScanSizes,
};
use crate::weights::At;
use lapis::{Array, Error, Result};
use lapis_nn::Module;
use lapis_nn::activations::silu;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    #[serde(flatten)]
    common: Common,
    attn_layer_offset: usize,
    attn_layer_period: usize,
    expert_layer_offset: usize,
    expert_layer_period: usize,
    mamba_d_conv: usize,
    mamba_d_state: usize,
    mamba_expand: usize,
    num_experts: usize,
    num_experts_per_tok: usize,
    mamba_dt_rank: Option<Rank>,
    #[serde(default)]
    mamba_proj_bias: bool,
    #[serde(default = "yes")]
    mamba_conv_bias: bool,
    layers_block_type: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

fn args(config: &Config) -> Result<Args> {
    let mut a: Args = parse(config)?;
    a.common.tie_word_embeddings |= !config.contains_key("tie_word_embeddings");
    for (key, period) in [("attn_layer_period", a.attn_layer_period), ("expert_layer_period", a.expert_layer_period)] {
        if period == 0 {
            return Err(super::settings::wrong(key, "it is 0"));
        }
    }
    Ok(a)
}

/// What looks at other tokens.
#[derive(Module, Clone)]
enum Mixer {
    Attention(Attention),
    Mamba(Scan),
}

impl Layered for Mixer {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        match self {
            Mixer::Attention(part) => part.forward(x, layer, batch),
            Mixer::Mamba(part) => part.forward(x, layer, batch),
        }
    }
}

impl Args {
    fn mixer(&self, at: &At, i: usize) -> Result<Named<Mixer>> {
        let c = &self.common;
        let attends = match &self.layers_block_type {
            None => i % self.attn_layer_period == self.attn_layer_offset,
            Some(kinds) => match kinds.get(i).map(String::as_str) {
                Some("attention") => true,
                Some("mamba") => false,
                other => {
                    let what = other.unwrap_or("nothing");
                    let text = format!("{what:?} of layer {i} is no kind of layer");
                    return Err(super::settings::wrong("layers_block_type", text));
                }
            },
        };
        if attends {
            let mut heads = c.heads()?;
            heads.rope = None;
            let attention = Attention::load(&at.at("self_attn"), c.hidden_size, heads, [false; 2])?;
            return Ok(Named("self_attn", Mixer::Attention(attention)));
        }
        let inner = self.mamba_expand.checked_mul(c.hidden_size);
        let sizes = ScanSizes {
            width: c.hidden_size,
            inner: inner.ok_or_else(|| super::settings::wrong("mamba_expand", "it is too large"))?,
            state: self.mamba_d_state,
            rank: Rank::of(self.mamba_dt_rank.as_ref(), c.hidden_size)?,
            kernel: self.mamba_d_conv,
            bias: [self.mamba_proj_bias, self.mamba_conv_bias],
        };
        let norm = |at: &At, name: &str, width: usize| c.norm(at, name, width).map(Some);
        Ok(Named("mamba", Mixer::Mamba(Scan::load(&at.at("mamba"), sizes, norm)?)))
    }

    fn product(&self, at: &At, i: usize) -> Result<Feed> {
        let (c, at) = (&self.common, at.at("feed_forward"));
        let (width, inner) = (c.hidden_size, c.intermediate_size);
        if self.num_experts < 2 || i % self.expert_layer_period != self.expert_layer_offset % self.expert_layer_period {
            return Mlp::load(&at, width, inner, false, silu).map(Feed::Dense);
        }
        let gate = Gate::Router { router: at.linear("router", width, self.num_experts, false)? };
        let sizes = [self.num_experts, width, inner];
        Mixture::behind(gate, &at, sizes, Router::softmax(self.num_experts_per_tok, false)).map(Feed::Experts)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["jamba"],
    sanitize: |config, tensors| {
        drop_tied_head(args(config)?.common.tie_word_embeddings, tensors);
        move_conv(tensors, "conv1d")?;
        split_experts(tensors)?;
        stack_experts(tensors, "switch_mlp", &[])
    },
    quantize: |path| eight_bits(path, &["router"]),
    load: |config, at| {
        let a = args(config)?;
        let c = &a.common;
        let norm = |at: &At, name: &str| c.norm(at, name, c.hidden_size);
        let named = |at: &At, name| Ok::<_, Error>(Named(name, norm(at, name)?));
        let layers = a.layers_block_type.as_ref().map_or(c.num_hidden_layers, Vec::len);
        let all = [c.vocab_size, c.hidden_size, layers];
        let head = (!c.tie_word_embeddings).then_some(false);
        boxed(Backbone::load(at, FrameNames::model("final_layernorm"), all, head, norm, |at, i| {
            Ok(NamedBlock {
                mixer: a.mixer(&at, i)?,
                product: Named("feed_forward", a.product(&at, i)?),
                before: named(&at, "input_layernorm")?,
                between: Some(named(&at, "pre_ff_layernorm")?),
                parallel: false,
            })
        })?)
    },
};
