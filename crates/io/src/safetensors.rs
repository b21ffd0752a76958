//! safetensors: a length, a JSON header, dense data.
//!
//! The parser is our own, over serde_json's reader: the rules here are stricter than the reference crate's (which
//! takes the last of two entries of one name), and every error names the tensor and the numbers that do not fit.
//! The format: <https://github.com/huggingface/safetensors#format>. Knows no graph.

use crate::atomic::AtomicFile;
use crate::raw::RawTensor;
use crate::source::Source;
use indexmap::IndexMap;
use indexmap::map::Entry as Slot;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

const OP: &str = "load_safetensors";
/// Longest header that is read, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Text that travels with the tensors (`__metadata__`), in file order.
pub type Metadata = IndexMap<String, String>;

/// Names of the element types. MLX reads 8-bit floats as bytes; C64 is its extension, F64 is lapis's.
const DTYPES: &[(&str, Dtype)] = &[
    ("BOOL", Dtype::Bool),
    ("U8", Dtype::Uint8),
    ("U16", Dtype::Uint16),
    ("U32", Dtype::Uint32),
    ("U64", Dtype::Uint64),
    ("I8", Dtype::Int8),
    ("I16", Dtype::Int16),
    ("I32", Dtype::Int32),
    ("I64", Dtype::Int64),
    ("F16", Dtype::Float16),
    ("BF16", Dtype::Bfloat16),
    ("F32", Dtype::Float32),
    ("F64", Dtype::Float64),
    ("C64", Dtype::Complex64),
    ("F8_E4M3", Dtype::Uint8),
    ("F8_E8M0", Dtype::Uint8),
];

/// The tensors of a file in the order of its header, and its metadata (empty when there is none).
///
/// # Errors
/// `Io` for every fault of robustness that the format can have: a header that is no JSON object of well-formed
/// entries, duplicate names, sizes that do not fit, data with overlaps, holes or trailing bytes.
pub fn read(source: &Arc<Source>) -> Result<(Vec<RawTensor>, Metadata)> {
    let fail = |what: String| source.error(OP, what);
    if source.len() < 8 {
        return Err(fail(format!("needs 8 bytes for the header's length, has {}", source.len())));
    }
    let length = u64::from_le_bytes(source.bytes(0..8)?.as_ref().try_into().expect("eight bytes"));
    let rest = source.len() - 8;
    if length == 0 || length > rest || length > MAX_HEADER {
        let most = rest.min(MAX_HEADER);
        return Err(fail(format!(
            "byte 0: header length {length}, expected 1 to {most} (the file has {rest} more bytes)"
        )));
    }
    let start = 8 + length;
    let bytes = source.bytes(8..start)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|e| fail(format!("byte {}: header is not UTF-8", 8 + e.valid_up_to())))?;
    if !text.starts_with('{') {
        return Err(fail("byte 8: the header does not start with {".into()));
    }
    let header: Header = serde_json::from_str(text)
        .map_err(|e| fail(format!("byte {}: {}", 8 + byte_of(text, e.line(), e.column()), without_place(&e))))?;
    let mut tensors = Vec::with_capacity(header.tensors.len());
    for (name, entry) in header.tensors {
        let (dtype, shape) = entry.check().map_err(|what| fail(format!("tensor {name:?}: {what}")))?;
        let [a, b] = entry.data_offsets;
        let (a, b) = match (start.checked_add(a), start.checked_add(b)) {
            (Some(a), Some(b)) if b <= source.len() => (a, b),
            _ => {
                return Err(fail(format!(
                    "tensor {name:?}: data ends at {b}, the data section at {}",
                    source.len() - start
                )));
            }
        };
        tensors.push(((a, b), RawTensor::in_file(name, dtype, shape, source, a..b)));
    }
    check_cover(start, source, tensors.iter().map(|(r, t)| (*r, t.name.as_str())).collect())?;
    Ok((tensors.into_iter().map(|(_, t)| t).collect(), header.metadata))
}

