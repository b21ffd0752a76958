//! The state of a run in files: adapters as mlx-lm writes them, and all that it takes to go on as if nothing had happened.
//!
//! Every file has its name only once it is whole, so a process that is killed, or a disk that is full, leaves the files before.

use crate::order::Order;
use crate::{Sample, Settings, Trainer};
use lapis::io::{self, Metadata, atomic::AtomicFile, atomic::Lock};
use lapis::{Array, Error, Result};
use lapis_nn::{Params, check_finite};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The weights.
pub(crate) const ADAPTERS: &str = "adapters.safetensors";
/// The weights of the best validation.
pub(crate) const BEST: &str = "best_adapters.safetensors";
const STATE: &str = "training_state.safetensors";

/// Replaces a file as a whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path, "lora", bytes.len() as u64)?;
    file.write(bytes)?;
    file.commit()
}

fn json_text(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::value(format!("[lora] {e}")))?;
    text.push(b'\n');
    Ok(text)
}

/// A directory for an adapter, which no other run writes to meanwhile.
pub(crate) fn claim(dir: &Path) -> Result<Lock> {
    let fail = |what: &dyn std::fmt::Display| Error::io(format!("[lora] {}: {what}", dir.display()));
    std::fs::create_dir_all(dir).map_err(|e| fail(&e))?;
    Lock::take(dir.join(".run.lock"), "in this directory")
        .map_err(|why| fail(&format!("{why}; wait for it, or name another --adapter-path")))
}

/// Writes `adapter_config.json`.
pub(crate) fn begin(dir: &Path, s: &Settings, blocks: usize) -> Result<()> {
    let mut all: BTreeMap<String, Value> = s.to_map().into_iter().collect();
    // Those who load it take it as it stands, and some want no more than there are.
    all.insert("num_layers".into(), json!(blocks));
    if s.fine_tune_type == "full" {
        all.insert("lora_parameters".into(), Value::Null);
    }
    write(&dir.join("adapter_config.json"), &json_text(&all)?)
}

