//! The architectures, one file each, and the table that finds them by `model_type`.

mod apertus;
mod bailing_linear;
mod bailing_moe;
mod bert;
mod bitnet;
mod classic;
mod cohere;
mod cohere2;
mod common;
mod deepseek_v3;
mod dense;
mod ernie4_5_moe;
mod exaone;
mod exaone4;
mod falcon_h1;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gemma_common;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granitemoehybrid;
mod hunyuan_dense;
mod internlm2;
mod jamba;
mod kimi_linear;
mod lfm2;
mod lille;
mod llama;
mod llama4;
mod mamba;
mod mamba2;
mod minicpm;
mod minimax;
mod ministral3;
mod mixtral;
mod nanochat;
mod nemotron;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmoe;
mod openelm;
mod phi;
mod phi3;
mod phimoe;
mod phixtral;
mod plamo;
mod qwen;
mod qwen2;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod rwkv7;
mod sanitize;
mod settings;
mod smollm3;
mod stablelm;
mod starcoder2;
mod step3p5;
mod wrapped;

pub(crate) use settings::Settings;

use crate::batch::Batch;
use crate::checkpoint::Checkpoint;
use crate::weights::{At, Weights};
use lapis::distributed::Group;
use lapis::io::Arrays;
use lapis::ops::quantize::Format;
use lapis::{Array, Error, Result};
use lapis_nn::Module;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A language model.
pub trait Model: Copied + Send + Sync {
    /// Tokens, integers `(rows,)`, to rows of the last layer, `(rows, width)`, after its norm: of all, or, where the batch is
    /// [narrow](Batch::is_narrow) afterwards, those that are looked at.
    ///
    /// # Errors
    /// Sizes that do not fit. At evaluation: a token beyond the vocabulary.
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array>;

    /// Rows of the last layer to logits `(rows, vocabulary)`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    fn logits(&self, hidden: &Array) -> Result<Array>;

    /// The tree of parameters.
    fn module(&self) -> &dyn Module;

    /// As [`Model::module`], to change it.
    fn module_mut(&mut self) -> &mut dyn Module;

    /// Layers.
    fn depth(&self) -> usize;

    /// Whether tokens see those after them. Such a model reads a text in one step and has no logits.
    fn is_encoder(&self) -> bool {
        false
    }
}

/// Copying a model of unknown type: the copy shares its arrays. Every model that is `Clone` can be copied.
pub trait Copied {
    /// The copy.
    fn copied(&self) -> Box<dyn Model>;
}

impl<M: Model + Clone + 'static> Copied for M {
    fn copied(&self) -> Box<dyn Model> {
        Box::new(self.clone())
    }
}

/// A config as a model file reads it.
pub type Config = Map<String, Value>;

/// An architecture.
pub struct Architecture {
    /// The `model_type`s that it reads.
    pub names: &'static [&'static str],
    /// Other names and layouts of tensors to lapis's.
    pub sanitize: fn(&Config, &mut Arrays) -> Result<()>,
    /// How `convert` packs the layer at a path.
    pub quantize: fn(&str) -> Packing,
    /// Builds the model from tensors.
    pub load: fn(&Config, &At) -> Result<Box<dyn Model>>,
}

impl Architecture {
    /// One whose tensors need nothing, and whose layers are packed alike.
    const fn plain(names: &'static [&'static str], load: fn(&Config, &At) -> Result<Box<dyn Model>>) -> Architecture {
        Architecture { names, sanitize: |_, _| Ok(()), quantize: all_alike, load }
    }
}

/// How a layer is packed when a model is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Packing {
    /// As the model.
    Base,
    /// In a form of its own.
    As(Format),
    /// Not at all.
    Never,
}

/// [`Packing::Base`] for every layer.
pub(crate) fn all_alike(_: &str) -> Packing {
    Packing::Base
}

