//! Adapters: what fine-tuning adds to a model, in mlx-lm's directories (LoRA, DoRA, full weights) and in PEFT's.
//!
//! A directory is opened and checked by itself; put on a model, it gives another model that shares every array it does
//! not change. Knows no architecture: layers are found by their paths.

mod mix;
pub mod peft;

pub use mix::Mixed;

use crate::models::Model;
use lapis::io::{self, Arrays};
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Embedding, Linear, LowRank, Module, Params, Side, for_each_packable};
use serde_json::{Map, Value};
use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;

/// What fine-tuning made of a model's weights.
pub struct Adapter {
    /// What errors call it: the directory, unless it was given another name.
    pub name: String,
    /// How it was trained: `lora`, `dora` or `full`.
    pub kind: &'static str,
    /// The model that it was trained on, where its files say so.
    pub base: Option<String>,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Layers that may be changed.
    scope: Scope,
    /// Changes of low rank by the paths of their layers.
    changes: BTreeMap<String, Change>,
    /// Whole parameters by name.
    whole: Params,
}

/// A change as its file has it.
#[derive(Clone)]
struct Change {
    a: Array,
    b: Array,
    m: Option<Array>,
    /// The rank that the configuration says.
    rank: usize,
    scale: f64,
    /// PEFT's factors are the transpose of mlx-lm's.
    turned: bool,
}

/// Which layers a directory may change.
enum Scope {
    /// Any.
    All,
    /// Those of the last so many blocks (0: of all), and of them the ones at these paths, if there are any; a path from
    /// the top counts in any block.
    Blocks { last: usize, keys: Option<Vec<String>> },
}

impl Scope {
    /// Why the layer at a path of a model of `depth` blocks may not be changed.
    fn refuses(&self, path: &str, depth: usize) -> Option<String> {
        let Scope::Blocks { last, keys } = self else { return None };
        if keys.iter().flatten().any(|key| key == path) {
            return None;
        }
        let Some((block, rest)) = place(path) else {
            return Some("it is in no block, and lora_parameters.keys does not name it".into());
        };
        let first = if *last == 0 { 0 } else { depth.saturating_sub(*last) };
        if block < first {
            return Some(format!(
                "num_layers is {last}, so blocks {first} to {} of {depth} change",
                depth.saturating_sub(1)
            ));
        }
        match keys {
            Some(keys) if !keys.iter().any(|key| key == rest) => {
                Some(format!("lora_parameters.keys does not name {rest}"))
            }
            _ => None,
        }
    }
}

/// The number of the block that a path leads into, and the path inside.
pub fn place(path: &str) -> Option<(usize, &str)> {
    let mut rest = path;
    while let Some((part, after)) = rest.split_once('.') {
        if let Ok(block) = part.parse() {
            return Some((block, after));
        }
        rest = after;
    }
    None
}

/// An error about a directory.
fn wrong(dir: &Path, what: impl std::fmt::Display) -> Error {
    Error::value(format!("[adapter] {}: {what}", dir.display()))
}

fn text(config: &Map<String, Value>, key: &str) -> Option<String> {
    config.get(key).and_then(Value::as_str).map(str::to_string)
}

/// The tensors of a file, all of them finite.
fn tensors(dir: &Path, file: &str) -> Result<Arrays> {
    let path = dir.join(file);
    if !path.is_file() {
        return Err(wrong(dir, format!("there is no {file} beside adapter_config.json; copy the whole directory")));
    }
    let tensors = io::load_safetensors(&path)?.0;
    if tensors.is_empty() {
        return Err(wrong(dir, format!("{file} holds no tensors")));
    }
    for (name, tensor) in &tensors {
        if tensor.dtype().is_floating() && !tensor.all_finite()? {
            let why = "holds NaN or infinite numbers: training broke down; take an earlier checkpoint";
            return Err(wrong(dir, format!("{name} in {file} {why}")));
        }
    }
    Ok(tensors)
}

