//! OLMo 2 and 3: norms after the parts of a layer and over all heads; in OLMo 3 three layers behind a window to one
//! without, which alone has scaled positions.

use super::Architecture;
use super::dense::{Dense, Order, Over};
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["olmo2"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    d.order = Order::After;
    d.head_norms = Over::Whole;
    Ok(Box::new(d.load(at)?))
});

pub(super) const OLMO3: Architecture = Architecture::plain(&["olmo3"], |config, at| {
    let mut d = Dense::read(config, json!({ "tie_word_embeddings": false }))?;
    let plain = d.settings.plain_rope(d.heads[0].width, "sliding_attention", "rope_theta", 1e4)?;
    d.slide(Some(4), |heads, sliding| {
        if sliding {
            heads.rope = Some(plain.clone());
        }
    })?;
    d.order = Order::After;
    d.head_norms = Over::Whole;
    Ok(Box::new(d.load(at)?))
});
