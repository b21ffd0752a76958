//! PEFT's directories: other names, factors transposed, a scale that follows from `lora_alpha` and the rank.

use super::{Adapter, Change, Scope, tensors, text, wrong};
use crate::models::Model;
use lapis::io::atomic::AtomicFile;
use lapis::io::{Metadata, save_safetensors};
use lapis::{Array, Error, Result, eval, ops};
use lapis_nn::{Params, Side, for_each_packable};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Opens one.
pub(super) fn open(dir: &Path, config: &Map<String, Value>) -> Result<Adapter> {
    match config.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        _ => return Err(wrong(dir, format!("peft_type is {}; LORA is what is read", config["peft_type"]))),
    }
    if dir.join("adapter_model.bin").is_file() && !dir.join("adapter_model.safetensors").is_file() {
        let why = "adapter_model.bin is a pickle, which is never run; save it with safe_serialization=True";
        return Err(wrong(dir, why));
    }
    let flag = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    for key in ["lora_bias", "use_qalora"] {
        if flag(key) {
            return Err(wrong(dir, format!("{key} in adapter_config.json is not read; train without it")));
        }
    }
    if config.get("layer_replication").is_some_and(|v| !v.is_null()) {
        return Err(wrong(dir, "layer_replication in adapter_config.json is not read"));
    }
    let mut parts: BTreeMap<String, [Option<Array>; 3]> = BTreeMap::new();
    let mut whole = Params::new();
    for (name, tensor) in tensors(dir, "adapter_model.safetensors")? {
        let plain = name.strip_prefix("base_model.model.").unwrap_or(&name).replace(".default.", ".");
        let plain = plain.replace(".modules_to_save.", ".").replace(".base_layer.", ".");
        let stem = plain.strip_suffix(".weight").unwrap_or(&plain);
        const ENDS: [(&str, usize); 5] = [
            (".lora_A", 0),
            (".lora_B", 1),
            (".lora_embedding_A", 0),
            (".lora_embedding_B", 1),
            (".lora_magnitude_vector", 2),
        ];
        match ENDS.iter().find_map(|&(end, at)| Some((stem.strip_suffix(end)?, at))) {
            Some((path, at)) => {
                let tensor = if at == 2 { ops::flatten(&tensor, 0, -1)? } else { tensor };
                parts.entry(path.to_string()).or_default()[at] = Some(tensor);
            }
            None if plain.contains(".lora_") => {
                return Err(wrong(dir, format!("{name} in adapter_model.safetensors is of a kind that is not read")));
            }
            None => drop(whole.insert(plain, tensor)),
        }
    }
    let dora = flag("use_dora");
    let mut changes = BTreeMap::new();
    for (path, part) in parts {
        let [Some(a), Some(b), m] = part else {
            return Err(wrong(dir, format!("{path} in adapter_model.safetensors lacks one of its two factors")));
        };
        if m.is_some() != dora {
            let lacks = if dora { "lacks" } else { "has" };
            return Err(wrong(dir, format!("use_dora is {dora}, and {path} {lacks} lora_magnitude_vector")));
        }
        let rank = number(dir, config, "rank_pattern", "r", &path)?;
        let alpha = number(dir, config, "alpha_pattern", "lora_alpha", &path)?;
        if rank < 1.0 || rank.fract() != 0.0 {
            return Err(wrong(dir, format!("r in adapter_config.json is {rank}; a rank is a whole number from 1")));
        }
        let scale = alpha / if flag("use_rslora") { rank.sqrt() } else { rank };
        changes.insert(path, Change { a, b, m, rank: rank as usize, scale, turned: true });
    }
    let kind = match (changes.is_empty(), dora) {
        (true, _) => "full",
        (_, true) => "dora",
        _ => "lora",
    };
    let base = text(config, "base_model_name_or_path").filter(|base| !base.is_empty());
    Ok(Adapter { name: dir.display().to_string(), kind, base, bytes: 0, scope: Scope::All, changes, whole })
}