impl Adapter {
    /// Opens a directory with `adapter_config.json` and its tensors.
    ///
    /// # Errors
    /// What is missing or malformed, by the path and what to do about it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Adapter> {
        let dir = dir.as_ref();
        if !dir.is_dir() {
            let what = if dir.exists() { "is no directory" } else { "does not exist" };
            let path = dir.display();
            return Err(Error::io(format!(
                "[adapter] {path} {what}; an adapter is a directory with adapter_config.json and adapters.safetensors (or \
                 PEFT's adapter_model.safetensors)"
            )));
        }
        if !dir.join("adapter_config.json").is_file() {
            return Err(wrong(dir, "there is no adapter_config.json in it; give the directory that training wrote"));
        }
        let config = crate::checkpoint::read_object(&dir.join("adapter_config.json"))?;
        let mut adapter = match config.contains_key("peft_type") {
            true => peft::open(dir, &config)?,
            false => open(dir, &config)?,
        };
        let all = adapter.changes.values().flat_map(|c| [Some(&c.a), Some(&c.b), c.m.as_ref()]).flatten();
        adapter.bytes = all.chain(adapter.whole.values()).map(|a| a.nbytes() as u64).sum();
        Ok(adapter)
    }

    /// The rank of its changes, the largest of them; 0 where there are none.
    pub fn rank(&self) -> usize {
        self.changes.values().map(|c| c.rank).max().unwrap_or(0)
    }

    /// Puts the changes on a model.
    ///
    /// # Errors
    /// All tensors that do not fit, together; the model is then of no more use.
    pub fn apply(&self, model: &mut dyn Model) -> Result<()> {
        let (mut left, mut problems, mut broken) = (self.changes.clone(), Vec::new(), None);
        let depth = model.depth();
        for_each_packable(model.module_mut(), &mut |path, layer| {
            let shape = layer.matrix().shape();
            let Some(slot) = layer.slot() else { return };
            let Some((name, change)) = take(&mut left, path, slot.side, &shape) else { return };
            let fitted = match self.scope.refuses(path, depth) {
                Some(why) => Err(why),
                None if slot.change.is_some() => Err("the layer has an adapter already".into()),
                None => change.fit(slot.side, &shape),
            };
            match fitted {
                Ok(Ok(change)) => *slot.change = Some(Box::new(change)),
                Ok(Err(error)) => broken = Some(error),
                Err(why) => problems.push(format!("{name}: {why}")),
            }
        });
        if let Some(error) = broken {
            return Err(error);
        }
        problems.extend(left.keys().map(|path| format!("{path}: the model has no such layer")));
        problems.extend(self.replace(model.module_mut())?);
        if problems.is_empty() {
            return Ok(());
        }
        const SHOWN: usize = 4;
        let more =
            if problems.len() > SHOWN { format!("\n  and {} more", problems.len() - SHOWN) } else { String::new() };
        let n = problems.len();
        let shown = problems.into_iter().take(SHOWN).collect::<Vec<_>>().join("\n  ");
        let base = self.base.as_ref().map_or(String::new(), |base| format!(", which was {base}"));
        Err(Error::value(format!(
            "[adapter] {}: {n} of its tensors do not fit the model:\n  {shown}{more}\n  Give the model that it was trained \
             on{base}, and adapter_config.json as training wrote it",
            self.name
        )))
    }

    /// Replaces whole parameters; says what does not fit.
    fn replace(&self, module: &mut dyn Module) -> Result<Vec<String>> {
        let (own, mut params, mut problems) = (module.parameters(), Params::new(), Vec::new());
        for (name, value) in &self.whole {
            let spellings = [name.clone(), format!("model.{name}"), format!("language_model.{name}")];
            match spellings.iter().find_map(|name| Some((name, own.get(name)?))) {
                None => problems.push(format!("{name}: the model has no such parameter")),
                Some((_, is)) if is.shape() != value.shape() => {
                    let (given, is) = (show(value.shape()), show(is.shape()));
                    problems.push(format!("{name}: shape {given}, the model needs {is}"));
                }
                Some((_, is)) if is.dtype().is_floating() != value.dtype().is_floating() => {
                    let (given, is) = (value.dtype(), is.dtype());
                    problems.push(format!("{name}: {given}, the model has {is}: one of the two is packed"));
                }
                Some((name, _)) => drop(params.insert(name.clone(), value.clone())),
            }
        }
        module.update(&params, true)?;
        Ok(problems)
    }
}

