//! The names of models: which there are, what they stand for, what is known of each without loading it.

use super::{Loaded, Models, Progress, seconds};
use crate::error::ApiError;
use crate::settings::Source;
use lapis_lm::hub::Name;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// What is known of a model without loading it.
#[derive(Clone)]
pub struct Listing {
    /// Its name.
    pub id: String,
    /// When its files were written, in seconds since 1970.
    pub created: u64,
    /// Whether it is loaded.
    pub loaded: bool,
    /// How far it is, while it is being loaded.
    pub(crate) progress: Option<Arc<Progress>>,
    /// Why it could not be loaded, of late.
    pub failure: Option<String>,
    /// Positions, where they are known.
    pub context: Option<usize>,
    /// Such as `4bit`.
    pub quantization: Option<String>,
    /// Its `model_type`.
    pub family: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Values of its weights, where they are known.
    pub parameters: Option<u64>,
    /// What it does: `completion`, `chat`, `embeddings`.
    pub capabilities: Vec<&'static str>,
}

impl Models {
    /// The id that a name stands for, and where that model is.
    pub(super) fn find(&self, name: &str) -> Result<(String, Source), ApiError> {
        let (start, source) = &self.settings.model;
        // A star at the end stands for any rest; an alias of the very name comes first.
        let begins = |alias: &str| alias.strip_suffix('*').is_some_and(|start| name.starts_with(start));
        let aliases = &self.settings.aliases;
        let alias = aliases.iter().find(|(a, _)| a == name).or_else(|| aliases.iter().find(|(a, _)| begins(a)));
        let name = match alias {
            Some((_, model)) => model.as_str(),
            None => name,
        };
        if matches!(name, "" | "default" | "default_model") || name == start {
            return Ok((start.clone(), source.clone()));
        }
        match self.path(name) {
            Some(path) => Ok((name.to_string(), Source::Path(path))),
            None => Err(self.unknown(name)),
        }
    }

    /// As [`Models::find`]; what is not here may be on the hub, where the server was told that it may be fetched.
    pub(super) fn find_or_pull(&self, name: &str) -> Result<(String, Source), ApiError> {
        let found = self.find(name);
        match self.pullable(name).filter(|_| found.is_err()) {
            Some(pulled) => Ok((name.to_string(), Source::Hub(pulled))),
            None => found,
        }
    }

    /// Where the model of a name lies, if it is here and not loaded.
    pub(crate) fn asleep(&self, name: &str) -> Option<PathBuf> {
        if self.loaded(name).is_some() {
            return None;
        }
        let (id, source) = self.find(&self.split(name).ok()?.0).ok()?;
        match source {
            Source::Path(path) if self.loaded(&id).is_none() => Some(path),
            _ => None,
        }
    }

    /// A name as the hub knows it, where models may be fetched from there.
    pub(super) fn pullable(&self, name: &str) -> Option<Name> {
        let hub = self.settings.hub.as_ref().filter(|hub| self.settings.allow_pull && !hub.offline)?;
        Name::parse(name).ok().filter(|n| n.repo.contains('/') && hub.may_be_name(name))
    }

    /// The directory of a model that is here.
    fn path(&self, name: &str) -> Option<PathBuf> {
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', '\0']);
        if !name.split('/').all(plain) || name.len() > 256 {
            return None;
        }
        let own = self.settings.models_dir.as_ref().map(|root| root.join(name)).filter(|path| is_model(path));
        own.or_else(|| {
            let hub = self.settings.hub.as_ref()?;
            let snapshot = hub.cache.snapshot(&Name::parse(name).ok()?)?;
            is_model(&snapshot).then_some(snapshot)
        })
    }

    fn unknown(&self, name: &str) -> ApiError {
        let shown: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let mut near: Vec<(usize, String)> = self.names().into_iter().map(|id| (distance(&id, &shown), id)).collect();
        near.sort();
        let near: Vec<String> = near.into_iter().take(3).map(|n| n.1).collect();
        let message = format!("there is no model {shown:?} here; there is {}", near.join(", "));
        ApiError { param: Some("model".into()), ..ApiError::new(404, message) }.code("model_not_found")
    }

    /// Names of all models that may be asked for.
    fn names(&self) -> Vec<String> {
        let mut names = vec![self.start().to_string()];
        names.extend(self.settings.aliases.iter().map(|a| a.0.clone()).filter(|name| !name.ends_with('*')));
        if let Some(root) = &self.settings.models_dir {
            let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
            for path in below(root) {
                let inner: Vec<PathBuf> = if is_model(&path) { vec![path] } else { below(&path).collect() };
                let names_of = inner.iter().filter(|p| is_model(p)).filter_map(|p| p.strip_prefix(root).ok()?.to_str());
                names.extend(names_of.map(str::to_string));
            }
        }
        if let Some(hub) = &self.settings.hub {
            let repositories = hub.cache.scan();
            let models = repositories.into_iter().filter(|r| r.kind == "model").map(|r| r.id);
            names.extend(models.filter(|id| {
                let snapshot = Name::parse(id).ok().and_then(|name| hub.cache.snapshot(&name));
                snapshot.is_some_and(|dir| is_model(&dir))
            }));
        }
        let mut seen = std::collections::HashSet::new();
        names.retain(|n| seen.insert(n.clone()));
        names
    }

