//! Gemma 2: norms around both parts of a layer, capped scores and logits, every other layer behind a window.

use super::Architecture;
use super::dense::{Dense, Kind, Order};
use lapis_nn::activations::gelu_approx;
use serde_json::{Value, json};

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["gemma2"], |config, at| {
    let defaults = json!({ "query_pre_attn_scalar": 144.0, "sliding_window": 4096 });
    let mut d = Dense::read(config, defaults)?;
    // null says that there is no cap.
    let cap = |key: &str, usual: f64| match config.get(key) {
        Some(Value::Null) => Ok(None),
        _ => Ok::<_, lapis::Error>(Some(d.settings.get(key)?.unwrap_or(usual))),
    };
    let (softcap, logit_cap) = (cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?);
    d.logit_cap = logit_cap.unwrap_or(0.0);
    d.scale_scores(d.settings.positive("query_pre_attn_scalar")?.powf(-0.5));
    let window = d.window()?;
    for (i, heads) in d.heads.iter_mut().enumerate() {
        heads.softcap = softcap;
        heads.window = window.filter(|_| i % 2 == 0);
    }
    d.norm = Kind::RmsPlusOne;
    d.order = Order::Around;
    d.activation = gelu_approx;
    d.embedding_scale = (d.width as f64).sqrt();
    d.tied = true;
    Ok(Box::new(d.load(at)?))
});