impl Change {
    /// The change of a matrix of this shape, or why it is none.
    fn fit(&self, side: Side, shape: &[usize]) -> std::result::Result<Result<LowRank>, String> {
        let rank = self.rank;
        let Ok(shapes) = side.shapes(shape, rank) else { return Err("the layer takes no change".into()) };
        let turn = |a: &Array| match self.turned && side != Side::Stack {
            true => ops::transpose(a, None),
            false => Ok(a.clone()),
        };
        let (a, b) = match (turn(&self.a), turn(&self.b)) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(e), _) | (_, Err(e)) => return Ok(Err(e)),
        };
        for (what, given, needed) in [("lora_a", &a, &shapes.a), ("lora_b", &b, &shapes.b)] {
            if given.shape() != needed {
                let (given, needed, shape) = (show(given.shape()), show(needed), show(shape));
                return Err(format!(
                    "{what} has shape {given}; rank {rank} (adapter_config.json) and the layer's matrix {shape} need {needed}"
                ));
            }
        }
        if let Some(m) = self.m.as_ref().filter(|m| m.shape() != shapes.m) {
            return Err(format!("m has shape {}; the layer needs {}", show(m.shape()), show(&shapes.m)));
        }
        Ok(LowRank::from_parts(side, [a, b], self.m.clone(), self.scale, 0.0))
    }
}

/// The change of the layer at a path, under that name or one that it has in other programs.
fn take(left: &mut BTreeMap<String, Change>, path: &str, side: Side, shape: &[usize]) -> Option<(String, Change)> {
    if let Some(found) = left.remove_entry(path) {
        return Some(found);
    }
    if !left.values().next()?.turned {
        return None;
    }
    let inner = path.strip_prefix("language_model.").unwrap_or(path);
    let body = inner.strip_prefix("model.").unwrap_or(inner);
    let names = [inner.to_string(), body.to_string(), format!("model.language_model.{body}")];
    names.iter().find_map(|name| left.remove_entry(name)).or_else(|| match side {
        Side::Stack => peft::stacked(left, &[inner, body], shape),
        _ => None,
    })
}

