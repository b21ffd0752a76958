//! A model directory: config.json, which weight files there are, and what they hold; or a GGUF file, which is all that.
//!
//! Nothing is computed here and no weight byte is read: tensors are mapped files. Knows no architecture.

use crate::quant::Plan;
use crate::tokenizer::Tokenizer;
use crate::{gguf, imports};
use lapis::io::Arrays;
use lapis::{Error, Result, io};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a directory holds.
pub struct Checkpoint {
    /// The directory, or the GGUF file; empty for a model that came from memory.
    pub dir: PathBuf,
    /// config.json, its entries of `null` left out.
    pub config: Map<String, Value>,
    /// config.json as it stands.
    pub source: Map<String, Value>,
    /// generation_config.json, where there is one.
    pub generation: Map<String, Value>,
    /// The tensors, by the names of the files.
    pub tensors: Arrays,
    /// How packed tensors are to be read.
    pub plan: Plan,
    /// Whether the model was saved without what makes logits of its last layer: it gives embeddings only. Known once it
    /// is loaded.
    pub headless: bool,
    /// What is odd about the files and does not keep the model from being used: lines for people.
    pub warnings: Vec<String>,
    /// Of a model in a GGUF file.
    gguf: Option<gguf::Meta>,
}

impl Checkpoint {
    /// Opens a directory, or a GGUF file, of several the first.
    ///
    /// # Errors
    /// A file that is missing or malformed, by its path and what to do about it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Checkpoint> {
        let dir = dir.as_ref();
        if gguf::is_gguf(dir) {
            let gguf::Opened { config, tensors, meta } = gguf::open(dir)?;
            crate::models::find(&config)?;
            let plan = Plan::from_config(&config, dir)?;
            let (source, generation, gguf) = (config.clone(), Map::new(), Some(meta));
            return Ok(Checkpoint {
                source,
                config,
                generation,
                tensors,
                plan,
                gguf,
                warnings: Vec::new(),
                headless: false,
                dir: dir.to_path_buf(),
            });
        }
        if !dir.is_dir() {
            let what = match dir.exists() {
                true => "is a file that does not end with .gguf; a model is a .gguf file or a directory",
                false => "does not exist; a model is a .gguf file or a directory",
            };
            return Err(Error::io(format!("[load] {} {what} with config.json and safetensors", dir.display())));
        }
        let source = read_object(&dir.join("config.json"))?;
        let config = without_nulls(source.clone());
        let mut warnings = Vec::new();
        let generation = match dir.join("generation_config.json") {
            path if path.exists() => read_object(&path).map(without_nulls).unwrap_or_else(|e| {
                warnings.push(format!("{}; it is ignored", e.message().trim_start_matches("[load] ")));
                Map::new()
            }),
            _ => Map::new(),
        };
        // What config.json says is known to make sense before weights are opened.
        Plan::from_config(&config, dir)?;
        crate::models::find(&config)?;
        let (mut source, mut config, mut tensors) = (source, config, tensors(dir, &mut warnings)?);
        imports::apply([&mut config, &mut source], &mut tensors, &dir.display().to_string())?;
        let plan = Plan::from_config(&config, dir)?;
        Ok(Checkpoint {
            source,
            config,
            generation,
            tensors,
            plan,
            warnings,
            headless: false,
            gguf: None,
            dir: dir.to_path_buf(),
        })
    }

    /// A model from memory: config.json and one safetensors file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_bytes(name: &str, config: &[u8], weights: io::Bytes) -> Result<Checkpoint> {
        let source = object(config, &format!("{name}/config.json"))?;
        let config = without_nulls(source.clone());
        let (tensors, _) = io::load_safetensors(io::Source::from_bytes(format!("{name}/model.safetensors"), weights))?;
        let plan = Plan::from_config(&config, Path::new(name))?;
        Ok(Checkpoint::without_files(source, config, tensors, plan))
    }

    /// A model from a config and tensors that are there already.
    ///
    /// # Errors
    /// A quantization block that cannot be read.
    pub fn from_parts(config: Map<String, Value>, tensors: Arrays) -> Result<Checkpoint> {
        let mut source = config.clone();
        let (mut config, mut tensors) = (without_nulls(config), tensors);
        imports::apply([&mut config, &mut source], &mut tensors, "model")?;
        let plan = Plan::from_config(&config, Path::new(""))?;
        Ok(Checkpoint::without_files(source, config, tensors, plan))
    }

    fn without_files(
        source: Map<String, Value>,
        config: Map<String, Value>,
        tensors: Arrays,
        plan: Plan,
    ) -> Checkpoint {
        let (dir, generation) = (PathBuf::new(), Map::new());
        Checkpoint { dir, source, config, generation, tensors, plan, warnings: vec![], headless: false, gguf: None }
    }

    /// The tokenizer beside the weights, or in their file.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match &self.gguf {
            None => Tokenizer::load(&self.dir),
            Some(meta) => Tokenizer::of_gguf(meta),
        }
    }

    /// The files that a directory would have beside its weights, of a model that is one file.
    ///
    /// # Errors
    /// A vocabulary that cannot be read.
    pub(crate) fn beside(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let Some(meta) = &self.gguf else { return Ok(Vec::new()) };
        let (json, config) = gguf::tokenizer(meta)?;
        let config = serde_json::to_vec_pretty(&Value::Object(config)).unwrap_or_default();
        Ok(vec![("tokenizer.json", json), ("tokenizer_config.json", config)])
    }

    /// The tokens that end a text, as the configs name them.
    pub fn eos_ids(&self) -> BTreeSet<u32> {
        let ids = |v: &Value| -> Vec<u32> {
            let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
            match v {
                Value::Array(all) => all.iter().filter_map(one).collect(),
                v => one(v).into_iter().collect(),
            }
        };
        let text = self.config.get("text_config").and_then(|t| t.get("eos_token_id"));
        let from = self.generation.get("eos_token_id").or(self.config.get("eos_token_id")).or(text);
        from.map(ids).unwrap_or_default().into_iter().collect()
    }

    /// Tokens that the model knows.
    ///
    /// # Errors
    /// A config that does not say.
    pub fn vocabulary(&self) -> Result<usize> {
        let text = self.config.get("text_config").and_then(|t| t.get("vocab_size"));
        let size = self.config.get("vocab_size").or(text).and_then(Value::as_u64).map(|n| n as usize);
        size.ok_or_else(|| Error::value("[load] config.json: vocab_size is missing or no whole number"))
    }

    /// Positions that the model was made for, where the config says so.
    pub fn context(&self) -> Option<usize> {
        let text = self.config.get("text_config").and_then(Value::as_object);
        let find = |c: &Map<String, Value>| {
            ["max_position_embeddings", "n_positions", "max_seq_len", "model_max_length"]
                .iter()
                .find_map(|k| c.get(*k).and_then(Value::as_u64))
        };
        let rows = text.and_then(find).or_else(|| find(&self.config)).map(|n| n as usize);
        rows.map(|n| n.saturating_sub(crate::models::first_position(&self.config)))
    }
}

