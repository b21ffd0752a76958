//! A checkpoint as a GGUF file, for programs that read those: what [`families`](super::families) and [`vocab`](super::vocab) say, the
//! other way round.

use super::families::Family;
use super::{families, vocab};
use crate::checkpoint::Checkpoint;
use crate::models;
use lapis::io::gguf::{Part, Type, Value as Meta, pack, write_parts};
use lapis::io::{Bytes, RawTensor};
use lapis::{Array, Dtype, Error, Result, eval, ops};
use lapis_nn::{Params, for_each_packable};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// How matrices are written; vectors are float32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// 8 bits, 32 values to a scale.
    Q8_0,
    /// 4 bits, 32 values to a scale.
    Q4_0,
    /// 4 bits, 32 values to a scale and a smallest value.
    Q4_1,
}

impl Kind {
    /// All of them by name.
    pub const ALL: [(&'static str, Kind); 6] = [
        ("f32", Kind::F32),
        ("f16", Kind::F16),
        ("bf16", Kind::Bf16),
        ("q8_0", Kind::Q8_0),
        ("q4_0", Kind::Q4_0),
        ("q4_1", Kind::Q4_1),
    ];

    /// The type of a tensor, and the number of llama.cpp's file type.
    fn types(self) -> (Type, u32) {
        match self {
            Kind::F32 => (Type::F32, 0),
            Kind::F16 => (Type::F16, 1),
            Kind::Bf16 => (Type::BF16, 32),
            Kind::Q8_0 => (Type::Q8_0, 7),
            Kind::Q4_0 => (Type::Q4_0, 2),
            Kind::Q4_1 => (Type::Q4_1, 3),
        }
    }
}

fn wrong(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("[export_gguf] {what}"))
}

/// Metadata in the order in which they are written.
#[derive(Default)]
pub(super) struct Notes(Vec<(String, Meta)>);

impl Notes {
    fn numbers(&mut self, key: String, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<()> {
        let tensor = RawTensor::new(key.clone(), dtype, shape.to_vec(), Bytes::copy(bytes)?)?;
        self.0.push((key, Meta::Numbers(tensor)));
        Ok(())
    }

    pub(super) fn text(&mut self, key: impl Into<String>, text: &str) {
        self.0.push((key.into(), Meta::Text(text.into())));
    }

    pub(super) fn texts(&mut self, key: &str, texts: Vec<String>) {
        self.0.push((key.into(), Meta::Texts(texts)));
    }

    pub(super) fn word(&mut self, key: impl Into<String>, n: u32) -> Result<()> {
        self.numbers(key.into(), Dtype::Uint32, &[], &n.to_le_bytes())
    }

    pub(super) fn words(&mut self, key: &str, all: &[i32]) -> Result<()> {
        let bytes: Vec<u8> = all.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.numbers(key.into(), Dtype::Int32, &[all.len()], &bytes)
    }

    pub(super) fn bytes(&mut self, key: &str, all: &[u8]) -> Result<()> {
        self.numbers(key.into(), Dtype::Uint8, &[all.len()], all)
    }

    pub(super) fn float(&mut self, key: impl Into<String>, x: f64) -> Result<()> {
        self.numbers(key.into(), Dtype::Float32, &[], &(x as f32).to_le_bytes())
    }

    pub(super) fn floats(&mut self, key: &str, all: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = all.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.numbers(key.into(), Dtype::Float32, &[all.len()], &bytes)
    }

    pub(super) fn flag(&mut self, key: &str, on: bool) -> Result<()> {
        self.numbers(key.into(), Dtype::Bool, &[], &[u8::from(on)])
    }
}

/// What a file will hold.
struct Plan {
    parts: Vec<Part>,
    /// The values of the parts, lazily.
    values: Vec<Array>,
    notes: Notes,
    otherwise: Option<&'static str>,
}

/// That the model in a directory, or one with other values of the same shapes, can be written.
///
/// # Errors
/// As [`export`], but for faults of writing.
pub fn exportable(dir: &Path, kind: Kind) -> Result<()> {
    plan(dir, kind).map(drop)
}

/// Writes the model in a directory as a GGUF file; gives what llama.cpp does otherwise with it, if anything.
///
/// # Errors
/// Before anything is written: an architecture, a tokenizer or scaled positions for which such files have no words; rows that
/// fill no blocks. Faults of reading and writing.
pub fn export(dir: &Path, to: &Path, kind: Kind) -> Result<Option<&'static str>> {
    let Plan { parts, values, notes, otherwise } = plan(dir, kind)?;
    let metadata = notes.0.into_iter().collect();
    write_parts(to, &parts, &metadata, |i| bytes(&values[i], parts[i].kind))?;
    Ok(otherwise)
}

