//! Qwen 2 and 2.5, and the text part of those that see: a Llama with biases to queries, keys and values.

use super::dense::Dense;
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config};
use lapis::Result;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture =
    Architecture::plain(&["qwen2"], |config, at| Ok(Box::new(read(config)?.load(at)?)));

pub(super) const VISION: Architecture = Architecture {
    sanitize: unwrap_text,
    ..Architecture::plain(&["qwen2_vl", "qwen2_5_vl"], |config, at| {
        let text = text(config, json!({ "tie_word_embeddings": true }))?;
        Ok(Box::new(Wrapped { language_model: read(&text)?.load(&at.at("language_model"))? }))
    })
};

fn read(config: &Config) -> Result<Dense> {
    let mut d = Dense::read(config, json!({ "rope_theta": 1e6, "max_position_embeddings": 32768 }))?;
    d.bias = [true, false];
    Ok(d)
}
