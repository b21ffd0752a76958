//! The Llama architecture at a tiny size, with the names of its checkpoints.
//!
//! A token is a row of a table; each layer adds what attention over the earlier tokens gives, then what a gated product
//! gives; the same table turns the last row into logits.

use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::prelude::*;
use lapis_nn::activations::silu;
use lapis_nn::{Embedding, Layer, Linear, Module, RMSNorm, RoPE};
use serde::{Deserialize, Serialize};

/// Sizes, as in config.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) num_key_value_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) rope_theta: f64,
}

/// Keys and values of the tokens seen, layer by layer.
#[derive(Default)]
pub(crate) struct Cache(Vec<(Array, Array)>);

impl Cache {
    fn length(&self) -> usize {
        self.0.first().map_or(0, |(k, _)| k.dim(2))
    }

    /// What is kept, to evaluate.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.0.iter().flat_map(|(k, v)| [k, v])
    }
}

#[derive(Module, Clone)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    rope: RoPE,
    #[plain]
    heads: (usize, usize),
}

impl Attention {
    fn forward(&self, x: &Array, past: Option<&(Array, Array)>) -> Result<(Array, (Array, Array))> {
        let (batch, length) = (x.dim(0), x.dim(1));
        let split = |x: Array, heads: usize| {
            ops::transpose(&ops::reshape(&x, &[batch as i64, length as i64, heads as i64, -1])?, Some(&[0, 2, 1, 3]))
        };
        let offset = past.map_or(0, |(k, _)| k.dim(2) as i64);
        let q = self.rope.forward(&split(self.q_proj.forward(x)?, self.heads.0)?, offset)?;
        let mut k = self.rope.forward(&split(self.k_proj.forward(x)?, self.heads.1)?, offset)?;
        let mut v = split(self.v_proj.forward(x)?, self.heads.1)?;
        if let Some((old_k, old_v)) = past {
            k = ops::concatenate(&[old_k.clone(), k], 2)?;
            v = ops::concatenate(&[old_v.clone(), v], 2)?;
        }
        let scale = (q.dim(3) as f64).powf(-0.5);
        let options = AttentionOptions { scale, mask: AttentionMask::Causal, ..Default::default() };
        let y = scaled_dot_product_attention(&q, &k, &v, &options)?;
        let y = ops::reshape(&ops::transpose(&y, Some(&[0, 2, 1, 3]))?, &[batch as i64, length as i64, -1])?;
        Ok((self.o_proj.forward(&y)?, (k, v)))
    }
}

#[derive(Module, Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.down_proj.forward(&ops::multiply(silu(&self.gate_proj.forward(x)?)?, self.up_proj.forward(x)?)?)
    }
}

#[derive(Module, Clone)]
struct Block {
    self_attn: Attention,
    mlp: Mlp,
    input_layernorm: RMSNorm,
    post_attention_layernorm: RMSNorm,
}

impl Block {
    fn new(c: &Config) -> Result<Block> {
        let (width, head) = (c.hidden_size, c.hidden_size / c.num_attention_heads);
        let linear = |input, output| Linear::new(input, output, false);
        Ok(Block {
            self_attn: Attention {
                q_proj: linear(width, c.num_attention_heads * head)?,
                k_proj: linear(width, c.num_key_value_heads * head)?,
                v_proj: linear(width, c.num_key_value_heads * head)?,
                o_proj: linear(c.num_attention_heads * head, width)?,
                rope: RoPE::new(head, false, c.rope_theta, 1.0),
                heads: (c.num_attention_heads, c.num_key_value_heads),
            },
            mlp: Mlp {
                gate_proj: linear(width, c.intermediate_size)?,
                up_proj: linear(width, c.intermediate_size)?,
                down_proj: linear(c.intermediate_size, width)?,
            },
            input_layernorm: RMSNorm::new(width, c.rms_norm_eps)?,
            post_attention_layernorm: RMSNorm::new(width, c.rms_norm_eps)?,
        })
    }
}

#[derive(Module, Clone)]
struct Body {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RMSNorm,
}

/// The model; parameters are called as in checkpoints: `model.layers.0.self_attn.q_proj.weight`.
#[derive(Module, Clone)]
pub(crate) struct Llama {
    model: Body,
}

impl Llama {
    /// Random weights from lapis's generator.
    pub(crate) fn new(c: &Config) -> Result<Llama> {
        let embed_tokens = Embedding::new(c.vocab_size, c.hidden_size)?;
        let layers = (0..c.num_hidden_layers).map(|_| Block::new(c)).collect::<Result<_>>()?;
        let norm = RMSNorm::new(c.hidden_size, c.rms_norm_eps)?;
        let mut model = Llama { model: Body { embed_tokens, layers, norm } };
        // What layers add begins small, so that the sum over all of them has the size of one.
        let small = (1.0 / (2.0 * c.num_hidden_layers as f64)).sqrt();
        model.apply(&mut |name, weight| {
            let last = name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight");
            if last { ops::multiply(weight, small) } else { Ok(weight.clone()) }
        })?;
        Ok(model)
    }

    /// Tokens (batch, length) to logits (batch, length, vocabulary). With a cache they follow those it has seen.
    pub(crate) fn forward(&self, tokens: &Array, mut cache: Option<&mut Cache>) -> Result<Array> {
        let body = &self.model;
        let mut x = body.embed_tokens.forward(tokens)?;
        let mut seen = Vec::new();
        for (i, layer) in body.layers.iter().enumerate() {
            let past = cache.as_ref().and_then(|c| c.0.get(i));
            let (y, kv) = layer.self_attn.forward(&layer.input_layernorm.forward(&x)?, past)?;
            x = ops::add(&x, &y)?;
            x = ops::add(&x, &layer.mlp.forward(&layer.post_attention_layernorm.forward(&x)?)?)?;
            seen.push(kv);
        }
        if let Some(cache) = &mut cache {
            cache.0 = seen;
        }
        body.embed_tokens.as_linear(&body.norm.forward(&x)?)
    }

    /// Logits (vocabulary) after the last of `tokens`, which follow those in the cache.
    pub(crate) fn next(&self, tokens: &[i32], cache: &mut Cache) -> Result<Array> {
        let logits = self.forward(&Array::from_slice(tokens, &[1, tokens.len()]), Some(cache))?;
        let last = array([tokens.len() as i32 - 1]);
        ops::reshape(&ops::take(&logits, &last, 1)?, &[-1])
    }

    /// Whether another token has room in the context.
    pub(crate) fn has_room(c: &Config, cache: &Cache) -> bool {
        cache.length() + 1 < c.max_position_embeddings
    }
}
