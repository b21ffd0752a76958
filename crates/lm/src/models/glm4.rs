//! GLM 4: norms around both parts of a layer, neighbouring features of half a head turned.

use super::Architecture;
use super::dense::{Dense, Order};
use crate::blocks::Mlp;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["glm4"], |config, at| {
    let defaults = json!({
        "partial_rotary_factor": 0.5, "rope_traditional": true, "max_position_embeddings": 32768,
        "tie_word_embeddings": false,
    });
    let mut d = Dense::read(config, defaults)?;
    d.bias[1] = false;
    d.mlp = Mlp::fused;
    d.order = Order::Between;
    Ok(Box::new(d.load(at)?))
});
