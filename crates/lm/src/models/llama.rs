//! Llama, Mistral and what has their shape.

use super::Architecture;
use super::dense::Dense;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture =
    Architecture::plain(&["llama", "mistral", "iquestcoder", "xverse"], |config, at| {
        Ok(Box::new(Dense::read(config, json!({}))?.load(at)?))
    });
