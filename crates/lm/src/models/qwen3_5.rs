//! Qwen 3.5: a Qwen 3 Next whose delta nets have a projection for each input, inside a model that sees.

use super::common::boxed;
use super::qwen3_next::{Args, packing, sanitize_delta};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config, parse};
use lapis::Result;
use serde_json::json;

fn args(config: &Config) -> Result<Args> {
    let defaults = json!({
        "num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0, "norm_topk_prob": true,
        "tie_word_embeddings": false,
    });
    let mut a: Args = parse(&text(config, defaults)?)?;
    let c = &mut a.common;
    c.partial_rotary_factor = c.inner("partial_rotary_factor").or(c.partial_rotary_factor).or(Some(0.25));
    c.rope_theta = c.inner("rope_theta").or(c.rope_theta).or(Some(100_000.0));
    Ok(a)
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_5_text"],
    sanitize: |config, tensors| {
        unwrap_text(config, tensors)?;
        sanitize_delta(tensors, usize::MAX)
    },
    quantize: packing,
    load: |config, at| boxed(Wrapped { language_model: args(config)?.load(&at.at("language_model"))? }),
};
