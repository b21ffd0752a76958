//! Mamba 2, and the layer that it shares with Nemotron H: one part behind a norm.

use super::common::boxed;
use super::sanitize::move_conv;
use super::{Architecture, all_alike, drop_tied_head, parse};
use crate::batch::Batch;
use crate::blocks::{Attention, Backbone, FrameNames, Layered, Mamba2, MambaSizes, Mixture, Norm, Squared};
use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Module};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_heads: usize,
    head_dim: usize,
    state_size: usize,
    ssm_state_size: Option<usize>,
    conv_kernel: usize,
    n_groups: usize,
    use_bias: bool,
    use_conv_bias: bool,
    layer_norm_epsilon: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    time_step_limit: Option<[Option<f64>; 2]>,
}

/// Bounds of steps; what is absent or null does not bound.
pub(super) fn limits(given: Option<[Option<f64>; 2]>) -> [f64; 2] {
    let [low, high] = given.unwrap_or_default();
    [low.unwrap_or(0.0), high.unwrap_or(f64::INFINITY)]
}

/// What a layer does.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub(super) enum Part {
    Mamba(Mamba2),
    Attention(Attention),
    Squared(Squared),
    Experts(Mixture),
}

/// A part behind a norm, added to its input.
#[derive(Module, Clone)]
pub(super) struct Block {
    pub(super) norm: Norm,
    pub(super) mixer: Part,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = self.norm.forward(x)?;
        let y = match &self.mixer {
            Part::Mamba(part) => part.forward(&rows, layer, batch),
            Part::Attention(part) => part.forward(&rows, layer, batch),
            Part::Squared(part) => part.forward(&rows),
            Part::Experts(part) => part.forward(&rows),
        };
        ops::add(x, y?)
    }
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["mamba2"],
    sanitize: |config, tensors| {
        drop_tied_head(parse::<Args>(config)?.tie_word_embeddings, tensors);
        move_conv(tensors, "conv1d").map(drop)
    },
    quantize: all_alike,
    load: |config, at| {
        let a: Args = parse(config)?;
        let sizes = MambaSizes {
            width: a.hidden_size,
            heads: [a.num_heads, a.head_dim],
            state: a.ssm_state_size.unwrap_or(a.state_size),
            groups: a.n_groups,
            kernel: a.conv_kernel,
            limit: limits(a.time_step_limit),
            bias: [a.use_bias, a.use_conv_bias, a.use_bias],
            together: a.num_heads * a.head_dim,
            early: false,
            eps: a.layer_norm_epsilon,
        };
        let all = [a.vocab_size, a.hidden_size, a.num_hidden_layers];
        let head = (!a.tie_word_embeddings).then_some(false);
        let last = |at: &At, name: &str| Norm::rms(at, name, a.hidden_size, a.layer_norm_epsilon);
        boxed(Backbone::load(at, FrameNames::MAMBA, all, head, last, |at, _| {
            let mixer = Part::Mamba(Mamba2::load(&at.at("mixer"), sizes)?);
            Ok(Block { norm: Norm::rms(&at, "norm", a.hidden_size, 1e-5)?, mixer })
        })?)
    },
};
