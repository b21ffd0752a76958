//! A checkpoint to another: cast, packed, unpacked, and written as mlx-lm writes it.

use crate::checkpoint::Checkpoint;
use crate::models::{self, Model};
use crate::partial::{Listener, Partial, fail, files, vacant, writable, write};
use lapis::io::Shards;
use lapis::io::atomic::{free_bytes, human};
use lapis::io::safetensors::Spec;
use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Dtype, Error, Result, eval, io, ops};
use lapis_nn::{Leaf, LeafMut, Module, for_each_packable, quantize_where};
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
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
    /// Bytes of a file of weights before the next one begins; 5 GiB by default.
    pub shard: Option<u64>,
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

/// Converts the model in `from` to the directory `to`, which must not exist. `listener` hears of each stage; nothing comes back where it
/// had the work stop. A run that was interrupted leaves its finished files of weights beside `to`, and the next one with the same source and
/// options takes them, checked by digest.
///
/// # Errors
/// A target that exists or is being written; whatever is wrong with the source; a full disk. The target appears when it is complete.
pub fn convert(from: &Path, to: &Path, options: &Options, mut listener: impl Listener) -> Result<Option<Report>> {
    let listener: &mut dyn Listener = &mut listener;
    vacant(to)?;
    if options.quantize.is_some() && options.dequantize {
        return Err(Error::value("[convert] quantize or dequantize, not both"));
    }
    if options.recipe.is_some() && options.quantize.is_some_and(|f| f.mode() != Mode::Affine) {
        return Err(Error::value("[convert] mixed recipes are affine: leave out --q-mode"));
    }
    if !options.dry_run {
        writable(to)?;
    }
    listener.say("[INFO] Loading");
    let mut checkpoint = Checkpoint::open(from)?;
    let mut config = checkpoint.source.clone();
    let mut model = models::load(&mut checkpoint)?;
    let dtype = match options.dtype {
        Some(dtype) => Some(dtype),
        None => named_dtype(&config),
    };
    if let Some(dtype) = dtype {
        listener.say(&format!("[INFO] Using dtype: {dtype}"));
        cast(model.module_mut(), dtype, models::keeps_type(&config))?;
    }
    let mut packed_before = 0;
    for_each_packable(model.module_mut(), &mut |_, layer| packed_before += usize::from(layer.is_quantized()));
    if let Some(format) = options.quantize {
        listener.say("[INFO] Quantizing");
        pack(&mut *model, &mut config, format, options)?;
    }
    if options.dequantize {
        listener.say("[INFO] Dequantizing");
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
        listener.say(&format!("[INFO] Quantized model with {bits_per_weight:.3} bits per weight."));
    }
    let (all, parameters) = parameters(model.module_mut());
    let bytes: u64 = all.iter().map(|(_, a)| a.nbytes() as u64).sum();
    let largest = all.iter().map(|(_, a)| a).max_by_key(|a| a.nbytes());
    let shard = bytes.min(options.shard.unwrap_or(SHARD)).max(largest.map_or(0, |a| a.nbytes() as u64));
    let mut report = Report { dtype, bits_per_weight, parameters, bytes, shard, packed_before, seconds: None };
    if options.dry_run {
        if let Some(largest) = largest {
            let began = Instant::now();
            eval([largest])?;
            let share = bytes as f64 / largest.nbytes().max(1) as f64;
            report.seconds = Some(began.elapsed().as_secs_f64() * share);
        }
        return Ok(Some(report));
    }
    drop(all);
    let beside = Beside { config, from: Some(from), files: &checkpoint.beside()? };
    let run = json!({"method": "convert", "options": format!("{options:?}"), "source": files(from)});
    let partial = Partial::begin(to, &run, listener)?;
    let done = save(model, beside, options.shard, partial, listener)?;
    Ok(done.then_some(report))
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

/// What a model directory holds beside weights.
pub(crate) struct Beside<'a> {
    pub(crate) config: Map<String, Value>,
    /// A directory whose tokenizer and the like go along.
    pub(crate) from: Option<&'a Path>,
    /// Files that are made.
    pub(crate) files: &'a [(&'static str, Vec<u8>)],
}

