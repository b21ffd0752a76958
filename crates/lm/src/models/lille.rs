//! Lille: a Llama by other names, with norms inside the parts of a layer.

use super::classic::{Classic, Inputs, Names};
use super::settings::wrong;
use super::{Architecture, Settings};
use crate::blocks::{Heads, Rope};
use lapis_nn::activations::silu;
use serde_json::Value;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["lille-130m"], |config, at| {
    let s = Settings::new(config, Value::Null);
    let (width, count, keys): (usize, usize, usize) = (s.need("n_embd")?, s.need("n_head")?, s.need("n_kv_heads")?);
    if keys == 0 || count % keys != 0 {
        return Err(wrong("n_head", format!("{count} is no multiple of n_kv_heads, {keys}")));
    }
    let rope = Rope::new(width / count, s.positive("rope_theta")?, true, None, None)?;
    let names = Names {
        body: "transformer",
        table: "tok_embeddings",
        positions: None,
        layers: "layers",
        norm: "norm",
        head: None,
        attention: "attention",
        inputs: Inputs::Together("qkv_proj"),
        output: "out_proj",
        mlp: "feed_forward",
        gate: Some("gate_proj"),
        up: "up_proj",
        down: "down_proj",
        norms: ("attention.norm", Some("feed_forward.norm")),
    };
    Classic {
        names,
        vocabulary: s.need("vocab_size")?,
        width,
        // The multiple of 256 nearest to 8/3 of the width.
        inner: 256 * ((8 * width / 3) as f64 / 256.0).round_ties_even() as usize,
        layers: s.need("n_layer")?,
        positions: 0,
        heads: Heads::new(count, keys, width / count, Some(rope)),
        rms: true,
        eps: s.positive("layer_norm_eps")?,
        bias: [false; 4],
        activation: silu,
        parallel: false,
    }
    .load(at)
});
