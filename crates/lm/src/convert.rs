//! A checkpoint to another: cast, packed, unpacked, and written as mlx-lm writes it.

use crate::checkpoint::Checkpoint;
use crate::models::{self, Model};
use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Dtype, Error, Result, eval, io, ops};
use lapis_nn::{Leaf, LeafMut, Module, for_each_packable, quantize_where};
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of a file before the next one begins.
const SHARD: u64 = 5 << 30;

/// What lies beside the weights and goes along.
const BESIDE: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "tiktoken.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    // Of sentence-transformers.
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// A mixture of two widths, by the place and kind of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    low: usize,
    high: usize,
}

impl Recipe {
    /// The recipe called `mixed_2_6`, `mixed_3_4`, `mixed_3_6` or `mixed_4_6`.
    ///
    /// # Errors
    /// Another name.
    pub fn from_name(name: &str) -> Result<Recipe> {
        let (low, high) = match name {
            "mixed_2_6" => (2, 6),
            "mixed_3_4" => (3, 4),
            "mixed_3_6" => (3, 6),
            "mixed_4_6" => (4, 6),
            _ => {
                let known = "mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6";
                return Err(Error::value(format!("[convert] recipe {name:?} is not known; known are {known}")));
            }
        };
        Ok(Recipe { low, high })
    }

