//! GGUF: metadata and tensors of the llama.cpp world, versions 2 and 3, little-endian.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Quantized blocks keep their bits where
//! lapis has the same quantization (Q4_0, Q4_1, Q8_0: affine groups of 32; MXFP4: mode mxfp4); other block types
//! become float16. Knows no graph and no model.

mod blocks;
mod pack;
mod types;
mod write;

use crate::bytes::Bytes;
use crate::raw::RawTensor;
use crate::source::{Cursor, Source};
use indexmap::IndexMap;
use lapis_core::dtype::Dtype;
use lapis_core::error::Result;
pub use pack::pack;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
pub use types::Type;
use types::ValueType;
pub use write::{Part, write, write_parts};

const OP: &str = "load_gguf";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
/// Longest key and longest tensor name, from the format's description.
const MAX_KEY: u64 = 65_535;
const MAX_NAME: u64 = 64;

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Value {
    /// A number or bool (no axes), or an array of them (one axis).
    Numbers(RawTensor),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
}

/// A tensor as the file has it.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name.
    pub name: String,
    /// How its values are stored.
    pub kind: Type,
    /// The dimensions, last one fastest (the file has them the other way round).
    pub shape: Vec<usize>,
    range: Range<u64>,
}

/// A checked file: everything but the tensors' values has been read.
#[derive(Debug)]
pub struct File {
    /// Metadata in file order.
    pub metadata: IndexMap<String, Value>,
    /// Tensors in file order.
    pub tensors: Vec<Tensor>,
    source: Arc<Source>,
}

impl File {
    /// Reads metadata and the list of tensors.
    ///
    /// # Errors
    /// `Io` for everything that breaks the format's promises: magic, version, counts and lengths beyond the file,
    /// keys and names that are too long, empty or taken, unknown types, alignment that is no power of two, shapes
    /// of no or more than four axes or of no elements, data that is unaligned, overlapping or past the end.
    pub fn open(source: Arc<Source>) -> Result<File> {
        let mut c = Cursor::new(&source, OP);
        let (tensor_count, key_count) = preamble(&mut c)?;
        let mut metadata = IndexMap::new();
        for _ in 0..key_count {
            let (key, value) = pair(&mut c, &source)?;
            if metadata.contains_key(&key) {
                return Err(c.error(format!("duplicate key {key:?}")));
            }
            metadata.insert(key, value);
        }
        let alignment = alignment(&metadata).map_err(|what| source.error(OP, what))?;
        let mut infos = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..tensor_count {
            let info = Info::read(&mut c)?;
            if !names.insert(info.name.clone()) {
                return Err(c.error(format!("duplicate tensor name {:?}", info.name)));
            }
            infos.push(info);
        }
        let start = c.at().next_multiple_of(alignment);
        let tensors = infos.into_iter().map(|i| i.check(&source, start, alignment)).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<&Tensor> = tensors.iter().collect();
        order.sort_by_key(|t| (t.range.start, t.range.end));
        for pair in order.windows(2) {
            if pair[1].range.start < pair[0].range.end {
                return Err(source.error(OP, format!("tensor {:?} overlaps {:?}", pair[1].name, pair[0].name)));
            }
        }
        Ok(File { metadata, tensors, source })
    }

    /// The arrays that `tensor` stands for: itself, or for the types that stay quantized `X.weight` (uint32),
    /// `X.scales` and, unless it is MXFP4, `X.biases`, where `X` is the name without `.weight`.
    ///
    /// # Errors
    /// `Io` when the file cannot be read, or a scale is too large for a float16 bias.
    pub fn arrays(&self, tensor: &Tensor) -> Result<Vec<RawTensor>> {
        self.parts(tensor, blocks::Packed::of(tensor.kind))
    }

    /// As [`File::arrays`], but Q4_K and Q5_K stay packed, too, as affine groups of 32 with 4 and 5 bits: a third of the
    /// memory. Their codes are kept; their scales and minima, each a product of two numbers, are rounded to float16.
    ///
    /// # Errors
    /// As [`File::arrays`].
    pub fn compact(&self, tensor: &Tensor) -> Result<Vec<RawTensor>> {
        self.parts(tensor, blocks::Packed::nearly(tensor.kind))
    }

