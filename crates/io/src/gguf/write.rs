//! Writing GGUF, version 3.

use super::types::{Type, ValueType};
use super::{MAX_KEY, MAX_NAME, Value, alignment};
use crate::atomic::AtomicFile;
use crate::safetensors::Spec;
use indexmap::IndexMap;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

fn invalid(what: String) -> Error {
    Error::value(format!("[save_gguf] {what}"))
}

/// Writes tensors in the given order, not quantized; `bytes(i)` yields the data of `specs[i]`, row-major, one after
/// the other. `general.alignment` of the metadata holds for the data, 32 without it.
///
/// # Errors
/// `Value` for what the format cannot hold: other dtypes than float32, float16, bfloat16, int8, int16, int32; no or
/// more than four axes, no elements; names above 64 bytes or given twice; metadata of more than one axis or of
/// half-precision or complex type. `Io` when writing fails: the old file is then as it was.
pub fn write<'a>(
    path: impl AsRef<Path>,
    specs: &[Spec],
    metadata: &IndexMap<String, Value>,
    bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let part = |Spec { name, dtype, shape }: &Spec| {
        let kind = match dtype {
            Dtype::Float32 => Type::F32,
            Dtype::Float16 => Type::F16,
            Dtype::Bfloat16 => Type::BF16,
            Dtype::Int8 => Type::I8,
            Dtype::Int16 => Type::I16,
            Dtype::Int32 => Type::I32,
            _ => {
                let known = "expected float32, float16, bfloat16, int8, int16 or int32";
                return Err(invalid(format!("tensor {name:?}: {dtype}, {known}")));
            }
        };
        Ok(Part { name: name.clone(), kind, shape: shape.clone() })
    };
    let parts = specs.iter().map(part).collect::<Result<Vec<_>>>()?;
    write_parts(path, &parts, metadata, bytes)
}

/// A tensor to write, of any type that files have; of blocks, `shape` is that of the values.
#[derive(Clone, Debug)]
pub struct Part {
    /// The name.
    pub name: String,
    /// How its values are stored.
    pub kind: Type,
    /// The dimensions, last one fastest.
    pub shape: Vec<usize>,
}

impl Part {
    /// Bytes of the data.
    fn size(&self) -> Option<u64> {
        let (values, bytes) = self.kind.block();
        let last = *self.shape.last()? as u64;
        let blocks = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64))? / values;
        last.is_multiple_of(values).then(|| blocks.checked_mul(bytes))?
    }
}

/// As [`write()`], of tensors that may be packed in blocks: `bytes(i)` yields those of `parts[i]`.
///
/// # Errors
/// As there; rows that are no whole blocks.
pub fn write_parts<'a>(
    path: impl AsRef<Path>,
    parts: &[Part],
    metadata: &IndexMap<String, Value>,
    mut bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let alignment = alignment(metadata).map_err(invalid)?;
    let (header, data) = header(parts, metadata, alignment)?;
    let mut file = AtomicFile::create(path, "save_gguf", header.len() as u64 + data)?;
    file.write(&header)?;
    for (i, part) in parts.iter().enumerate() {
        let bytes = bytes(i)?;
        if part.size() != Some(bytes.len() as u64) {
            let Part { name, kind, shape } = part;
            return Err(invalid(format!("tensor {name:?}: {} bytes for {shape:?} of {kind:?}", bytes.len())));
        }
        file.write(&bytes)?;
        file.write(&vec![0; padding(bytes.len() as u64, alignment)])?;
    }
    file.commit()
}

fn padding(at: u64, alignment: u64) -> usize {
    (at.next_multiple_of(alignment) - at) as usize
}

/// The bytes before the data, and how many bytes of data follow.
fn header(specs: &[Part], metadata: &IndexMap<String, Value>, alignment: u64) -> Result<(Vec<u8>, u64)> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((specs.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_pair(&mut out, key, value)?;
    }
    let mut at = 0u64;
    let mut names = HashSet::new();
    for spec in specs {
        at = put_info(&mut out, spec, at, alignment)?;
        if !names.insert(&spec.name) {
            return Err(invalid(format!("tensor name {:?} is given twice", spec.name)));
        }
    }
    out.resize(out.len() + padding(out.len() as u64, alignment), 0);
    Ok((out, at))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_pair(out: &mut Vec<u8>, key: &str, value: &Value) -> Result<()> {
    if key.is_empty() || key.len() as u64 > MAX_KEY {
        return Err(invalid(format!("key of {} bytes, expected 1 to {MAX_KEY}", key.len())));
    }
    put_text(out, key);
    let mut tag = |v: ValueType| out.extend((v as u32).to_le_bytes());
    match value {
        Value::Text(text) => {
            tag(ValueType::Text);
            put_text(out, text);
        }
        Value::Texts(texts) => {
            tag(ValueType::Array);
            tag(ValueType::Text);
            out.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|t| put_text(out, t));
        }
        Value::Numbers(t) => {
            let kind = ValueType::of_dtype(t.dtype).filter(|_| t.shape.len() <= 1);
            let kind = kind.ok_or_else(|| {
                invalid(format!(
                    "key {key:?}: {:?} of {}, expected at most one axis of bool, integers, float32 or float64",
                    t.shape, t.dtype
                ))
            })?;
            if let [count] = t.shape[..] {
                tag(ValueType::Array);
                tag(kind);
                out.extend((count as u64).to_le_bytes());
            } else {
                tag(kind);
            }
            out.extend_from_slice(&t.bytes()?);
        }
    }
    Ok(())
}

/// Describes one tensor at `at` and returns where the next one goes.
fn put_info(out: &mut Vec<u8>, part: &Part, at: u64, alignment: u64) -> Result<u64> {
    let Part { name, kind, shape } = part;
    let fail = |what: String| invalid(format!("tensor {name:?}: {what}"));
    if name.len() as u64 > MAX_NAME {
        return Err(fail(format!("a name of {} bytes, at most {MAX_NAME} are allowed", name.len())));
    }
    if shape.is_empty() || shape.len() > 4 || shape.contains(&0) {
        return Err(fail(format!("shape {shape:?}, expected one to four axes, none of them empty")));
    }
    put_text(out, name);
    out.extend((shape.len() as u32).to_le_bytes());
    shape.iter().rev().for_each(|&d| out.extend((d as u64).to_le_bytes()));
    out.extend(kind.id().to_le_bytes());
    out.extend(at.to_le_bytes());
    let end = part.size().and_then(|n| at.checked_add(n)?.checked_next_multiple_of(alignment));
    end.ok_or_else(|| fail(format!("shape {shape:?} is too large, or its rows are no whole blocks of {kind:?}")))
}