    /// Bits of the layer at `path`; `place` is where block numbers stand in paths, of `blocks` blocks.
    fn bits(self, path: &str, place: usize, blocks: usize) -> usize {
        let block: usize = path.split('.').nth(place).and_then(|n| n.parse().ok()).unwrap_or(0);
        let edge = blocks / 8;
        let more = block < edge || block >= 7 * blocks / 8 || (block as i64 - edge as i64).rem_euclid(3) == 2;
        let values = ["v_proj", "v_a_proj", "v_b_proj", "down_proj"].iter().any(|n| path.contains(n));
        if path.contains("lm_head") || values && more { self.high } else { self.low }
    }
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Pack weights in this form.
    pub quantize: Option<Format>,
    /// Widths by layer; affine only.
    pub recipe: Option<Recipe>,
    /// Unpack weights.
    pub dequantize: bool,
    /// The type of what is not packed; by default the config's.
    pub dtype: Option<Dtype>,
    /// Bits of the matrix that makes logits, which is the embedding where the two are one.
    pub head_bits: Option<usize>,
    /// Layers by path that are packed otherwise: a mapping with `bits`, `group_size`, `mode`; `false` leaves one as it is,
    /// `true` packs it as the rest.
    pub per_layer: Map<String, Value>,
    /// Say what would be written, and write nothing.
    pub dry_run: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Report {
    /// The type of what is not packed, where one was asked for or named.
    pub dtype: Option<Dtype>,
    /// Bits a weight.
    pub bits_per_weight: f64,
    /// Values that the weights stand for.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of the largest file of weights.
    pub shard: u64,
    /// Layers that were packed before, which packing leaves as they are.
    pub packed_before: usize,
    /// Seconds that casting and packing would take, where nothing was written: those of the largest layer, for all.
    pub seconds: Option<f64>,
}

/// That a directory may be written: it does not exist.
///
/// # Errors
/// One that does.
pub fn vacant(to: &Path) -> Result<()> {
    if to.exists() {
        let to = to.display();
        return Err(Error::io(format!("[convert] {to} exists; remove it or name another directory with --mlx-path")));
    }
    Ok(())
}

/// That a directory can be made: to be asked before work of hours. What killed processes left beside it goes.
///
/// # Errors
/// A place that is not there or cannot be written.
pub fn writable(to: &Path) -> Result<()> {
    Partial::begin(to).map(drop)
}

/// Converts the model in `from` to the directory `to`, which must not exist. `say` hears of each stage.
///
/// # Errors
/// A target that exists; whatever is wrong with the source; a full disk. The target appears when it is complete.
pub fn convert(from: &Path, to: &Path, options: &Options, mut say: impl FnMut(&str)) -> Result<Report> {
    vacant(to)?;
    if !options.dry_run {
        writable(to)?;
    }
    if options.quantize.is_some() && options.dequantize {
        return Err(Error::value("[convert] quantize or dequantize, not both"));
    }
    if options.recipe.is_some() && options.quantize.is_some_and(|f| f.mode() != Mode::Affine) {
        return Err(Error::value("[convert] mixed recipes are affine: leave out --q-mode"));
    }
    say("[INFO] Loading");
    let mut checkpoint = Checkpoint::open(from)?;
    let mut config = checkpoint.source.clone();
    let mut model = models::load(&mut checkpoint)?;
    let dtype = match options.dtype {
        Some(dtype) => Some(dtype),
        None => named_dtype(&config),
    };
    if let Some(dtype) = dtype {
        say(&format!("[INFO] Using dtype: {dtype}"));
        cast(model.module_mut(), dtype, models::keeps_type(&config))?;
    }
    let mut packed_before = 0;
    for_each_packable(model.module_mut(), &mut |_, layer| packed_before += usize::from(layer.is_quantized()));
    if let Some(format) = options.quantize {
        say("[INFO] Quantizing");
        pack(&mut *model, &mut config, format, options)?;
    }
    if options.dequantize {
        say("[INFO] Dequantizing");
        let mut failed = None;
        for_each_packable(model.module_mut(), &mut |_, layer| failed = failed.take().or(layer.dequantize().err()));
        if let Some(e) = failed {
            return Err(e);
        }
    }
    let mut packed = false;
    for_each_packable(model.module_mut(), &mut |_, layer| packed |= layer.is_quantized());
    if !packed {
        // Of makers' forms that were unpacked while they were read, too.
        config.remove("quantization");
        config.remove("quantization_config");
    }
    let bits_per_weight = bits_per_weight(model.module_mut());
    if options.quantize.is_some() {
        say(&format!("[INFO] Quantized model with {bits_per_weight:.3} bits per weight."));
    }
    let (all, parameters) = parameters(model.module_mut());
    let bytes: u64 = all.iter().map(|(_, a)| a.nbytes() as u64).sum();
    let largest = all.iter().map(|(_, a)| a).max_by_key(|a| a.nbytes());
    let shard = bytes.min(SHARD).max(largest.map_or(0, |a| a.nbytes() as u64));
    let mut report = Report { dtype, bits_per_weight, parameters, bytes, shard, packed_before, seconds: None };
    if options.dry_run {
        if let Some(largest) = largest {
            let began = Instant::now();
            eval([largest])?;
            let share = bytes as f64 / largest.nbytes().max(1) as f64;
            report.seconds = Some(began.elapsed().as_secs_f64() * share);
        }
        return Ok(report);
    }
    drop(all);
    save(model.module_mut(), config, Some(from), &checkpoint.beside()?, to)?;
    Ok(report)
}

/// The floating type that a config names.
fn named_dtype(config: &Map<String, Value>) -> Option<Dtype> {
    let text = config.get("text_config").and_then(|t| t.get("dtype"));
    match config.get("torch_dtype").or(text)?.as_str()? {
        "float16" => Some(Dtype::Float16),
        "bfloat16" => Some(Dtype::Bfloat16),
        "float32" => Some(Dtype::Float32),
        _ => None,
    }
}

/// Floating parameters as `dtype`; packed words and their scales stay.
fn cast(module: &mut dyn Module, dtype: Dtype, keeps: fn(&str) -> bool) -> Result<()> {
    let mut failed = None;
    module.visit_mut(&mut |path, leaf| {
        if let LeafMut::Param(p) = leaf
            && p.dtype().is_floating()
            && !keeps(path)
        {
            match ops::astype(p.value(), dtype) {
                Ok(value) => p.set(value),
                Err(e) => failed = failed.take().or(Some(e)),
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

fn pack(model: &mut dyn Model, config: &mut Map<String, Value>, base: Format, options: &Options) -> Result<()> {
    let recipe = options.recipe;
    let block = |f: Format| json!({"group_size": f.group(), "bits": f.bits(), "mode": f.mode().name()});
    let fine = config.contains_key("quantization");
    let mut plan = match config.remove("quantization") {
        Some(Value::Object(plan)) => plan,
        _ => block(base).as_object().cloned().unwrap_or_default(),
    };
    let blocks = model.depth();
    let names: Vec<String> = model.module().named_modules().into_iter().map(|(name, _)| name).collect();
    let place = match (recipe, names.iter().find(|n| n.contains("down_proj"))) {
        (None, _) => 0,
        (Some(_), Some(down)) => down.split('.').position(|p| p.parse::<usize>().is_ok()).unwrap_or(0),
        (Some(_), None) => {
            return Err(Error::value("[convert] mixed recipes need layers called down_proj; this model has none"));
        }
    };
    let mut own = own(model, config, base, options)?;
    let rule = models::find(config)?.quantize;
    let mut failed = None;
    quantize_where(model.module_mut(), &mut |path, layer| {
        let columns = layer.matrix().columns();
        let given = own.remove(path);
        if given.is_none() && !columns.is_multiple_of(base.group()) {
            return None;
        }
        let packing = match (given, recipe) {
            (Some(Some(format)), _) if !columns.is_multiple_of(format.group()) => {
                let group = format.group();
                failed = failed.take().or(Some(Error::value(format!(
                    "[convert] {path} has {columns} columns, which are no whole number of groups of {group}"
                ))));
                models::Packing::Base
            }
            (Some(Some(format)), _) => models::Packing::As(format),
            (Some(None), _) => models::Packing::Never,
            (None, Some(recipe)) => match Format::affine(recipe.bits(path, place, blocks), base.group()) {
                Ok(format) => models::Packing::As(format),
                Err(e) => {
                    failed = failed.take().or(Some(e));
                    models::Packing::Base
                }
            },
            (None, None) => rule(path),
        };
        match packing {
            models::Packing::Base => {
                if fine {
                    plan.insert(path.to_string(), block(base));
                }
                Some(base.into())
            }
            models::Packing::As(format) if columns.is_multiple_of(format.group()) => {
                plan.insert(path.to_string(), block(format));
                Some(format.into())
            }
            _ => None,
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    if let Some(path) = own.keys().next() {
        return Err(absent(path, &names));
    }
    config.insert("quantization".into(), Value::Object(plan.clone()));
    config.insert("quantization_config".into(), Value::Object(plan));
    Ok(())
}

/// Layers that are packed otherwise than the rest, by path; `None` is not packed.
fn own(
    model: &mut dyn Model,
    config: &Map<String, Value>,
    base: Format,
    options: &Options,
) -> Result<BTreeMap<String, Option<Format>>> {
    let mut all = BTreeMap::new();
    if let Some(bits) = options.head_bits {
        let mut paths = Vec::new();
        for_each_packable(model.module_mut(), &mut |path, _| paths.push(path.to_string()));
        let last = |name: &str| paths.iter().find(|p| p.rsplit('.').next() == Some(name));
        let tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
        let head = last("lm_head").or_else(|| tied.then(|| last("embed_tokens")).flatten());
        let head = head.ok_or_else(|| Error::value("[convert] this model has no lm_head to pack otherwise"))?;
        let group = if base.mode() == Mode::Affine { base.group() } else { 64 };
        all.insert(head.clone(), Some(Format::affine(bits, group)?));
    }
    for (path, value) in &options.per_layer {
        let wrong = |why: &str| Error::value(format!("[convert] {path}: {why}"));
        let format = match value {
            Value::Bool(true) => Some(base),
            Value::Bool(false) => None,
            Value::Object(of) => {
                let number = |key: &str| match of.get(key) {
                    None => Ok(None),
                    Some(n) => n.as_u64().map(|n| Some(n as usize)).ok_or_else(|| wrong(&format!("{key} is {n}"))),
                };
                let mode = match of.get("mode").map(|m| m.as_str().ok_or_else(|| wrong("mode is no name"))) {
                    None => base.mode(),
                    Some(name) => Mode::from_name(name?)?,
                };
                if let Some(key) = of.keys().find(|k| !["bits", "group_size", "mode"].contains(&k.as_str())) {
                    return Err(wrong(&format!("there is no {key:?}; there are bits, group_size and mode")));
                }
                let same = mode == base.mode();
                let (bits, group) = (number("bits")?, number("group_size")?.or(same.then_some(base.group())));
                Some(Format::new(mode, bits.or(same.then_some(base.bits())), group)?)
            }
            _ => return Err(wrong("a mapping with bits and group_size, true or false is needed")),
        };
        all.insert(path.clone(), format);
    }
    Ok(all)
}

/// A path that no layer has, with the nearest that one has.
fn absent(path: &str, names: &[String]) -> Error {
    let last = path.rsplit('.').next().unwrap_or(path);
    let near: Vec<&str> = names.iter().filter(|n| n.ends_with(last)).take(3).map(String::as_str).collect();
    let near = if near.is_empty() { names.iter().rev().take(3).map(String::as_str).collect() } else { near };
    Error::value(format!("[convert] there is no layer {path:?} to pack; there are {}, ...", near.join(", ")))
}

/// Parameters in the order of the model, and how many values they stand for.
fn parameters(module: &mut dyn Module) -> (Vec<(String, Array)>, u64) {
    let mut packed = BTreeMap::new();
    for_each_packable(module, &mut |path, layer| {
        packed.extend(layer.matrix().format().map(|f| (path.to_string(), f.bits())));
    });
    let (mut all, mut total) = (Vec::new(), 0);
    module.visit(&mut |name, leaf| {
        let Leaf::Param(p) = leaf else { return };
        let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
        total += match (packed.get(path), last) {
            (Some(bits), "weight") => p.size() * 32 / bits,
            (Some(_), "scales" | "biases") => 0,
            _ => p.size(),
        };
        all.push((name.to_string(), p.value().clone()));
    });
    (all, total as u64)
}

/// How many values the weights stand for, packed ones unpacked.
pub fn values(module: &mut dyn Module) -> u64 {
    parameters(module).1
}

/// 8 times the bytes of all parameters over the number of values.
pub fn bits_per_weight(module: &mut dyn Module) -> f64 {
    let (all, count) = parameters(module);
    let bytes: usize = all.iter().map(|(_, a)| a.nbytes()).sum();
    8.0 * bytes as f64 / count.max(1) as f64
}

/// Writes a model directory: weights, index, config, the files beside them in `from`, and those of `beside`.
pub(crate) fn save(
    module: &mut dyn Module,
    mut config: Map<String, Value>,
    from: Option<&Path>,
    beside: &[(&str, Vec<u8>)],
    to: &Path,
) -> Result<()> {
    let partial = Partial::begin(to)?;
    let dir = &partial.dir;
    let (all, count) = parameters(module);
    let metadata = [("format".to_string(), "mlx".to_string())].into_iter().collect();
    io::save_sharded(dir, all.iter().map(|(n, a)| (n, a)), &metadata, count, SHARD)?;
    config.remove("_name_or_path");
    config.remove("vision_config");
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    write(&dir.join("config.json"), &pretty(&json!(sorted)))?;
    for (from, name) in from.iter().flat_map(|from| BESIDE.iter().map(move |name| (from, name))) {
        if !from.join(name).is_file() {
            continue;
        }
        let place = dir.join(name);
        place.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|e| fail(&place, e))?;
        std::fs::copy(from.join(name), place).map_err(|e| fail(&from.join(name), e))?;
    }
    for (name, bytes) in beside {
        write(&dir.join(name), bytes)?;
    }
    partial.commit(to)
}

/// A directory in the making, gone unless it is committed.
struct Partial {
    dir: PathBuf,
    /// The directory itself, locked where the system can: whoever else finds it knows that it is in use.
    _lock: Option<File>,
    complete: bool,
}

impl Partial {
    /// The directory in which what will become `to` is made, beside it. What killed processes left of theirs goes.
    fn begin(to: &Path) -> Result<Partial> {
        let name = to.file_name().and_then(|n| n.to_str()).unwrap_or("model");
        let (begin, own) = (format!("{name}.partial-"), std::process::id());
        let place = to.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let pid = file.to_str().and_then(|f| f.strip_prefix(&begin)).and_then(|p| p.parse::<u32>().ok());
            let Some(pid) = pid else { continue };
            // The lock speaks for processes of other machines and containers, the number for one that has no lock yet.
            let lives = pid != own && Path::new("/proc").join(pid.to_string()).exists();
            if !lives && locked(&entry.path()).is_some() {
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
        let dir = to.with_file_name(format!("{begin}{own}"));
        std::fs::create_dir_all(&dir).map_err(|e| fail(&dir, e))?;
        Ok(Partial { _lock: locked(&dir), dir, complete: false })
    }

    fn commit(mut self, to: &Path) -> Result<()> {
        std::fs::rename(&self.dir, to).map_err(|e| fail(to, e))?;
        self.complete = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.complete {
            // Nothing more can be done about a directory that does not go.
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// A directory with a lock on it, where nobody else has one and the system can.
fn locked(dir: &Path) -> Option<File> {
    let dir = File::open(dir).ok()?;
    dir.try_lock().ok().map(|()| dir)
}

fn fail(path: &Path, e: std::io::Error) -> Error {
    let text = format!("[convert] {}: {e}", path.display());
    if e.kind() == std::io::ErrorKind::StorageFull { Error::memory(text) } else { Error::io(text) }
}

/// As Python's `json.dump(..., indent=4)` writes it, numbers included.
fn pretty(value: &Value) -> Vec<u8> {
    let mut text = Vec::new();
    let mut writer = serde_json::Serializer::with_formatter(&mut text, Python(PrettyFormatter::with_indent(b"    ")));
    serde::Serialize::serialize(value, &mut writer).expect("writing to memory");
    text
}

struct Python<'a>(PrettyFormatter<'a>);

/// Methods that are passed on.
macro_rules! passed_on {
    ($($name:ident($($arg:ident: $t:ty)?)),* $(,)?) => {$(
        fn $name<W: ?Sized + std::io::Write>(&mut self, w: &mut W $(, $arg: $t)?) -> std::io::Result<()> {
            self.0.$name(w $(, $arg)?)
        }
    )*};
}

impl Formatter for Python<'_> {
    passed_on! {
        begin_array(), end_array(), begin_array_value(first: bool), end_array_value(), begin_object(), end_object(),
        begin_object_key(first: bool), end_object_key(), begin_object_value(), end_object_value(),
    }

    fn write_f64<W: ?Sized + std::io::Write>(&mut self, w: &mut W, x: f64) -> std::io::Result<()> {
        let scientific = format!("{x:e}");
        match scientific.split_once('e').map(|(digits, e)| (digits, e.parse::<i32>())) {
            Some((digits, Ok(e))) if !(-4..16).contains(&e) => {
                write!(w, "{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs())
            }
            _ => write!(w, "{x:?}"),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = io::atomic::AtomicFile::create(path, "convert", bytes.len() as u64)?;
    file.write(bytes)?;
    file.commit()
}
