//! Phi 3.5 MoE: attention with biases, norms by mean and variance, two experts chosen one after the other.

use super::common::boxed;
use super::sanitize::stack_experts;
use super::{Architecture, Config, Settings};
use crate::blocks::{Attention, Backbone, FrameNames, Heads, Mixture, Named, NamedBlock, Norm, Router, Rule};
use crate::weights::At;
use lapis::Error;
use serde_json::{Value, json};

/// Positions of the makers are scaled as `longrope`, whatever the config calls it.
fn settings(config: &Config) -> Settings {
    let mut config = config.clone();
    if let Some(Value::Object(block)) = config.get_mut("rope_scaling") {
        block.insert("type".into(), "longrope".into());
    }
    Settings::new(
        &config,
        json!({
            "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "num_local_experts": 16,
            "num_experts_per_tok": 2, "router_jitter_noise": 0.01,
        }),
    )
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    sanitize: |_, tensors| stack_experts(tensors, "switch_mlp", &[]),
    ..Architecture::plain(&["phimoe"], |config, at| {
        let s = settings(config);
        let (width, count, keys): (usize, usize, usize) =
            (s.need("hidden_size")?, s.need("num_attention_heads")?, s.need("num_key_value_heads")?);
        super::common::multiple("hidden_size", width, "num_attention_heads", count)?;
        super::common::multiple("num_attention_heads", count, "num_key_value_heads", keys)?;
        let rope = s.rope(width / count, "full_attention", "rope_theta", 1e4)?;
        let heads = Heads::new(count, keys, width / count, Some(rope));
        let eps: f64 = s.need("rms_norm_eps")?;
        let norm = |at: &At, name: &str| Norm::layer(at, name, width, eps, true);
        let named = |at: &At, name| Ok::<_, Error>(Named(name, norm(at, name)?));
        let sizes = [s.need("num_local_experts")?, width, s.need("intermediate_size")?];
        let rule = Rule::OneByOne(s.need("router_jitter_noise")?);
        let router = Router { rule, ..Router::softmax(s.need("num_experts_per_tok")?, false) };
        let all = [s.need("vocab_size")?, width, s.need("num_hidden_layers")?];
        boxed(Backbone::load(at, FrameNames::model("norm"), all, Some(true), norm, |at, _| {
            let place = at.at("block_sparse_moe");
            Ok::<_, Error>(NamedBlock {
                mixer: Named("self_attn", Attention::load(&at.at("self_attn"), width, heads.clone(), [true; 2])?),
                product: Named("block_sparse_moe", Mixture::load(&place, sizes, router.clone())?),
                before: named(&at, "input_layernorm")?,
                between: Some(named(&at, "post_attention_layernorm")?),
                parallel: false,
            })
        })?)
    })
};