/// Every byte of the data belongs to exactly one tensor.
fn check_cover(start: u64, source: &Source, mut ranges: Vec<((u64, u64), &str)>) -> Result<()> {
    ranges.sort_unstable();
    let (mut end, mut last) = (start, "");
    for ((a, b), name) in ranges {
        if a != end {
            let what = if a < end { format!("overlaps {last:?}") } else { "leaves a hole".into() };
            let (a, end) = (a - start, end - start);
            return Err(source.error(OP, format!("tensor {name:?}: {what}: starts at {a}, expected {end}")));
        }
        (end, last) = (b, name);
    }
    if end != source.len() {
        let (end, all) = (end - start, source.len() - start);
        return Err(source.error(OP, format!("data section has {all} bytes, the tensors cover {end}")));
    }
    Ok(())
}

/// Byte offset of a place that serde_json names by line and column.
fn byte_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    before + column.saturating_sub(1)
}

fn without_place(e: &serde_json::Error) -> String {
    let text = e.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(what, _)| what.to_owned())
}

struct Header {
    tensors: IndexMap<String, Entry>,
    metadata: Metadata,
}

struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Entry {
    fn check(&self) -> std::result::Result<(Dtype, Vec<usize>), String> {
        let Some(&(_, dtype)) = DTYPES.iter().find(|(name, _)| *name == self.dtype) else {
            let known: Vec<_> = DTYPES.iter().map(|(name, _)| *name).collect();
            return Err(format!("dtype {:?}, known are {}", self.dtype, known.join(", ")));
        };
        let [a, b] = self.data_offsets;
        if a > b {
            return Err(format!("data_offsets [{a}, {b}] are reversed"));
        }
        let overflow = || format!("shape {:?} of {} has more bytes than 64 bits can count", self.shape, self.dtype);
        let size = self.shape.iter().try_fold(dtype.size() as u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
        if size != b - a {
            let what = format!(
                "shape {:?} of {} needs {size} bytes, data_offsets [{a}, {b}] give {}",
                self.shape,
                self.dtype,
                b - a
            );
            return Err(what);
        }
        let signed = |d: &u64| i64::try_from(*d).ok().and_then(|d| usize::try_from(d).ok());
        let shape = self.shape.iter().map(|d| signed(d).ok_or_else(overflow)).collect::<std::result::Result<_, _>>()?;
        Ok((dtype, shape))
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut header = Header { tensors: IndexMap::new(), metadata: Metadata::new() };
                let mut seen_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut seen_metadata, true) {
                            return Err(de::Error::custom("duplicate __metadata__"));
                        }
                        header.metadata = map.next_value::<Option<Texts>>()?.map(|t| t.0).unwrap_or_default();
                        continue;
                    }
                    match header.tensors.entry(name) {
                        Slot::Occupied(o) => {
                            return Err(de::Error::custom(format!("duplicate tensor name {:?}", o.key())));
                        }
                        Slot::Vacant(v) => {
                            let name = v.key().clone();
                            // serde's message says what is wrong with the entry, this adds which entry it is.
                            let entry = map.next_value::<Entry>();
                            v.insert(entry.map_err(|e| de::Error::custom(format!("tensor {name:?}: {e}")))?);
                        }
                    }
                }
                Ok(header)
            }
        }
        d.deserialize_map(V)
    }
}

