//! Qwen 3, and the text part of those that see: a Llama with norms of each head.

use super::dense::{Dense, Over};
use super::wrapped::{Wrapped, text, unwrap_text};
use super::{Architecture, Config};
use lapis::Result;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture =
    Architecture::plain(&["qwen3"], |config, at| Ok(Box::new(read(config)?.load(at)?)));

pub(super) const VISION: Architecture = Architecture {
    sanitize: unwrap_text,
    ..Architecture::plain(&["qwen3_vl"], |config, at| {
        let text = text(config, json!({ "tie_word_embeddings": true }))?;
        Ok(Box::new(Wrapped { language_model: read(&text)?.load(&at.at("language_model"))? }))
    })
};

fn read(config: &Config) -> Result<Dense> {
    let mut d = Dense::read(config, json!({}))?;
    d.head_norms = Over::Each;
    Ok(d)
}
