//! Nemotron and Minitron: norms whose weights are stored less one, products without gates.

use super::Architecture;
use super::dense::{Dense, Kind};
use crate::blocks::Mlp;
use lapis_nn::activations::relu2;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["nemotron"], |config, at| {
    let mut d = Dense::read(config, json!({ "partial_rotary_factor": 0.5, "tie_word_embeddings": false }))?;
    d.norm = Kind::LayerPlusOne;
    d.eps = d.settings.positive("norm_eps")?;
    d.mlp = Mlp::ungated;
    d.activation = relu2;
    Ok(Box::new(d.load(at)?))
});
