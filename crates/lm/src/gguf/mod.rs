//! A model in a GGUF file: its metadata become a config and a tokenizer, its tensors get the names of checkpoints.
//!
//! `open` gives what [`Checkpoint::open`](crate::Checkpoint::open) finds in a directory. What differs from one
//! architecture to the next is data in `families`. Blocks that lapis has a quantization for stay packed (see
//! [`lapis::io::gguf::File::compact`]). Knows no model.

mod export;
mod families;
mod gemma;
mod meta;
mod names;
mod pieces;
mod unigram;
mod vocab;

pub use export::{Kind, export, exportable};
pub(crate) use meta::Meta;
pub(crate) use vocab::{templates, tokenizer};

use families::Family;
use lapis::io::gguf::File;
use lapis::io::{Arrays, ReadMode, Source};
use lapis::ops::quantize::{Format, Mode};
use lapis::{Array, Dtype, Error, Result, ops};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a file holds.
pub(crate) struct Opened {
    pub(crate) config: Map<String, Value>,
    pub(crate) tensors: Arrays,
    pub(crate) meta: Meta,
}

/// Whether a path is that of a GGUF file.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// Opens a file, or the first of several.
///
/// # Errors
/// A file that is malformed or missing beside the first; an architecture that is not known; tensors that are.
pub(crate) fn open(path: &Path) -> Result<Opened> {
    let open = |path: &Path| File::open(Source::open(path, ReadMode::Map)?);
    let mut files = vec![open(path)?];
    let meta = Meta::new(path, std::mem::take(&mut files[0].metadata));
    for other in others(path, &meta)? {
        files.push(open(&other)?);
    }
    let found: usize = files.iter().map(|f| f.tensors.len()).sum();
    if let Some(all) = meta.size("split.tensors.count")?.filter(|&n| n != found) {
        return Err(meta.error(format!("the parts hold {found} tensors, {all} are announced; download them again")));
    }
    let shapes: BTreeMap<&str, &[usize]> =
        files.iter().flat_map(|f| &f.tensors).map(|t| (t.name.as_str(), &t.shape[..])).collect();
    let family = families::find(&meta, &shapes)?;
    let mut config = family.config(&meta, &shapes)?;
    let mut tensors = Arrays::default();
    for file in &files {
        for tensor in &file.tensors {
            let Some(name) = names::translate(family, &meta, &tensor.name)? else { continue };
            for part in file.compact(tensor)? {
                let name = match part.name.rsplit_once('.') {
                    Some((_, leaf @ ("scales" | "biases"))) => {
                        format!("{}.{leaf}", name.strip_suffix(".weight").unwrap_or(&name))
                    }
                    _ => name.clone(),
                };
                let array = pieces::undo(family, &config, &tensor.name, part.to_array()?)?;
                for (name, array) in gemma::apart(name, array)? {
                    if tensors.insert(name, array).is_some() {
                        return Err(meta.error(format!("tensor {} is there twice", tensor.name)));
                    }
                }
            }
        }
    }
    positions(&meta, &files, &mut config)?;
    one_type(family, &config, &mut tensors)?;
    if let Some(block) = quantization(&tensors)? {
        config.insert("quantization".into(), block);
    }
    Ok(Opened { config, tensors, meta })
}

