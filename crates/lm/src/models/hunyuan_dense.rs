//! Hunyuan, dense: a Llama with norms of each head after positions, whose base grows by a factor alpha.

use super::Architecture;
use super::dense::{Dense, Over};
use super::settings::wrong;
use crate::blocks::Rope;
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["hunyuan_v1_dense"], |config, at| {
    let mut plain = config.clone();
    let scaling = plain.remove("rope_scaling").filter(|s| !s.is_null());
    let defaults = json!({ "max_position_embeddings": 32768, "tie_word_embeddings": false });
    let mut d = Dense::read(&plain, defaults)?;
    let alpha = match &scaling {
        Some(block) => block.get("alpha").and_then(Value::as_f64).filter(|&a| a > 0.0),
        None => Some(1.0),
    };
    let alpha = alpha.ok_or_else(|| wrong("rope_scaling", "alpha is missing or no number above zero"))?;
    let theta = d.settings.get("rope_theta")?.unwrap_or(1e4);
    for heads in &mut d.heads {
        let width = heads.width as f64;
        let base = if alpha == 1.0 { theta } else { theta * alpha.powf(width / (width - 2.0)) };
        heads.rope = Some(Rope::new(heads.width, base, false, None, None)?);
    }
    d.mlp_bias = false;
    if d.settings.get("use_qk_norm")?.unwrap_or(true) {
        d.head_norms = Over::Late;
    }
    Ok(Box::new(d.load(at)?))
});
