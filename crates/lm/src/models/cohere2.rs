//! Command R7B and A: attention and product side by side; layers behind a window have positions, the others none.

use super::Architecture;
use super::dense::{Dense, Order};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["cohere2"], |config, at| {
    let defaults = json!({
        "hidden_size": 4096, "head_dim": 128, "num_hidden_layers": 32, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 5e4, "vocab_size": 256000,
        "logit_scale": 0.0625, "sliding_window": 4096, "sliding_window_pattern": 4, "rope_traditional": true,
    });
    let mut d = Dense::read(config, defaults)?;
    d.slide(d.settings.get("sliding_window_pattern")?, |heads, sliding| {
        heads.rope = heads.rope.take().filter(|_| sliding);
    })?;
    d.layer_norms(d.settings.is("layer_norm_bias")?, "layer_norm_eps")?;
    d.order = Order::Shared;
    d.logit_scale = d.settings.need("logit_scale")?;
    d.tied = true;
    Ok(Box::new(d.load(at)?))
});