/// The files that belong to the first one.
fn others(path: &Path, meta: &Meta) -> Result<Vec<PathBuf>> {
    let count = meta.size("split.count")?.unwrap_or(1);
    if count < 2 {
        return Ok(Vec::new());
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let end = |i: usize| format!("-{i:05}-of-{count:05}.gguf");
    let part = meta.size("split.no")?.unwrap_or(0);
    if part != 0 {
        let first = name.replace(&end(part + 1), &end(1));
        return Err(meta.error(format!("this is part {} of {count}; name the first one, {first}", part + 1)));
    }
    let Some(stem) = name.strip_suffix(&end(1)) else {
        return Err(meta.error(format!("the first of {count} parts, whose name does not end with {}", end(1))));
    };
    if count > 100_000 {
        return Err(meta.error(format!("{count} parts are announced")));
    }
    let all: Vec<PathBuf> = (2..=count).map(|i| path.with_file_name(format!("{stem}{}", end(i)))).collect();
    let missing: Vec<String> = all.iter().filter(|p| !p.is_file()).map(|p| p.display().to_string()).collect();
    if missing.is_empty() {
        return Ok(all);
    }
    let more = if missing.len() > 3 { format!(" and {} more", missing.len() - 3) } else { String::new() };
    let shown = missing[..missing.len().min(3)].join(", ");
    Err(meta.error(format!("{count} parts belong together; missing are {shown}{more}: download them")))
}

/// Scaled positions whose factors are tensors.
fn positions(meta: &Meta, files: &[File], config: &mut Map<String, Value>) -> Result<()> {
    let read = |name: &str| -> Result<Option<Vec<f64>>> {
        for file in files {
            let Some(tensor) = file.tensors.iter().find(|t| t.name == name) else { continue };
            let [part] = &file.arrays(tensor)?[..] else {
                return Err(meta.error(format!("tensor {name} is packed")));
            };
            let all: Vec<f32> = ops::astype(&part.to_array()?, Dtype::Float32)?.to_vec()?;
            return Ok(Some(all.into_iter().map(meta::decimal).collect()));
        }
        Ok(None)
    };
    let factors = read("rope_freqs.weight")?;
    if let Some(factors) = factors.as_ref().filter(|_| meta.arch() == gemma::GEMMA4.arch()) {
        gemma::turned(meta, config, factors)?;
    } else if let Some(factors) = factors {
        config.insert("rope_scaling".into(), families::llama3(config, &factors));
    }
    if let Some(long) = read("rope_factors_long.weight")? {
        let short = read("rope_factors_short.weight")?.unwrap_or_else(|| long.clone());
        config.insert("rope_scaling".into(), json!({"type": "longrope", "long_factor": long, "short_factor": short}));
    }
    Ok(())
}

/// All floating tensors in one type, that of the matrices: these files keep norms and biases in float32, which would
/// make all rows float32.
fn one_type(family: &Family, config: &Map<String, Value>, tensors: &mut Arrays) -> Result<()> {
    let matrices = |t: Dtype| tensors.iter().any(|(n, a)| a.ndim() > 1 && a.dtype() == t && !n.ends_with(".biases"));
    let main = match matrices(Dtype::Bfloat16) || family.wide && matrices(Dtype::Float16) {
        true => Dtype::Bfloat16,
        false if matrices(Dtype::Float16) => Dtype::Float16,
        false => return Ok(()),
    };
    let keeps = crate::models::keeps_type(config);
    for (name, a) in tensors.iter_mut() {
        if a.dtype().is_floating() && a.dtype() != main && !keeps(name) {
            *a = ops::astype(&*a, main)?;
        }
    }
    Ok(())
}

/// The block that says how tensors are packed.
fn quantization(tensors: &Arrays) -> Result<Option<Value>> {
    let mut forms = BTreeMap::new();
    for (name, scales) in tensors {
        let Some(place) = name.strip_suffix(".scales") else { continue };
        let Some(weight) = tensors.get(&format!("{place}.weight")) else { continue };
        let last = |a: &Array| a.shape().last().copied().unwrap_or(0);
        let mode = if scales.dtype() == Dtype::Uint8 { Mode::Mxfp4 } else { Mode::Affine };
        let bits = last(weight) / last(scales).max(1);
        forms.insert(place.to_string(), Format::new(mode, Some(bits), Some(32))?);
    }
    Ok(crate::imports::block(forms))
}

/// An error about an architecture.
fn unsupported(meta: &Meta, what: String) -> Error {
    Error::unsupported(format!("[load] {}: {what}", meta.name()))
}
