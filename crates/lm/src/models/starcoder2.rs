//! StarCoder 2: norms by mean and variance, biases everywhere, products without gates.

use super::Architecture;
use super::dense::Dense;
use crate::blocks::Mlp;
use lapis_nn::activations::gelu;
use serde_json::json;

pub(super) const ARCHITECTURE: Architecture = Architecture::plain(&["starcoder2"], |config, at| {
    let mut d = Dense::read(config, json!({ "vocab_size": 49152, "rope_theta": 1e5 }))?;
    d.layer_norms(true, "norm_epsilon")?;
    d.bias = [true; 2];
    d.mlp_bias = true;
    d.mlp = Mlp::plain;
    d.activation = gelu;
    Ok(Box::new(d.load(at)?))
});