fn plan(dir: &Path, kind: Kind) -> Result<Plan> {
    let mut checkpoint = Checkpoint::open(dir)?;
    let name = dir.file_name().and_then(|n| n.to_str()).unwrap_or("model").to_string();
    let mut model = models::load(&mut checkpoint)?;
    let mut failed = None;
    for_each_packable(model.module_mut(), &mut |_, layer| failed = failed.take().or(layer.dequantize().err()));
    if let Some(error) = failed {
        return Err(error);
    }
    let (config, params) = (&turning(&checkpoint.config), model.module().parameters());
    let family = families::of_config(config)?;
    let mut notes = Notes::default();
    notes.text("general.architecture", family.arch());
    notes.text("general.type", "model");
    notes.text("general.name", &name);
    notes.word("general.file_type", kind.types().1)?;
    notes.word("general.quantization_version", 2)?;
    numbers(family, config, &params, &mut notes)?;
    let mut tensors: BTreeMap<String, Array> = BTreeMap::new();
    if let Some(factors) = scaled(family, config, &mut notes)? {
        tensors.insert("rope_freqs.weight".into(), factors);
    }
    let rows = params.get("model.embed_tokens.weight").map_or(0, |a| a.dim(0));
    let otherwise = vocab::describe(dir, config, rows, &mut notes)?;
    for (path, value) in &params {
        let name = super::names::back(family, path).ok_or_else(|| wrong(format!("{path} has no name in GGUF")))?;
        tensors.insert(name.clone(), super::pieces::redo(family, config, &name, value.clone())?);
    }
    let parts: Vec<Part> = tensors.iter().map(|(name, a)| part(name, a, kind)).collect::<Result<_>>()?;
    Ok(Plan { parts, values: tensors.into_values().collect(), notes, otherwise })
}

/// A config with what transformers 5 says in `rope_parameters` where it was before: the base beside the rest, and of models with
/// several kinds of layers what holds for those that see everything.
fn turning(config: &Map<String, Value>) -> Map<String, Value> {
    let mut config = config.clone();
    if let Some(block) = config.get("rope_parameters").cloned() {
        let block = block.get("full_attention").cloned().unwrap_or(block);
        if let Some(base) = block.get("rope_theta").cloned() {
            config.entry("rope_theta").or_insert(base);
        }
        config.insert("rope_parameters".into(), block);
    }
    config
}

fn part(name: &str, a: &Array, kind: Kind) -> Result<Part> {
    // What routers and convolutions have is small and delicate.
    let small = a.ndim() < 2 || name.contains("ffn_gate_inp");
    let kind = if small { Type::F32 } else { kind.types().0 };
    let row = a.shape().last().copied().unwrap_or(0) as u64;
    if !row.is_multiple_of(kind.block().0) {
        return Err(wrong(format!("{name} has rows of {row}, no whole blocks of {kind:?}; choose f16")));
    }
    Ok(Part { name: name.into(), kind, shape: a.shape().to_vec() })
}

fn bytes(a: &Array, kind: Type) -> Result<Cow<'static, [u8]>> {
    let floats = |a: &Array| -> Result<Vec<f32>> {
        let a = ops::contiguous(&ops::astype(a, Dtype::Float32)?, false)?;
        eval([&a])?;
        a.to_vec()
    };
    let bits = |dtype: Dtype| -> Result<Vec<u8>> {
        let a = ops::view(&ops::contiguous(&ops::astype(a, dtype)?, false)?, Dtype::Uint16)?;
        Ok(a.to_vec::<u16>()?.into_iter().flat_map(u16::to_le_bytes).collect())
    };
    Ok(Cow::Owned(match kind {
        Type::F16 => bits(Dtype::Float16)?,
        Type::BF16 => bits(Dtype::Bfloat16)?,
        Type::F32 => floats(a)?.into_iter().flat_map(f32::to_le_bytes).collect(),
        kind => pack(kind, &floats(a)?).ok_or_else(|| wrong(format!("{kind:?} is not written")))?,
    }))
}