/// All of them.
pub const ALL: &[&Architecture] = &[
    &apertus::ARCHITECTURE,
    &bailing_linear::ARCHITECTURE,
    &bailing_linear::LATENT,
    &bailing_moe::ARCHITECTURE,
    &bert::ARCHITECTURE,
    &bitnet::ARCHITECTURE,
    &cohere2::ARCHITECTURE,
    &cohere::ARCHITECTURE,
    &deepseek_v3::ARCHITECTURE,
    &deepseek_v3::GLM,
    &deepseek_v3::KIMI,
    &deepseek_v3::V2,
    &ernie4_5_moe::ARCHITECTURE,
    &exaone4::ARCHITECTURE,
    &exaone::ARCHITECTURE,
    &falcon_h1::ARCHITECTURE,
    &gemma2::ARCHITECTURE,
    &gemma3::ARCHITECTURE,
    &gemma3::TEXT,
    &gemma3n::ARCHITECTURE,
    &gemma4::ARCHITECTURE,
    &gemma4::TEXT,
    &gemma::ARCHITECTURE,
    &glm4::ARCHITECTURE,
    &glm4_moe::ARCHITECTURE,
    &glm4_moe::DOTS,
    &glm4_moe::EXAONE,
    &gpt2::ARCHITECTURE,
    &gpt2::BIGCODE,
    &gpt_neox::ARCHITECTURE,
    &gpt_oss::ARCHITECTURE,
    &gptj::ARCHITECTURE,
    &granite::ARCHITECTURE,
    &granitemoehybrid::ARCHITECTURE,
    &granitemoehybrid::GRANITE3,
    &hunyuan_dense::ARCHITECTURE,
    &internlm2::ARCHITECTURE,
    &jamba::ARCHITECTURE,
    &kimi_linear::ARCHITECTURE,
    &lfm2::ARCHITECTURE,
    &lfm2::MOE,
    &lfm2::VISION,
    &lille::ARCHITECTURE,
    &llama::ARCHITECTURE,
    &llama::ERNIE,
    &llama::GLM,
    &llama::HELIUM,
    &llama::INTERNLM3,
    &llama::MIMO,
    &llama::SEED_OSS,
    &llama::TELECHAT3,
    &llama4::ARCHITECTURE,
    &llama4::TEXT,
    &mamba2::ARCHITECTURE,
    &mamba::ARCHITECTURE,
    &minicpm::ARCHITECTURE,
    &minimax::ARCHITECTURE,
    &ministral3::ARCHITECTURE,
    &ministral3::MISTRAL3,
    &mixtral::ARCHITECTURE,
    &nanochat::ARCHITECTURE,
    &nemotron::ARCHITECTURE,
    &nemotron_h::ARCHITECTURE,
    &olmo2::ARCHITECTURE,
    &olmo2::OLMO3,
    &olmo::ARCHITECTURE,
    &olmoe::ARCHITECTURE,
    &openelm::ARCHITECTURE,
    &phi3::ARCHITECTURE,
    &phi::ARCHITECTURE,
    &phimoe::ARCHITECTURE,
    &phixtral::ARCHITECTURE,
    &plamo::ARCHITECTURE,
    &qwen2::ARCHITECTURE,
    &qwen2::VISION,
    &qwen3::ARCHITECTURE,
    &qwen3::VISION,
    &qwen3_5::ARCHITECTURE,
    &qwen3_moe::ARCHITECTURE,
    &qwen3_moe::QWEN2,
    &qwen3_moe::VISION,
    &qwen3_next::ARCHITECTURE,
    &qwen::ARCHITECTURE,
    &rwkv7::ARCHITECTURE,
    &smollm3::ARCHITECTURE,
    &stablelm::ARCHITECTURE,
    &starcoder2::ARCHITECTURE,
    &step3p5::ARCHITECTURE,
];

/// Which parameters of a model of this config keep their type when the others are cast, by their paths: biases of
/// routers, and in some types how fast a recurrence fades.
pub fn keeps_type(config: &Config) -> fn(&str) -> bool {
    fn router(path: &str) -> bool {
        ["e_score_correction_bias", "expert_bias", "router_bias"].iter().any(|name| path.ends_with(name))
    }
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "kimi_linear" => |path| router(path) || path.ends_with("A_log") || path.ends_with("dt_bias"),
        "nemotron_h" => |path| router(path) || path.ends_with("A_log"),
        _ if kind.starts_with("qwen3_5") => |path| router(path) || path.ends_with("A_log"),
        _ => router,
    }
}

/// Whether the model of a config is an encoder: it gives embeddings and writes nothing.
pub fn is_encoder(config: &Config) -> bool {
    config.get("model_type").and_then(Value::as_str).is_some_and(|kind| bert::NAMES.contains(&kind))
}

/// Rows of the table of positions that no token has.
pub(crate) fn first_position(config: &Config) -> usize {
    bert::first_position(config)
}

/// Gives tensors that were saved without a head the names of those with one; whether there is no head at all.
fn add_body(config: &mut Config, tensors: &mut Arrays) -> bool {
    if !tensors.contains_key("embed_tokens.weight") {
        return false;
    }
    let named = std::mem::take(tensors).into_iter();
    tensors.extend(
        named.map(|(name, t)| if name.starts_with("lm_head.") { (name, t) } else { (format!("model.{name}"), t) }),
    );
    let headless =
        config.get("tie_word_embeddings") != Some(&Value::Bool(true)) && !tensors.contains_key("lm_head.weight");
    if headless {
        config.insert("tie_word_embeddings".into(), true.into());
    }
    headless
}

