//! The language model inside a model of pictures and text: its config under `text_config`, its tensors under
//! `language_model`.

use super::{Config, Model, Settings};
use crate::batch::Batch;
use lapis::io::Arrays;
use lapis::{Array, Result};
use lapis_nn::Module;
use serde_json::Value;

/// A model whose names begin with `language_model`.
#[derive(Module, Clone)]
pub(crate) struct Wrapped<M: Model + Module> {
    /// What it does.
    pub(crate) language_model: M,
}

impl<M: Model + Module + Clone> Model for Wrapped<M> {
    fn hidden(&self, tokens: &Array, batch: &mut Batch) -> Result<Array> {
        self.language_model.hidden(tokens, batch)
    }

    fn logits(&self, hidden: &Array) -> Result<Array> {
        self.language_model.logits(hidden)
    }

    fn module(&self) -> &dyn Module {
        self
    }

    fn module_mut(&mut self) -> &mut dyn Module {
        self
    }

    fn depth(&self) -> usize {
        self.language_model.depth()
    }
}

/// The config of the text part, or all of it where there are no parts; what it lacks is as around it where `defaults` name it, else as in `defaults`.
///
/// # Errors
/// A `text_config` that is no object.
pub(crate) fn text(config: &Config, defaults: Value) -> Result<Config> {
    let inside: Option<Config> = Settings::new(config, Value::Null).get("text_config")?;
    let mut text = inside.unwrap_or_else(|| config.clone());
    for (key, default) in defaults.as_object().into_iter().flatten() {
        if text.get(key).is_none_or(Value::is_null) {
            text.insert(key.clone(), config.get(key).filter(|v| !v.is_null()).unwrap_or(default).clone());
        }
    }
    Ok(text)
}

/// Parts of names that belong to pictures and sound.
pub(crate) const OTHERS: [&str; 8] = [
    "vision_tower",
    "vision_model",
    "vision_embedder",
    "visual",
    "multi_modal_projector",
    "audio_tower",
    "embed_vision",
    "embed_audio",
];

/// Drops what belongs to pictures and sound, and puts all else under `language_model`.
///
/// # Errors
/// None.
pub(crate) fn unwrap_text(_: &Config, tensors: &mut Arrays) -> Result<()> {
    tensors.retain(|name, _| !name.split('.').take(3).any(|part| OTHERS.contains(&part)));
    let place = |name: String| match name.strip_prefix("model.language_model.") {
        Some(rest) => format!("language_model.model.{rest}"),
        None if name.starts_with("language_model.") => name,
        None => format!("language_model.{name}"),
    };
    *tensors = std::mem::take(tensors).into_iter().map(|(name, a)| (place(name), a)).collect();
    Ok(())
}
