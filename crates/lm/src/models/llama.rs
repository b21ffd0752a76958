//! Llama, Mistral and what has their shape.

use super::{Architecture, Config, Model, all_alike, drop_tied_head, parse};
use crate::blocks::{Attention, Block, Decoder, Heads, Mlp, Norm, Rope};
use crate::weights::At;
use lapis::Result;
use lapis_nn::activations::silu;
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: f64,
    #[serde(default = "base")]
    rope_theta: f64,
    #[serde(default)]
    rope_traditional: bool,
    rope_scaling: Option<Config>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
}

fn base() -> f64 {
    10000.0
}

fn yes() -> bool {
    true
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["llama", "mistral", "iquestcoder", "xverse"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.tie_word_embeddings, tensors);
        Ok(())
    },
    quantize: all_alike,
    load,
};

fn load(config: &Config, at: &At) -> Result<Box<dyn Model>> {
    let a: Args = parse(config)?;
    let width = a.head_dim.unwrap_or(a.hidden_size / a.num_attention_heads);
    let scaling = a.rope_scaling.as_ref();
    let rope = Rope::new(width, a.rope_theta, a.rope_traditional, scaling, a.max_position_embeddings)?;
    let keys = a.num_key_value_heads.unwrap_or(a.num_attention_heads);
    let sizes = [a.vocab_size, a.hidden_size, a.num_hidden_layers];
    let norm = |at: &At, name: &str| Norm::rms(at, name, a.hidden_size, a.rms_norm_eps);
    let decoder = Decoder::load(at, sizes, a.tie_word_embeddings, norm, |at, i| {
        let mut heads = Heads::new(a.num_attention_heads, keys, width, Some(rope.clone()));
        if a.layer_types.as_ref().and_then(|t| t.get(i)).is_some_and(|t| t == "sliding_attention") {
            heads.window = a.sliding_window;
        }
        Ok(Block {
            self_attn: Attention::load(&at.at("self_attn"), a.hidden_size, heads, [a.attention_bias; 2])?,
            mlp: Mlp::load(&at.at("mlp"), a.hidden_size, a.intermediate_size, a.mlp_bias, silu)?,
            input_layernorm: norm(&at, "input_layernorm")?,
            post_attention_layernorm: norm(&at, "post_attention_layernorm")?,
        })
    })?;
    Ok(Box::new(decoder))
}