/// The architecture of a config.
///
/// # Errors
/// A type that is not known, with the nearest names.
pub fn find(config: &Config) -> Result<&'static Architecture> {
    let Some(kind) = config.get("model_type").and_then(Value::as_str) else {
        return Err(Error::value("[load] config.json has no model_type: it is not the config of a language model"));
    };
    let plain = |name: &str| name.replace('-', "_");
    if let Some(found) = ALL.iter().find(|a| a.names.iter().any(|n| plain(n) == plain(kind))) {
        return Ok(found);
    }
    let mut names: Vec<&str> = ALL.iter().flat_map(|a| a.names).copied().collect();
    let near = crate::nearest(names.iter().copied(), kind).join(", ");
    names.sort_unstable();
    let what = match config.get("model_file").or(config.get("auto_map")) {
        Some(_) => "; its own code (model_file, auto_map) is never run",
        None => "",
    };
    Err(Error::unsupported(format!(
        "[load] model_type {kind:?} is not supported{what}.\n  Nearest: {near}\n  Supported: {}",
        names.join(", ")
    )))
}

/// Builds the model of a checkpoint.
///
/// # Errors
/// An architecture that is not known; numbers of the config and tensors that do not fit it.
pub fn load(checkpoint: &mut Checkpoint) -> Result<Box<dyn Model>> {
    let architecture = find(&checkpoint.config)?;
    settings::check(&checkpoint.config)?;
    let mut tensors = std::mem::take(&mut checkpoint.tensors);
    checkpoint.headless = add_body(&mut checkpoint.config, &mut tensors);
    let buffers = ["rotary_emb.inv_freq", "rope.inv_freq", "masked_bias"];
    tensors.retain(|name, _| !buffers.iter().any(|b| name.ends_with(b)));
    (architecture.sanitize)(&checkpoint.config, &mut tensors)?;
    let weights = Weights::new(tensors, checkpoint.plan.clone());
    let mut model = (architecture.load)(&checkpoint.config, &weights.root())?;
    weights.finish(checkpoint)?;
    model.module_mut().eval();
    let paths: Vec<String> = model.module().parameters().into_keys().collect();
    let inside = |layer: &str| paths.iter().any(|p| p.strip_prefix(layer).is_some_and(|rest| rest.starts_with('.')));
    let mut strange: Vec<&str> = checkpoint.plan.own().filter(|layer| !inside(layer)).collect();
    // Layers for pictures and sound are named by their makers and are no part of the model.
    strange.retain(|layer| !layer.split('.').take(3).any(|part| wrapped::OTHERS.contains(&part)));
    strange.sort_unstable();
    if let Some(first) = strange.first() {
        let more = if strange.len() > 1 { format!(" and {} more", strange.len() - 1) } else { String::new() };
        let place = checkpoint.dir.join("config.json");
        let line = format!("{}: quantization names {first:?}{more}: the model has no such layer", place.display());
        checkpoint.warnings.push(line);
    }
    Ok(model)
}

/// Keeps this process's part of a model that all processes of a group hold; what cannot be split stays whole. Says how much of the
/// model's bytes that is.
///
/// # Errors
/// A model of which nothing can be split; an adapter on it.
pub fn split(model: &mut dyn Model, group: Group) -> Result<f64> {
    let bytes = |model: &dyn Model| model.module().parameters().values().map(Array::nbytes).sum::<usize>() as f64;
    let whole = bytes(model);
    if group.size() > 1 && lapis_nn::split(model.module_mut(), group)? == 0 {
        let n = group.size();
        return Err(Error::unsupported(format!(
            "[split] no layer of this model can be split among {n} processes: its heads and the features between the products do not \
             divide, or it is of a type that is not split; take another number, or one process"
        )));
    }
    Ok(bytes(model) / whole)
}

/// Reads a model's numbers out of a config; null is as if it were not there.
///
/// # Errors
/// A number that is missing or of another kind, by its name.
pub(crate) fn parse<T: DeserializeOwned>(config: &Config) -> Result<T> {
    let mut all = config.clone();
    all.retain(|_, v| !v.is_null());
    let read = |all: Config| T::deserialize(Value::Object(all)).map_err(|e| e.to_string());
    read(all.clone()).map_err(|why| {
        // serde names a key that is missing, but not one with a wrong value: it is the one without which something
        // else is said.
        let without =
            |key: &&String| read(all.iter().filter(|(k, _)| k != key).map(|(k, v)| (k.clone(), v.clone())).collect());
        let culprit = all.keys().find(|key| !why.starts_with("missing") && without(key).err().as_ref() != Some(&why));
        let place = culprit.map_or(String::new(), |key| format!("{key}: "));
        Error::value(format!("[load] config.json: {place}{why}"))
    })
}

/// The head is not stored, or not wanted, when it is the table.
pub(crate) fn drop_tied_head(tied: bool, tensors: &mut Arrays) {
    if tied {
        tensors.retain(|name, _| !name.starts_with("lm_head."));
    }
}