/// Text to text, no name twice.
pub(crate) struct Texts(pub(crate) Metadata);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
                let mut texts = Metadata::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if texts.contains_key(&key) {
                        return Err(de::Error::custom(format!("duplicate key {key:?}")));
                    }
                    texts.insert(key, value);
                }
                Ok(Texts(texts))
            }
        }
        d.deserialize_map(V)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entry, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<Cow<'_, str>>()? {
                    let fresh = match &*key {
                        "dtype" => dtype.replace(map.next_value()?).is_none(),
                        "shape" => shape.replace(map.next_value()?).is_none(),
                        "data_offsets" => offsets.replace(map.next_value::<Vec<u64>>()?).is_none(),
                        // Fields of later versions pass; `Value` bounds how deep they nest.
                        _ => map.next_value::<serde_json::Value>().map(|_| true)?,
                    };
                    if !fresh {
                        return Err(de::Error::custom(format!("{key} twice")));
                    }
                }
                let offsets = offsets.ok_or_else(|| de::Error::missing_field("data_offsets"))?;
                let count = offsets.len();
                Ok(Entry {
                    dtype: dtype.ok_or_else(|| de::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| de::Error::missing_field("shape"))?,
                    data_offsets: offsets
                        .try_into()
                        .map_err(|_| de::Error::custom(format!("data_offsets has {count} numbers, expected 2")))?,
                })
            }
        }
        d.deserialize_map(V)
    }
}

/// What a tensor is, before its bytes are there.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name; any text but `__metadata__`.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions.
    pub shape: Vec<usize>,
}

/// Writes tensors in the given order; `bytes(i)` yields the data of `specs[i]`, row-major, one after the other, so
/// that only one has to be in memory. Metadata is left out when empty; data starts at a multiple of 8.
///
/// # Errors
/// `Value` for a name that is taken twice or reserved, or data of the wrong size; `Io` when writing fails. The old
/// file is then as it was.
pub fn write<'a>(
    path: impl AsRef<Path>,
    specs: &[Spec],
    metadata: &Metadata,
    mut bytes: impl FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<()> {
    let (header, data) = header(specs, metadata)?;
    let mut file = AtomicFile::create(path, "save_safetensors", header.len() as u64 + data)?;
    file.write(&header)?;
    for (i, spec) in specs.iter().enumerate() {
        let bytes = bytes(i)?;
        if crate::raw::size_of(&spec.shape, spec.dtype) != Some(bytes.len()) {
            return Err(invalid(format!(
                "tensor {:?}: {} bytes for {:?} of {}",
                spec.name,
                bytes.len(),
                spec.shape,
                spec.dtype
            )));
        }
        file.write(&bytes)?;
    }
    file.commit()
}

/// The bytes before the data, and how many bytes of data follow.
fn header(specs: &[Spec], metadata: &Metadata) -> Result<(Vec<u8>, u64)> {
    let json = |text: &str| serde_json::Value::from(text).to_string();
    let mut parts = Vec::with_capacity(specs.len() + 1);
    if !metadata.is_empty() {
        let pairs: Vec<_> = metadata.iter().map(|(k, v)| format!("{}:{}", json(k), json(v))).collect();
        parts.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    let mut at = 0u64;
    let mut names = std::collections::HashSet::new();
    for Spec { name, dtype, shape } in specs {
        if name == "__metadata__" || !names.insert(name) {
            return Err(invalid(format!(
                "tensor name {name:?} is {}",
                if name == "__metadata__" { "reserved" } else { "given twice" }
            )));
        }
        let size = crate::raw::size_of(shape, *dtype).map(|n| n as u64);
        let end = size
            .and_then(|n| at.checked_add(n))
            .ok_or_else(|| invalid(format!("tensor {name:?}: {shape:?} is too large")))?;
        let code = DTYPES.iter().find(|(_, d)| d == dtype).expect("every dtype has a name").0;
        let dims = shape.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        parts.push(format!(r#"{}:{{"dtype":"{code}","shape":[{dims}],"data_offsets":[{at},{end}]}}"#, json(name)));
        at = end;
    }
    let mut text = format!("{{{}}}", parts.join(",")).into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    if text.len() as u64 > MAX_HEADER {
        return Err(invalid(format!("the header would have {} bytes, at most {MAX_HEADER} are allowed", text.len())));
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut text);
    Ok((bytes, at))
}

fn invalid(what: String) -> Error {
    Error::value(format!("[save_safetensors] {what}"))
}