/// Writes the changes of low rank that lie on a model as PEFT does: `adapter_model.safetensors` and `adapter_config.json`, in a
/// directory that is made. `base` is what the configuration calls the model. Layers have the names of checkpoints, which are those
/// of transformers where a model was not given others when it was read.
///
/// # Errors
/// No changes of low rank; experts, which PEFT has as layers of their own; different ranks or scales; faults of files.
pub fn write(model: &mut dyn Model, base: Option<&str>, dir: &Path) -> Result<()> {
    let wrong = |what: String| Error::unsupported(format!("[adapter] {}: {what}", dir.display()));
    let (mut out, mut targets, mut found) = (Params::new(), Vec::new(), None::<(usize, f64, bool)>);
    let mut failed = None;
    for_each_packable(model.module_mut(), &mut |path, layer| {
        let Some(slot) = layer.slot() else { return };
        let Some(change) = slot.change.as_deref() else { return };
        let ends = match slot.side {
            Side::Linear => ["lora_A.weight", "lora_B.weight"],
            Side::Table => ["lora_embedding_A", "lora_embedding_B"],
            Side::Stack => {
                failed = Some(wrong(format!(
                    "{path} are experts, which PEFT has one by one; lapis fuse makes them a part of the model"
                )));
                return;
            }
        };
        let own = (change.lora_a.dim(-1), change.scale(), change.m.is_some());
        if *found.get_or_insert(own) != own {
            failed = Some(wrong(format!("{path} has another rank or scale than the layers before")));
        }
        targets.push(path.to_string());
        let factors =
            [&change.lora_a, &change.lora_b].map(|a| ops::transpose(a, None).and_then(|a| ops::contiguous(&a, false)));
        for (end, factor) in ends.into_iter().zip(factors) {
            match factor {
                Ok(factor) => drop(out.insert(format!("base_model.model.{path}.{end}"), factor)),
                Err(e) => failed = Some(e),
            }
        }
        if let Some(m) = &change.m {
            out.insert(format!("base_model.model.{path}.lora_magnitude_vector"), m.value().clone());
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let Some((rank, scale, dora)) = found else {
        return Err(wrong("there are no changes of low rank to write; whole weights are no adapter of PEFT".into()));
    };
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank, "lora_alpha": scale * rank as f64,
        "lora_dropout": 0.0, "bias": "none", "use_dora": dora, "use_rslora": false, "fan_in_fan_out": false, "inference_mode": true,
        "target_modules": targets,
    });
    eval(out.values())?;
    std::fs::create_dir_all(dir).map_err(|e| Error::io(format!("[adapter] {}: {e}", dir.display())))?;
    save_safetensors(
        dir.join("adapter_model.safetensors"),
        &out,
        &Metadata::from_iter([("format".into(), "pt".into())]),
    )?;
    let text = format!("{config:#}\n");
    let mut file = AtomicFile::create(dir.join("adapter_config.json"), "adapter", text.len() as u64)?;
    file.write(text.as_bytes())?;
    file.commit()
}

/// A number of a layer: the one of the pattern that its path ends with, or else that of all.
fn number(dir: &Path, config: &Map<String, Value>, patterns: &str, key: &str, path: &str) -> Result<f64> {
    for (pattern, value) in config.get(patterns).and_then(Value::as_object).into_iter().flatten() {
        if pattern.contains(['*', '+', '?', '(', '[', '|', '\\', '^', '$', '{']) {
            let why =
                format!("{patterns} in adapter_config.json has {pattern:?}, a regular expression; paths are read");
            return Err(wrong(dir, why));
        }
        if path == pattern || path.strip_suffix(pattern.as_str()).is_some_and(|head| head.ends_with('.')) {
            return value.as_f64().ok_or_else(|| wrong(dir, format!("{patterns}: {pattern} is {value}, no number")));
        }
    }
    let value = config.get(key).and_then(Value::as_f64);
    value.ok_or_else(|| wrong(dir, format!("adapter_config.json has no number {key}")))
}

/// The changes of all experts of a stack, which elsewhere are layers of their own; those that there are not change
/// nothing.
pub(super) fn stacked(
    left: &mut BTreeMap<String, Change>,
    paths: &[&str],
    shape: &[usize],
) -> Option<(String, Change)> {
    for path in paths {
        let Some((head, leaf)) = path.rsplit_once(".switch_mlp.") else { continue };
        let old = match leaf {
            "gate_proj" => "w1",
            "down_proj" => "w2",
            _ => "w3",
        };
        for leaf in [leaf, old] {
            let name = |e: usize| format!("{head}.experts.{e}.{leaf}");
            let found: Vec<_> = (0..shape[0]).map(|e| left.remove(&name(e))).collect();
            let Some(first) = found.iter().flatten().next().cloned() else { continue };
            let stack = |part: fn(&Change) -> &Array| -> Result<Array> {
                let none = ops::zeros_like(part(&first), None)?;
                let parts: Vec<Array> =
                    found.iter().map(|c| c.as_ref().map_or(none.clone(), |c| part(c).clone())).collect();
                ops::stack(&parts, 0)
            };
            let alike = found.iter().flatten().all(|c| c.rank == first.rank && c.scale == first.scale && c.m.is_none());
            // Parts that do not fit each other are left as they are, and refused for it.
            let (a, b) = (stack(|c| &c.a).ok().filter(|_| alike)?, stack(|c| &c.b).ok()?);
            return Some((format!("{head}.experts.*.{leaf}"), Change { a, b, ..first }));
        }
    }
    None
}
