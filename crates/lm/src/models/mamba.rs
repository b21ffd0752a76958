//! Mamba and Falcon Mamba: a recurrence in every layer and nothing else.

use super::common::boxed;
use super::sanitize::move_conv;
use super::{Architecture, Config, all_alike, parse};
use crate::batch::Batch;
use crate::blocks::{Backbone, FrameNames, Layered, Norm, Scan, ScanSizes};
use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Module};
use serde::Deserialize;

#[derive(Deserialize)]
struct Args {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    state_size: usize,
    num_hidden_layers: usize,
    conv_kernel: usize,
    use_bias: bool,
    use_conv_bias: bool,
    time_step_rank: Rank,
    tie_word_embeddings: Option<bool>,
    #[serde(default)]
    use_bcdt_rms: bool,
    #[serde(default = "eps")]
    mixer_rms_eps: f64,
}

fn eps() -> f64 {
    1e-6
}

/// The width of the short row that steps are made of: a number, or `auto`.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub(super) enum Rank {
    Number(usize),
    Name(String),
}

impl Rank {
    /// For rows of this width.
    pub(super) fn of(this: Option<&Rank>, width: usize) -> Result<usize> {
        match this {
            Some(Rank::Number(n)) if (1..1 << 24).contains(n) => Ok(*n),
            Some(Rank::Name(name)) if name == "auto" => Ok(width.div_ceil(16)),
            None => Ok(width.div_ceil(16)),
            _ => Err(super::settings::wrong("time_step_rank", "it is neither a size nor \"auto\"")),
        }
    }
}

/// A recurrence behind a norm, added to its input.
#[derive(Module, Clone)]
struct Block {
    mixer: Scan,
    norm: Norm,
}

impl Layered for Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        ops::add(self.mixer.forward(&self.norm.forward(x)?, layer, batch)?, x)
    }
}

fn load(config: &Config, at: &At) -> Result<Backbone<Block>> {
    let a: Args = parse(config)?;
    let sizes = ScanSizes {
        width: a.hidden_size,
        inner: a.intermediate_size,
        state: a.state_size,
        rank: Rank::of(Some(&a.time_step_rank), a.hidden_size)?,
        kernel: a.conv_kernel,
        bias: [a.use_bias, a.use_conv_bias],
    };
    let bare = a.use_bcdt_rms || a.model_type == "falcon_mamba";
    let norm = |at: &At, name: &str| Norm::rms(at, name, a.hidden_size, 1e-5);
    let all = [a.vocab_size, a.hidden_size, a.num_hidden_layers];
    let head = (a.tie_word_embeddings == Some(false)).then_some(false);
    Backbone::load(at, FrameNames::MAMBA, all, head, norm, |at, _| {
        let inside = |_: &At, _: &str, _: usize| Ok(bare.then_some(Norm::Bare(a.mixer_rms_eps)));
        Ok(Block { mixer: Scan::load(&at.at("mixer"), sizes, inside)?, norm: norm(&at, "norm")? })
    })
}

pub(super) const ARCHITECTURE: Architecture = Architecture {
    names: &["mamba", "falcon_mamba"],
    sanitize: |_, tensors| move_conv(tensors, "conv1d").map(drop),
    quantize: all_alike,
    load: |config, at| boxed(load(config, at)?),
};