/// FNV-1a of samples.
fn digest(t: &Trainer) -> String {
    let words = t
        .samples
        .iter()
        .flat_map(Sample::rows)
        .flat_map(|s| [s.tokens.len() as u32, s.offset as u32].into_iter().chain(s.tokens.iter().copied()));
    let hash = words
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

impl Trainer {
    /// Writes the weights to a file.
    ///
    /// # Errors
    /// Weights that are no numbers; faults of the file.
    pub fn save_weights(&self, path: &Path) -> Result<()> {
        let weights = self.weights();
        check_finite(&weights)?;
        io::save_safetensors(path, &weights, &Metadata::default())
    }

    /// Writes weights and state into a directory; `numbered` keeps the weights under the number of the step as well. Says
    /// what was written last.
    ///
    /// # Errors
    /// As [`Trainer::save_weights`]; the files before are as they were then.
    pub fn save(&self, dir: &Path, numbered: bool) -> Result<PathBuf> {
        let mut all = Params::new();
        let weights = self.weights();
        check_finite(&weights)?;
        for (kind, params) in [("weights", weights), ("optimizer", self.optimizer.state()), ("sums", self.sums.clone())]
        {
            all.extend(params.into_iter().map(|(name, a)| (format!("{kind}/{name}"), a)));
        }
        let words = |words: Vec<u32>| {
            let n = words.len();
            Array::from_vec(words, &[n])
        };
        all.insert("order".into(), words(self.order.state()));
        all.insert("pass".into(), words(self.cursor.pass.clone()));
        // Losses as their bits.
        let recent = self.recent.iter().flat_map(|(loss, tokens)| [loss.to_bits(), *tokens]).collect();
        all.insert("recent".into(), words(recent));
        let state = json!({
            "schema": 1, "step": self.done, "taken": self.cursor.taken, "trained_tokens": self.tokens,
            "best": self.best.map(f32::to_bits), "worse": self.worse, "data": digest(self),
            "settings": Value::Object(self.settings.binding()),
        });
        let metadata = Metadata::from_iter([("state".to_string(), state.to_string())]);
        io::save_safetensors(dir.join(STATE), &all, &metadata)?;
        // For those who look; nobody reads it again.
        write(&dir.join("training_state.json"), &json_text(&state)?)?;
        let last = dir.join(ADAPTERS);
        self.save_weights(&last)?;
        if !numbered {
            return Ok(last);
        }
        let path = dir.join(format!("{:07}_{ADAPTERS}", self.done));
        self.save_weights(&path)?;
        if let Some(keep) = self.settings.keep_checkpoints {
            prune(dir, keep)?;
        }
        Ok(path)
    }

    /// Takes up the state in a directory.
    ///
    /// # Errors
    /// No state there; one of other settings or samples, which says what differs.
    pub fn resume(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(STATE);
        let wrong = |what: &str| Error::value(format!("[lora] {}: {what}", path.display()));
        if !path.is_file() {
            return Err(wrong("there is no such file: --resume goes on with a run that has saved its state there"));
        }
        let (arrays, metadata) = io::load_safetensors(path.as_path())?;
        let state: Map<String, Value> = metadata
            .get("state")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| wrong("it holds no state"))?;
        let number = |key: &str| state.get(key).and_then(Value::as_u64).ok_or_else(|| wrong("its state is damaged"));
        // Numbers as reading text gives them, on both sides.
        let own = Value::Object(self.settings.binding()).to_string();
        let own: Map<String, Value> = serde_json::from_str(&own).map_err(|e| wrong(&e.to_string()))?;
        let saved = state.get("settings").and_then(Value::as_object).ok_or_else(|| wrong("its state is damaged"))?;
        let other: Vec<String> = own
            .iter()
            .filter(|(key, value)| saved.get(*key) != Some(value))
            .map(|(key, value)| format!("{key} is {value}, it was {}", saved.get(key).unwrap_or(&Value::Null)))
            .collect();
        if !other.is_empty() {
            return Err(wrong(&format!("the run had other settings: {}", other.join("; "))));
        }
        if state.get("data").and_then(Value::as_str) != Some(&digest(self)) {
            return Err(wrong("the run learned other samples; give the same --data, or begin anew without --resume"));
        }
        let (mut weights, mut moments, mut sums) = (Params::new(), Params::new(), Params::new());
        let mut rest = BTreeMap::new();
        for (name, array) in arrays {
            match name.split_once('/') {
                Some(("weights", name)) => drop(weights.insert(name.to_string(), array)),
                Some(("optimizer", name)) => drop(moments.insert(name.to_string(), array)),
                Some(("sums", name)) => drop(sums.insert(name.to_string(), array)),
                _ => drop(rest.insert(name, array.to_vec::<u32>()?)),
            }
        }
        let mut words = |key: &str| rest.remove(key).ok_or_else(|| wrong("its state is damaged"));
        let order = Order::from_state(&words("order")?).ok_or_else(|| wrong("its state is damaged"))?;
        let (pass, recent) = (words("pass")?, words("recent")?);
        if weights.len() != self.weights().len() {
            return Err(wrong("it was trained on another model"));
        }
        self.set_weights(&weights)?;
        // Before the first update there are no moments.
        if moments.len() > 2 {
            self.optimizer.init(&self.model.module().trainable_parameters())?;
        }
        self.optimizer.set_state(&moments)?;
        self.sums = sums;
        self.order = order;
        self.cursor.pass = pass;
        self.cursor.taken = number("taken")? as usize;
        self.recent = recent.chunks_exact(2).map(|w| (f32::from_bits(w[0]), w[1])).collect();
        self.tokens = number("trained_tokens")?;
        self.best = state.get("best").and_then(Value::as_u64).map(|bits| f32::from_bits(bits as u32));
        self.worse = number("worse")? as usize;
        self.done = number("step")? as usize;
        Ok(())
    }
}

/// Removes numbered weights but for the last `keep`.
fn prune(dir: &Path, keep: usize) -> Result<()> {
    let fail = |e: std::io::Error| Error::io(format!("[lora] {}: {e}", dir.display()));
    let mut numbered = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let step = name.strip_suffix(ADAPTERS).and_then(|n| n.strip_suffix('_')).and_then(|n| n.parse::<usize>().ok());
        numbered.extend(step.map(|step| (step, path.clone())));
    }
    numbered.sort();
    let old = numbered.len().saturating_sub(keep);
    numbered.drain(..old).try_for_each(|(_, path)| std::fs::remove_file(path)).map_err(fail)
}
