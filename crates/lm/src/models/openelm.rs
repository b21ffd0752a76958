//! OpenELM: layers of different widths, by names of their own.

use super::common::boxed;
use super::settings::{Settings, wrong};
use super::{Architecture, Config};
use crate::blocks::{
    Backbone, FrameNames, Heads, Named, NamedAttention, NamedBlock, NamedGate, NamedInputs, NamedMlp, Norm, Rope,
};
use crate::weights::At;
use lapis::{Error, Result};
use lapis_nn::activations::silu;
use serde_json::json;

/// The multiple of `divisor` nearest to `n`, at least one of it, and not below nine tenths of `n`.
fn divisible(n: f64, divisor: usize) -> usize {
    let near = ((n + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    if (near as f64) < 0.9 * n { near + divisor } else { near }
}

/// A list with a number for each layer.
fn each<T: serde::de::DeserializeOwned + Copy>(s: &Settings, key: &str, layers: usize) -> Result<Vec<T>> {
    let list: Vec<T> = s.need(key)?;
    match list.len() {
        n if n < layers => Err(wrong(key, format!("{n} numbers for {layers} layers"))),
        _ => Ok(list),
    }
}

fn load(config: &Config, at: &At) -> Result<Box<dyn super::Model>> {
    let s = Settings::new(config, json!({ "rms_norm_eps": 1e-6, "rope_freq_constant": 1e4 }));
    let size = |key: &str| match s.need::<usize>(key)? {
        n if (1..1 << 24).contains(&n) => Ok(n),
        n => Err(wrong(key, format!("{n} is not a size"))),
    };
    let (layers, width, head) = (size("num_transformer_layers")?, size("model_dim")?, size("head_dim")?);
    let (queries, keys) = (each::<usize>(&s, "num_query_heads", layers)?, each(&s, "num_kv_heads", layers)?);
    let factors = each::<f64>(&s, "ffn_multipliers", layers)?;
    let (divisor, eps): (usize, f64) = (size("ffn_dim_divisor")?, s.need("rms_norm_eps")?);
    let norms = s.get("normalize_qk_projections")?.unwrap_or(true);
    let base = s.positive("rope_freq_constant")?;
    let rope = Rope::new(head, base, false, None, None)?;
    let norm = |at: &At, name: &str| Norm::rms(at, name, width, eps);
    let names =
        FrameNames { body: "transformer", table: "token_embeddings", layers: "layers", norm: "norm", head: "lm_head" };
    let tied = s.get("share_input_output_layers")?.unwrap_or(true);
    boxed(Backbone::load(at, names, [size("vocab_size")?, width, layers], (!tied).then_some(false), norm, |at, i| {
        super::common::multiple("num_query_heads", queries[i], "num_kv_heads", keys[i])?;
        if queries[i] > 1 << 20 || !(0.0..1e6).contains(&factors[i]) {
            return Err(wrong("ffn_multipliers", format!("{} or {} heads are no sizes", factors[i], queries[i])));
        }
        let heads = Heads::new(queries[i], keys[i], head, Some(rope.clone()));
        let (place, inputs) = (at.at("attn"), NamedInputs::Together("qkv_proj"));
        let mut attention = NamedAttention::load(&place, width, inputs, "out_proj", heads, [false; 2])?;
        if norms {
            let norm = |name| Ok::<_, Error>(Named(name, Norm::rms(&place, name, head, eps)?));
            attention = attention.with_norms(norm("q_norm")?, norm("k_norm")?, false);
        }
        let (sizes, names) = ([width, divisible(factors[i] * width as f64, divisor)], ["proj_1", "proj_2"]);
        Ok(NamedBlock {
            mixer: Named("attn", attention),
            product: Named("ffn", NamedMlp::load(&at.at("ffn"), sizes, NamedGate::First, names, false, silu)?),
            before: Named("attn_norm", norm(&at, "attn_norm")?),
            between: Some(Named("ffn_norm", norm(&at, "ffn_norm")?)),
            parallel: false,
        })
    })?)
}

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["openelm"], load);
