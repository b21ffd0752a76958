//! Qwen 3: a Llama with norms of each head.

use super::Architecture;
use super::dense::{Dense, Over};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["qwen3"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    d.head_norms = Over::Each;
    Ok(Box::new(d.load(at)?))
});