/// Writes a model directory: weights in files of `shard` bytes, index, config, what lies beside them. Each file of weights is computed
/// when its turn comes and its arrays go with it; finished ones of an interrupted run are taken as they are. False where the
/// listener had it stop.
pub(crate) fn save(
    mut model: Box<dyn Model>,
    beside: Beside<'_>,
    shard: Option<u64>,
    mut partial: Partial,
    listener: &mut dyn Listener,
) -> Result<bool> {
    let (all, count) = parameters(model.module_mut());
    drop(model);
    let shards = Shards::of(all, shard.unwrap_or(SHARD))?;
    let (index, of, files, dir) = (shards.index(count)?, shards.bytes, shards.files.len(), partial.dir.clone());
    let size = |arrays: &[(String, Array)]| arrays.iter().map(|(_, a)| a.nbytes() as u64).sum::<u64>();
    let missing = shards.files.iter().filter(|(file, _)| !partial.lists(file)).map(|(_, a)| size(a));
    let (needs, free) = (missing.sum::<u64>(), free_bytes(&dir).unwrap_or(u64::MAX));
    if needs > free {
        let (needs, free) = (human(needs), human(free));
        return Err(Error::memory(format!("[convert] {}: needs {needs}, {free} free there", dir.display())));
    }
    let (mut at, mut stopped) = (0, false);
    for (i, (file, arrays)) in shards.files.into_iter().enumerate() {
        let (listed, begin) = (partial.lists(&file), at);
        at += size(&arrays);
        let mut told = |listener: &mut dyn Listener, done: u64| {
            listener.at((begin + done).min(at), of);
            stopped |= listener.stop();
            !stopped
        };
        let mut read = 0;
        let whole = partial.has(&file, |n| {
            read += n as u64;
            told(listener, read)
        })?;
        if !whole && told(listener, 0) {
            if listed {
                listener.say(&format!("[INFO] {file} is damaged and made anew"));
            }
            partial.work();
            // After the last one little is left to be interrupted in.
            if write_shard(&dir.join(&file), &arrays, &mut |done| told(listener, done))? && i + 1 < files {
                partial.finish(&file)?;
            }
        }
        if stopped {
            let done = partial.finished();
            listener.say(&match done {
                0 => "[INFO] Interrupted; nothing is written.".to_string(),
                _ => format!("[INFO] Interrupted; {done} of {files} files of weights are finished, and the same command goes on from there."),
            });
            partial.leave();
            return Ok(false);
        }
    }
    partial.work();
    write(&dir.join("model.safetensors.index.json"), &index)?;
    let mut config = beside.config;
    config.remove("_name_or_path");
    config.remove("vision_config");
    let sorted: BTreeMap<String, Value> = config.into_iter().collect();
    write(&dir.join("config.json"), &pretty(&json!(sorted)))?;
    for (from, name) in beside.from.iter().flat_map(|from| BESIDE.iter().map(move |name| (from, name))) {
        let file = from.join(name);
        if !file.is_file() {
            continue;
        }
        let place = dir.join(name);
        place.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(|e| fail(&place, e))?;
        write(&place, &std::fs::read(&file).map_err(|e| fail(&file, e))?)?;
    }
    for (name, bytes) in beside.files {
        write(&dir.join(name), bytes)?;
    }
    partial.commit()?;
    Ok(true)
}

/// Writes one file of weights, whole or not at all; not, where `go`, which hears of the bytes that are written, ends it.
fn write_shard(path: &Path, arrays: &[(String, Array)], go: &mut dyn FnMut(u64) -> bool) -> Result<bool> {
    let metadata = [("format".to_string(), "mlx".to_string())].into_iter().collect();
    let spec = |(name, a): &(String, Array)| Spec { name: name.clone(), dtype: a.dtype(), shape: a.shape().into() };
    let specs: Vec<Spec> = arrays.iter().map(spec).collect();
    let (mut done, mut stopped) = (0, false);
    let written = io::safetensors::write(path, &specs, &metadata, |i| {
        let array = &arrays[i].1;
        stopped = !go(done);
        if stopped {
            return Err(Error::io("[convert] interrupted"));
        }
        eval([array])?;
        done += array.nbytes() as u64;
        let tensor = array.tensor()?;
        Ok(match tensor.is_row_contiguous() {
            true => Cow::Borrowed(tensor.contiguous_bytes()),
            false => Cow::Owned(ops::contiguous(array, false)?.to_bytes()?),
        })
    });
    if stopped { Ok(false) } else { written.map(|()| true) }
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