/// The object in a JSON file.
///
/// # Errors
/// A file that cannot be read or is no JSON object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::io(format!(
            "[load] {shown} does not exist; a model directory has a config.json and safetensors files"
        )),
        _ => Error::io(format!("[load] {shown}: {e}")),
    })?;
    object(&text, &shown.to_string())
}

fn object(text: &[u8], name: &str) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::io(format!("[load] {name}: not a JSON object; the file is damaged or another one"))),
        Err(e) => Err(Error::io(format!("[load] {name}: {e}; the file is damaged, download it again"))),
    }
}

/// `null` means "not given", on every level; `{"__float__": "Infinity"}` is left to whoever reads numbers.
fn without_nulls(object: Map<String, Value>) -> Map<String, Value> {
    let clean = |v: Value| match v {
        Value::Object(inner) => Value::Object(without_nulls(inner)),
        v => v,
    };
    object.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, clean(v))).collect()
}

/// The tensors of all weight files: those that the index names, or else every model*.safetensors.
fn tensors(dir: &Path, warnings: &mut Vec<String>) -> Result<Arrays> {
    let names: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(|e| Error::io(format!("[load] {}: {e}", dir.display())))?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    let name = |p: &Path| p.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
    let weights = |p: &&PathBuf| {
        let name = name(p);
        (name.starts_with("model") || name.starts_with("weights")) && name.ends_with(".safetensors")
    };
    let mut files: Vec<PathBuf> = names.iter().filter(weights).cloned().collect();
    files.sort();
    let index = dir.join("model.safetensors.index.json");
    if index.exists() {
        let shown = index.display();
        let named: BTreeSet<PathBuf> = io::shards::read_index(&index)?.into_values().map(|f| dir.join(f)).collect();
        let missing: Vec<_> = named.iter().filter(|f| !f.exists()).map(|f| f.display().to_string()).collect();
        if missing.is_empty() {
            return Ok(io::load_sharded(&index, io::ReadMode::Map)?.0);
        }
        if missing.len() < named.len() || files.is_empty() {
            let names = missing.join(", ");
            return Err(Error::io(format!("[load] {shown} names files that are not there: {names}; download them")));
        }
        warnings.push(format!("{shown} names files that are not there; model*.safetensors are read in their place"));
    }
    if files.is_empty() {
        let shown = dir.display();
        let pickled = |p: &&PathBuf| {
            let end = p.extension().and_then(|e| e.to_str()).unwrap_or_default();
            ["bin", "pt", "pth", "ckpt", "pkl"].contains(&end)
        };
        return Err(Error::io(match names.iter().find(pickled) {
            Some(file) => format!(
                "[load] {shown} holds no model*.safetensors; {} is a pickle, which can run code and is never opened.\n  \
                 Use the model's safetensors, or convert it with its maker's tools",
                name(file)
            ),
            None => format!("[load] {shown} holds no model*.safetensors: nothing to load"),
        }));
    }
    let mut all = Arrays::default();
    for file in &files {
        for (name, tensor) in io::load_safetensors(file)?.0 {
            if all.contains_key(&name) {
                let file = file.display();
                return Err(Error::io(format!(
                    "[load] {file}: tensor {name:?} is in another file, too; remove one of them"
                )));
            }
            all.insert(name, tensor);
        }
    }
    Ok(all)
}