/// A directory of mlx-lm.
fn open(dir: &Path, config: &Map<String, Value>) -> Result<Adapter> {
    let kind = match config.get("fine_tune_type").map_or(Some("lora"), Value::as_str) {
        Some("lora") => "lora",
        Some("dora") => "dora",
        Some("full") => "full",
        _ => {
            let given = &config["fine_tune_type"];
            return Err(wrong(
                dir,
                format!("fine_tune_type in adapter_config.json is {given}; known are lora, dora, full"),
            ));
        }
    };
    let mut adapter = Adapter {
        name: dir.display().to_string(),
        kind,
        base: text(config, "model"),
        bytes: 0,
        scope: Scope::All,
        changes: BTreeMap::new(),
        whole: Params::new(),
    };
    if kind == "full" {
        adapter.whole = tensors(dir, "adapters.safetensors")?.into_iter().collect();
        return Ok(adapter);
    }
    let parameters = config.get("lora_parameters").and_then(Value::as_object);
    let parameters = parameters.ok_or_else(|| {
        wrong(
            dir,
            "adapter_config.json has no object lora_parameters; it needs rank and scale, as training writes them",
        )
    })?;
    let Some(scale) = parameters.get("scale").and_then(Value::as_f64) else {
        let what = match parameters.contains_key("alpha") {
            true => {
                "has alpha and no scale; scale is the factor itself: write \"scale\": alpha / rank if alpha came from \
                     another program"
            }
            false => "has no number scale, the factor of the change",
        };
        return Err(wrong(dir, format!("lora_parameters in adapter_config.json {what}")));
    };
    let rank = parameters.get("rank").and_then(Value::as_u64).filter(|&r| r > 0);
    let rank =
        rank.ok_or_else(|| wrong(dir, "lora_parameters in adapter_config.json has no whole number rank"))? as usize;
    let last = config.get("num_layers").and_then(Value::as_i64);
    let last = last.ok_or_else(|| wrong(dir, "adapter_config.json has no whole number num_layers"))?;
    let keys = match parameters.get("keys") {
        None | Some(Value::Null) => None,
        Some(keys) => {
            let texts = keys.as_array().and_then(|k| k.iter().map(|k| k.as_str().map(str::to_string)).collect());
            Some(texts.ok_or_else(|| wrong(dir, "lora_parameters.keys in adapter_config.json is no list of paths"))?)
        }
    };
    adapter.scope = Scope::Blocks { last: last.max(0) as usize, keys };
    let mut parts: BTreeMap<String, [Option<Array>; 3]> = BTreeMap::new();
    for (name, tensor) in tensors(dir, "adapters.safetensors")? {
        let at = name
            .rsplit_once('.')
            .and_then(|(path, leaf)| Some((path, ["lora_a", "lora_b", "m"].iter().position(|l| *l == leaf)?)));
        let Some((path, at)) = at.filter(|&(_, at)| at < 2 || kind == "dora") else {
            return Err(wrong(dir, format!("{name} in adapters.safetensors is no part of a {kind} adapter")));
        };
        parts.entry(path.to_string()).or_default()[at] = Some(tensor);
    }
    for (path, part) in parts {
        let change = match (part, kind) {
            ([Some(a), Some(b), m @ Some(_)], "dora") => Change { a, b, m, rank, scale, turned: false },
            ([Some(a), Some(b), None], "lora") => Change { a, b, m: None, rank, scale, turned: false },
            (part, _) => {
                let missing = part.iter().zip(["lora_a", "lora_b", "m"]).filter(|(p, _)| p.is_none()).map(|(_, n)| n);
                let missing = missing.filter(|n| *n != "m" || kind == "dora").collect::<Vec<_>>().join(" and ");
                return Err(wrong(
                    dir,
                    format!("{path} in adapters.safetensors lacks {missing}; the file is not whole"),
                ));
            }
        };
        adapter.changes.insert(path, change);
    }
    Ok(adapter)
}

/// The change of a layer, if it is of a kind that takes one.
fn change_of(module: &dyn Module) -> Option<&LowRank> {
    let module: &dyn Any = module;
    let linear = module.downcast_ref::<Linear>().map(|l| l.change.as_deref());
    let table = || module.downcast_ref::<Embedding>().map(|l| l.change.as_deref());
    linear.or_else(table).or_else(|| module.downcast_ref::<crate::blocks::Experts>().map(|l| l.change.as_deref()))?
}

/// What the changes of low rank in a model are, as a short text; `None` where there are none.
///
/// # Errors
/// Faults of evaluation.
pub fn digest(module: &dyn Module) -> Result<Option<String>> {
    let (mut hash, mut any) = (0xcbf2_9ce4_8422_2325u64, false);
    let mut add = |bytes: &[u8]| bytes.iter().for_each(|&b| hash = (hash ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    for (path, layer) in module.named_modules() {
        let Some(change) = change_of(layer) else { continue };
        any = true;
        add(path.as_bytes());
        add(&change.scale().to_le_bytes());
        for array in [Some(&change.lora_a), Some(&change.lora_b), change.m.as_ref()].into_iter().flatten() {
            for value in ops::astype(array, Dtype::Float32)?.to_vec::<f32>()? {
                add(&value.to_le_bytes());
            }
        }
    }
    Ok(any.then(|| format!("{hash:016x}")))
}