    /// Every model that may be asked for.
    pub fn list(&self) -> Vec<Listing> {
        let mut names = self.names();
        let mut more: Vec<String> = self.adapters.names().iter().map(|a| format!("{}:{a}", self.start())).collect();
        more.extend(self.all_loaded().iter().filter(|l| l.variant.is_some()).map(|l| l.id.clone()));
        more.sort();
        more.dedup();
        names.extend(more);
        names.into_iter().filter_map(|name| self.listing(&name).ok()).collect()
    }

    /// What is known of a model.
    ///
    /// # Errors
    /// A name that there is not.
    pub fn listing(&self, name: &str) -> Result<Listing, ApiError> {
        let (base, adapter) = self.split(name)?;
        let (mut id, source) = self.find(&base)?;
        let mut loaded = self.loaded(&id);
        if let Some(adapter) = adapter {
            id = format!("{id}:{adapter}");
            let current = |l: &Arc<Loaded>| l.variant.as_ref().is_some_and(|v| self.adapters.is_current(&v.1));
            loaded = self.all_loaded().into_iter().find(|l| l.id == id && current(l));
        }
        let read = |path: &Path| {
            let config = lapis_lm::checkpoint::read_object(&path.join("config.json")).unwrap_or_default();
            (config, weights(path), written(path))
        };
        let (config, bytes, created) = match (&loaded, &source) {
            (Some(l), _) => (l.config.clone(), l.bytes(), l.created),
            (None, Source::Path(path)) => read(path),
            (None, Source::Hub(_)) => Default::default(),
            (None, Source::Files(files)) => {
                let config = serde_json::from_slice(files.config).unwrap_or_default();
                (config, files.weights.len() as u64, seconds(SystemTime::now()))
            }
        };
        let (writes, embeds) = match (&loaded, &source) {
            (Some(l), _) => (l.model.writes, l.model.pooling.is_some()),
            (None, Source::Path(path)) => (!lapis_lm::models::is_encoder(&config), path.join("modules.json").is_file()),
            (None, Source::Files(_) | Source::Hub(_)) => (true, false),
        };
        let mut capabilities = if writes { vec!["completion", "chat"] } else { Vec::new() };
        if embeds || !writes || self.settings.pooling.is_some() {
            capabilities.push("embeddings");
        }
        let progress = self.progress(&id);
        let failure = self.failure_of(&id).map(|e| match &source {
            // No path is told to clients.
            Source::Path(path) => e.message.replace(&path.display().to_string(), &id),
            _ => e.message,
        });
        let most = |n: usize| self.settings.max_context.map_or(n, |m| m.min(n));
        Ok(Listing {
            capabilities,
            id: if name.is_empty() || name.starts_with("default") { id } else { name.to_string() },
            created,
            context: loaded.as_ref().map(|l| l.context).or_else(|| context(&config).map(most)),
            quantization: quantization(&config),
            family: config.get("model_type").and_then(Value::as_str).unwrap_or("unknown").to_string(),
            bytes,
            parameters: loaded.as_ref().map(|l| l.fit.parameters),
            progress,
            failure,
            loaded: loaded.is_some(),
        })
    }
}

/// Whether a directory or file looks like a model that is whole.
fn is_model(path: &Path) -> bool {
    if path.extension().is_some_and(|e| e == "gguf") {
        return path.is_file();
    }
    path.join("config.json").is_file() && weights(path) > 0
}

/// Bytes of the weight files of a model.
pub(super) fn weights(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().map_or(0, |m| m.len());
    }
    let files = std::fs::read_dir(path).into_iter().flatten().filter_map(|e| Some(e.ok()?.path()));
    let weights = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors"));
    weights.filter_map(|p| Some(p.metadata().ok()?.len())).sum()
}

fn written(path: &Path) -> u64 {
    path.metadata().and_then(|m| m.modified()).map_or(0, seconds)
}

fn context(config: &serde_json::Map<String, Value>) -> Option<usize> {
    let text = config.get("text_config").and_then(Value::as_object).unwrap_or(config);
    ["max_position_embeddings", "n_positions", "max_seq_len"]
        .iter()
        .find_map(|k| text.get(*k)?.as_u64())
        .map(|n| n as usize)
}

fn quantization(config: &serde_json::Map<String, Value>) -> Option<String> {
    let block = config.get("quantization").or(config.get("quantization_config"))?;
    match (block.get("mode").and_then(Value::as_str), block.get("bits").and_then(Value::as_u64)) {
        (Some(mode), _) if mode != "affine" => Some(mode.to_string()),
        (_, Some(bits)) => Some(format!("{bits}bit")),
        _ => block.get("quant_method").and_then(Value::as_str).map(str::to_string),
    }
}

/// How many letters two names differ by.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (before + usize::from(x != y)).min(above + 1).min(row[j] + 1);
            before = above;
        }
    }
    row[b.len()]
}