    fn parts(&self, tensor: &Tensor, packed: Option<blocks::Packed>) -> Result<Vec<RawTensor>> {
        let Tensor { name, kind, shape, range } = tensor;
        if let Some(dtype) = kind.plain() {
            return Ok(vec![RawTensor::in_file(name.clone(), dtype, shape.clone(), &self.source, range.clone())]);
        }
        let bytes = self.source.bytes(range.clone())?;
        let Some(packed) = packed else {
            let out = blocks::to_f16(*kind, &bytes)?;
            return Ok(vec![RawTensor::new(name, Dtype::Float16, shape.clone(), out)?]);
        };
        let parts = packed.repack(&bytes)?;
        if !parts.finite {
            let what = format!("tensor {name:?}: a scale of {kind} is too large for a float16 bias");
            return Err(self.source.error(OP, what));
        }
        let base = name.strip_suffix(".weight").unwrap_or(name);
        let last = |n: usize| [&shape[..shape.len() - 1], &[n]].concat();
        let k = shape[shape.len() - 1];
        let (words, groups) = (last(k * packed.bits / 32), last(k / 32));
        let mut out = vec![RawTensor::new(name, Dtype::Uint32, words, parts.codes)?];
        let scale_type = if packed.biased { Dtype::Float16 } else { Dtype::Uint8 };
        out.push(RawTensor::new(format!("{base}.scales"), scale_type, groups.clone(), parts.scales)?);
        if packed.biased {
            out.push(RawTensor::new(format!("{base}.biases"), Dtype::Float16, groups, parts.biases)?);
        }
        Ok(out)
    }

    /// An error about this file.
    pub(crate) fn error(&self, what: String) -> lapis_core::error::Error {
        self.source.error(OP, what)
    }
}

/// Magic, version and the two counts, which are held against the size of the file.
fn preamble(c: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic: [u8; 4] = c.take(4, "the magic")?.try_into().expect("four bytes");
    if &magic == b"FUGG" {
        return Err(c.error("a big-endian GGUF file; only little-endian ones are supported"));
    }
    if &magic != b"GGUF" {
        return Err(c.error(format!("magic {:?}, expected \"GGUF\"", magic.escape_ascii().to_string())));
    }
    let version = u32_of(c, "the version")?;
    if (2..=3).contains(&version.swap_bytes()) {
        return Err(c.error("a big-endian GGUF file; only little-endian ones are supported"));
    }
    if !(2..=3).contains(&version) {
        return Err(c.error(format!("version {version}, known are 2 and 3")));
    }
    let tensors = u64_of(c, "the number of tensors")?;
    let keys = u64_of(c, "the number of keys")?;
    // The shortest pair is a length, one letter, a type and one byte; the shortest tensor has one axis.
    let needed = keys.checked_mul(14).zip(tensors.checked_mul(33)).and_then(|(a, b)| a.checked_add(b));
    if needed.is_none_or(|n| n > c.left()) {
        return Err(c.error(format!("{tensors} tensors and {keys} keys do not fit the {} bytes left", c.left())));
    }
    Ok((tensors, keys))
}

fn u32_of(c: &mut Cursor<'_>, what: &str) -> Result<u32> {
    Ok(u32::from_le_bytes(c.take(4, what)?.try_into().expect("four bytes")))
}

fn u64_of(c: &mut Cursor<'_>, what: &str) -> Result<u64> {
    Ok(u64::from_le_bytes(c.take(8, what)?.try_into().expect("eight bytes")))
}

/// A text with its length before it.
fn text(c: &mut Cursor<'_>, most: u64, what: &str) -> Result<String> {
    let len = u64_of(c, what)?;
    if len > most {
        return Err(c.error(format!("{what} of {len} bytes, at most {most} are allowed")));
    }
    let bytes = c.take(len, what)?;
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(c.error(format!("{what} is not UTF-8"))),
    }
}

