//! Command R: attention and product side by side, norms by mean and variance, also of each head in some.

use super::Architecture;
use super::dense::{Dense, Order, Over};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["cohere"], |config, at| {
    let defaults = json!({
        "hidden_size": 8192, "num_hidden_layers": 40, "intermediate_size": 22528, "num_attention_heads": 64,
        "num_key_value_heads": 64, "rope_theta": 8e6, "vocab_size": 256000, "logit_scale": 0.0625,
        "rope_traditional": true,
    });
    let mut d = Dense::read(config, defaults)?;
    d.layer_norms(d.settings.is("layer_norm_bias")?, "layer_norm_eps")?;
    if d.settings.is("use_qk_norm")? {
        d.head_norms = Over::Table;
    }
    d.order = Order::Shared;
    d.logit_scale = d.settings.need("logit_scale")?;
    d.tied = true;
    Ok(Box::new(d.load(at)?))
});
