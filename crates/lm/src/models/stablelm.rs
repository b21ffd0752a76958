//! StableLM: norms by mean and variance, of each head in some, attention and product side by side in some.

use super::Architecture;
use super::dense::{Dense, Order, Over};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["stablelm"], |config, at| {
    let mut d = Dense::read(config, json!({ "tie_word_embeddings": false, "partial_rotary_factor": 0.25 }))?;
    d.layer_norms(true, "layer_norm_eps")?;
    d.bias = [d.settings.is("use_qkv_bias")?, false];
    if d.settings.is("use_parallel_residual")? {
        d.order = Order::Shared;
    }
    if d.settings.is("qk_layernorm")? {
        d.head_norms = Over::Own;
    }
    Ok(Box::new(d.load(at)?))
});
