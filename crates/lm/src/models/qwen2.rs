//! Qwen 2 and 2.5: a Llama with biases to queries, keys and values.

use super::Architecture;
use super::dense::Dense;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["qwen2"], |config, at| {
    let mut d = Dense::read(config, json!({ "rope_theta": 1e6, "max_position_embeddings": 32768 }))?;
    d.bias = [true, false];
    Ok(Box::new(d.load(at)?))
});