/// The numbers of a config.
fn numbers(family: &Family, config: &Map<String, Value>, params: &Params, notes: &mut Notes) -> Result<()> {
    let arch = family.arch();
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let need = |key: &str| number(key).ok_or_else(|| wrong(format!("config.json has no {key}")));
    let mut config = config.clone();
    let (width, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    config.entry("num_key_value_heads").or_insert(heads.into());
    config.entry("head_dim").or_insert((width / heads).into());
    config.entry("rope_theta").or_insert(10000.0.into());
    if !family.centres() {
        config.entry("rms_norm_eps").or_insert(1e-5.into());
    }
    for (key, own) in family.all_keys() {
        let Some(value) = config.get(own).and_then(Value::as_f64) else { continue };
        if key == "attention.sliding_window" && !family.slides() {
            continue;
        }
        let key = format!("{arch}.{key}");
        let float = ["eps", "epsilon", "freq_base", "scale", "softcapping"].iter().any(|f| key.contains(f));
        if float { notes.float(key, value)? } else { notes.word(key, value as u32)? }
    }
    let head = config["head_dim"].as_f64().unwrap_or(width / heads) as u32;
    notes.word(format!("{arch}.attention.value_length"), head)?;
    let turned = f64::from(head) * number("partial_rotary_factor").unwrap_or(1.0);
    notes.word(format!("{arch}.rope.dimension_count"), turned as u32)?;
    let rows = params.get("model.embed_tokens.weight").map_or(0, |a| a.dim(0));
    notes.word(format!("{arch}.vocab_size"), rows as u32)
}

/// Scaled positions: as words, or as factors of wavelengths.
fn scaled(family: &Family, config: &Map<String, Value>, notes: &mut Notes) -> Result<Option<Array>> {
    let block = ["rope_scaling", "rope_parameters"].iter().find_map(|k| config.get(*k)?.as_object());
    let Some(block) = block else { return Ok(None) };
    let number = |key: &str| block.get(key).and_then(Value::as_f64);
    let kind = block.get("rope_type").or(block.get("type")).and_then(Value::as_str).unwrap_or("default");
    let arch = family.arch();
    match kind {
        "default" => Ok(None),
        "linear" | "yarn" => {
            notes.text(format!("{arch}.rope.scaling.type"), kind);
            notes.float(format!("{arch}.rope.scaling.factor"), number("factor").unwrap_or(1.0))?;
            if let Some(old) = number("original_max_position_embeddings") {
                notes.word(format!("{arch}.rope.scaling.original_context_length"), old as u32)?;
            }
            Ok(None)
        }
        "llama3" => {
            let head = config.get("head_dim").and_then(Value::as_u64);
            let own = |key: &str| config.get(key).and_then(Value::as_f64);
            let each = own("hidden_size").zip(own("num_attention_heads")).map(|(w, n)| (w / n) as u64);
            let head = head.or(each).unwrap_or(0) as usize;
            let base = own("rope_theta").unwrap_or(10000.0);
            let [factor, low, high, old] = [
                ("factor", 8.0),
                ("low_freq_factor", 1.0),
                ("high_freq_factor", 4.0),
                ("original_max_position_embeddings", 8192.0),
            ]
            .map(|(key, usual)| number(key).unwrap_or(usual));
            let factors = (0..head / 2).map(|i| {
                let length = 2.0 * std::f64::consts::PI * base.powf(2.0 * i as f64 / head as f64);
                let smooth = ((old / length - low) / (high - low)).clamp(0.0, 1.0);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            });
            let factors: Vec<f32> = factors.collect();
            let n = factors.len();
            Ok(Some(Array::from_vec(factors, &[n])))
        }
        other => Err(wrong(format!("positions scaled as {other:?} have no words in GGUF that are written here"))),
    }
}
