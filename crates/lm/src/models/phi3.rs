//! Phi 3 and 4: a Llama with fused projections, a part of each head turned.

use super::Architecture;
use super::dense::Dense;
use crate::blocks::Mlp;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["phi3"], |config, at| {
    let defaults = json!({
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "tie_word_embeddings": false,
    });
    let mut d = Dense::read(config, defaults)?;
    d.fused = true;
    d.bias = [false; 2];
    d.mlp = Mlp::fused;
    Ok(Box::new(d.load(at)?))
});
