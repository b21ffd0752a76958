//! Gemma: a Llama with scaled embeddings and weights of norms stored less one.

use super::Architecture;
use super::dense::{Dense, Kind};
use lapis_nn::activations::gelu;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["gemma"], |config, at| {
    let mut d = Dense::read(config, json!({}))?;
    d.norm = Kind::RmsPlusOne;
    d.activation = gelu;
    d.embedding_scale = (d.width as f64).sqrt();
    d.tied = true;
    Ok(Box::new(d.load(at)?))
});