fn pair(c: &mut Cursor<'_>, source: &Arc<Source>) -> Result<(String, Value)> {
    let key = text(c, MAX_KEY, "a key")?;
    if key.is_empty() {
        return Err(c.error("an empty key"));
    }
    let of_key = format!("key {key:?}");
    let kind = value_type(c, &of_key)?;
    let (kind, axes, count) = match kind {
        ValueType::Array => {
            let kind = value_type(c, &of_key)?;
            if kind == ValueType::Array {
                return Err(c.error(format!("{of_key}: arrays of arrays are not supported")));
            }
            (kind, 1, u64_of(c, &of_key)?)
        }
        kind => (kind, 0, 1),
    };
    let Some(dtype) = kind.dtype() else {
        if axes == 0 {
            return Ok((key, Value::Text(text(c, u64::MAX, &of_key)?)));
        }
        if count > c.left() / 8 {
            return Err(c.error(format!("{of_key}: {count} texts do not fit the {} bytes left", c.left())));
        }
        let texts = (0..count).map(|_| text(c, u64::MAX, &of_key)).collect::<Result<_>>()?;
        return Ok((key, Value::Texts(texts)));
    };
    let start = c.at();
    let size = count.checked_mul(dtype.size() as u64).filter(|&n| n <= c.left());
    let size = size.ok_or_else(|| c.error(format!("{of_key}: {count} values of {dtype}, {} bytes left", c.left())))?;
    let shape = vec![count as usize; axes];
    let value = match axes {
        0 => RawTensor::new("", dtype, shape, Bytes::copy(c.take(size, &of_key)?)?)?,
        _ => {
            c.skip(size, &of_key)?;
            RawTensor::in_file(String::new(), dtype, shape, source, start..start + size)
        }
    };
    Ok((key, Value::Numbers(value)))
}

fn value_type(c: &mut Cursor<'_>, of_key: &str) -> Result<ValueType> {
    let id = u32_of(c, of_key)?;
    ValueType::from_id(id).ok_or_else(|| c.error(format!("{of_key}: unknown value type {id}, known are 0 to 12")))
}

fn alignment(metadata: &IndexMap<String, Value>) -> std::result::Result<u64, String> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    let number = match value {
        Value::Numbers(t) if t.dtype == Dtype::Uint32 && t.shape.is_empty() => {
            t.bytes().ok().and_then(|b| Some(u32::from_le_bytes(b.as_ref().try_into().ok()?)))
        }
        _ => None,
    };
    match number {
        Some(n) if n.is_power_of_two() => Ok(n.into()),
        Some(n) => Err(format!("{ALIGNMENT_KEY} is {n}, expected a power of two")),
        None => Err(format!("{ALIGNMENT_KEY} is not a uint32")),
    }
}

/// A tensor as listed, before the place of its data is known.
struct Info {
    name: String,
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl Info {
    fn read(c: &mut Cursor<'_>) -> Result<Info> {
        let name = text(c, MAX_NAME, "a tensor name")?;
        let of = format!("tensor {name:?}");
        let axes = u32_of(c, &of)?;
        if !(1..=4).contains(&axes) {
            return Err(c.error(format!("{of}: {axes} dimensions, expected 1 to 4")));
        }
        let dims = (0..axes).map(|_| u64_of(c, &of)).collect::<Result<_>>()?;
        Ok(Info { dims, kind: u32_of(c, &of)?, offset: u64_of(c, &of)?, name })
    }

    fn check(self, source: &Source, start: u64, alignment: u64) -> Result<Tensor> {
        let fail = |what: String| source.error(OP, format!("tensor {:?}: {what}", self.name));
        let kind = Type::from_id(self.kind).map_err(&fail)?;
        let (block, bytes) = kind.block();
        let shape: Vec<usize> = self.dims.iter().rev().map(|&d| usize::try_from(d).unwrap_or(0)).collect();
        if shape.contains(&0) {
            return Err(fail(format!("dimensions {:?}, expected all from 1 to 2^63 - 1", self.dims)));
        }
        if !self.dims[0].is_multiple_of(block) {
            return Err(fail(format!(
                "rows of {} are no multiple of the {block} values of a {kind} block",
                self.dims[0]
            )));
        }
        let elements = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|&n| n <= i64::MAX as u64);
        // Decoding must not need more than the address space either: no value takes more than eight bytes.
        let size = elements.filter(|&n| n <= i64::MAX as u64 / 8).map(|n| n / block * bytes);
        let size = size.ok_or_else(|| fail(format!("dimensions {:?} are too large", self.dims)))?;
        if !self.offset.is_multiple_of(alignment) {
            return Err(fail(format!("offset {} is no multiple of the alignment, {alignment}", self.offset)));
        }
        let begin = start.checked_add(self.offset);
        let range = begin.and_then(|b| Some(b..b.checked_add(size)?)).filter(|r| r.end <= source.len());
        let range = range.ok_or_else(|| {
            let all = source.len().saturating_sub(start);
            fail(format!("{size} bytes at {} of the data, which has {all}", self.offset))
        })?;
        Ok(Tensor { name: self.name, kind, shape, range })
    }
}
