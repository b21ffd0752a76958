//! Loading and saving arrays: the functions users call.

use crate::atomic::AtomicFile;
use crate::raw::RawTensor;
use crate::safetensors::{self, Metadata, Spec};
use crate::source::{ReadMode, Source};
use crate::{Bytes, gguf, npy, npz};
use indexmap::IndexMap;
use lapis_core::array::Array;
use lapis_core::error::{Error, Result};
use lapis_core::{eval, ops};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arrays by name, in the order of the file.
pub type Arrays = IndexMap<String, Array>;

/// Where a file comes from: a path (mapped), or a [`Source`] (read as it was opened, or bytes in memory).
pub trait IntoSource {
    /// The bytes.
    ///
    /// # Errors
    /// As [`Source::open`].
    fn into_source(self) -> Result<Arc<Source>>;
}

impl IntoSource for Arc<Source> {
    fn into_source(self) -> Result<Arc<Source>> {
        Ok(self)
    }
}

macro_rules! paths {
    ($($t:ty),*) => {$(
        impl IntoSource for $t {
            fn into_source(self) -> Result<Arc<Source>> {
                Source::open(self, ReadMode::Map)
            }
        }
    )*};
}
paths!(&str, &String, String, &Path, &PathBuf, PathBuf);

fn arrays(tensors: Vec<RawTensor>) -> Result<Arrays> {
    tensors.iter().map(|t| Ok((t.name.clone(), t.to_array()?))).collect()
}

/// The formats.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// One array.
    Npy,
    /// A zip of npy files.
    Npz,
    /// safetensors.
    Safetensors,
    /// GGUF.
    Gguf,
}

impl Format {
    /// The format called `name`, which is also the suffix of its files.
    ///
    /// # Errors
    /// `Value` for another name.
    pub fn from_name(name: &str) -> Result<Format> {
        Ok(match name {
            "npy" => Format::Npy,
            "npz" => Format::Npz,
            "safetensors" => Format::Safetensors,
            "gguf" => Format::Gguf,
            _ => {
                let what = format!("[load] unknown format {name:?}; known are npy, npz, safetensors, gguf");
                return Err(Error::value(what));
            }
        })
    }
}

/// What a file held.
#[derive(Clone)]
pub enum Loaded {
    /// An npy file's array.
    Npy(Array),
    /// An npz file's arrays.
    Npz(Arrays),
    /// Arrays and metadata of a safetensors file.
    Safetensors(Arrays, Metadata),
    /// Arrays and metadata of a GGUF file.
    Gguf(Arrays, GgufMetadata),
}

/// Loads a file of any format; the suffix decides when `format` is not given.
///
/// # Errors
/// `Value` for an unknown suffix; else as the function of the format.
pub fn load(file: impl IntoSource, format: Option<Format>) -> Result<Loaded> {
    let source = file.into_source()?;
    let format = match format {
        Some(format) => format,
        None => Format::from_name(source.name().rsplit_once('.').map_or("", |(_, suffix)| suffix))?,
    };
    Ok(match format {
        Format::Npy => Loaded::Npy(load_npy(source)?),
        Format::Npz => Loaded::Npz(load_npz(source)?),
        Format::Safetensors => load_safetensors(source).map(|(a, m)| Loaded::Safetensors(a, m))?,
        Format::Gguf => load_gguf(source).map(|(a, m)| Loaded::Gguf(a, m))?,
    })
}

/// The arrays of a safetensors file and its metadata (empty when there is none).
///
/// # Errors
/// `Io` for a file that cannot be read or is malformed.
pub fn load_safetensors(file: impl IntoSource) -> Result<(Arrays, Metadata)> {
    let (tensors, metadata) = safetensors::read(&file.into_source()?)?;
    Ok((arrays(tensors)?, metadata))
}

/// Writes arrays and metadata as safetensors, in the given order. `.safetensors` is added to a path without it.
///
/// # Errors
/// Faults of computing the arrays; `Value` for names that cannot be written; `Io` when writing fails: the old file is
/// then as it was.
pub fn save_safetensors<'a, K: AsRef<str> + 'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a K, &'a Array)>,
    metadata: &Metadata,
) -> Result<()> {
    let arrays: Vec<(&K, &Array)> = arrays.into_iter().collect();
    eval(arrays.iter().map(|(_, a)| *a))?;
    let specs: Vec<Spec> = arrays.iter().map(spec).collect();
    safetensors::write(with_suffix(path.as_ref(), "safetensors"), &specs, metadata, |i| row_major(arrays[i].1))
}

/// The array of an npy file. A column-major one is a view with the strides of its file.
///
/// # Errors
/// `Io` for a file that cannot be read or is malformed, or holds an element type that lapis does not have.
pub fn load_npy(file: impl IntoSource) -> Result<Array> {
    let source = file.into_source()?;
    npy::read("load_npy", "", &source, 0..source.len())?.to_array()
}

/// Writes an array as npy; `.npy` is added to a path without it. bfloat16 is written as `V2`.
///
/// # Errors
/// Faults of computing the array; `Io` when writing fails: the old file is then as it was.
pub fn save_npy(path: impl AsRef<Path>, array: &Array) -> Result<()> {
    let (column_major, bytes) = dense(array)?;
    let header = npy::header(array.dtype(), array.shape(), column_major);
    let size = (header.len() + bytes.len()) as u64;
    let mut file = AtomicFile::create(with_suffix(path.as_ref(), "npy"), "save_npy", size)?;
    file.write(&header)?;
    file.write(&bytes)?;
    file.commit()
}

/// The arrays of an npz file.
///
/// # Errors
/// `Io` for a file that cannot be read or is malformed.
pub fn load_npz(file: impl IntoSource) -> Result<Arrays> {
    arrays(npz::read(&file.into_source()?)?)
}

/// Writes arrays as npz, in the given order, deflated when `compressed`; `.npz` is added to a path without it. What
/// MLX calls positional arrays are named `arr_0`, `arr_1`, and so on.
///
/// # Errors
/// Faults of computing the arrays; `Value` for a name that is given twice; `Io` when writing fails: the old file is
/// then as it was.
pub fn save_npz<'a, K: AsRef<str> + 'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a K, &'a Array)>,
    compressed: bool,
) -> Result<()> {
    let arrays: Vec<(&K, &Array)> = arrays.into_iter().collect();
    eval(arrays.iter().map(|(_, a)| *a))?;
    let needs = arrays.iter().map(|(_, a)| a.nbytes() as u64).sum();
    let mut file = npz::Writer::create(with_suffix(path.as_ref(), "npz"), compressed, needs)?;
    for (key, array) in arrays {
        let (column_major, bytes) = dense(array)?;
        file.add(key.as_ref(), array.dtype(), array.shape(), column_major, &bytes)?;
    }
    file.commit()
}

/// The bytes of an array in the order they lie in, when that is row-major or column-major (`true`); else row-major.
fn dense(a: &Array) -> Result<(bool, Cow<'_, [u8]>)> {
    let t = a.tensor()?;
    if !t.is_row_contiguous() && t.is_col_contiguous() {
        return Ok((true, Cow::Borrowed(&t.buffer.bytes()[t.offset..t.offset + t.nbytes()])));
    }
    Ok((false, row_major(a)?))
}

/// A value of GGUF metadata.
#[derive(Clone)]
pub enum GgufValue {
    /// A number (no axes) or an array of numbers (one axis).
    Array(Array),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
}

/// GGUF metadata, in the order of the file.
pub type GgufMetadata = IndexMap<String, GgufValue>;

/// The arrays of a GGUF file and its metadata.
///
/// F32, F16, BF16, F64 and the integers load as they are; Q4_0, Q4_1 and Q8_0 as affine triples of group 32
/// (`X.weight`, `X.scales`, `X.biases`), MXFP4 as `X.weight` and `X.scales` of mode mxfp4, other block types as
/// float16. Names are the file's.
///
/// # Errors
/// `Io` for a file that cannot be read, is malformed, or has a tensor of a type that lapis does not read; nothing is
/// ever left out.
pub fn load_gguf(file: impl IntoSource) -> Result<(Arrays, GgufMetadata)> {
    let file = gguf::File::open(file.into_source()?)?;
    let mut arrays = Arrays::new();
    for tensor in &file.tensors {
        for part in file.arrays(tensor)? {
            let array = part.to_array()?;
            if arrays.insert(part.name.clone(), array).is_some() {
                let what = format!("tensor {:?}: the name {:?} of one of its parts is taken", tensor.name, part.name);
                return Err(file.error(what));
            }
        }
    }
    let value = |v: &gguf::Value| {
        Ok(match v {
            gguf::Value::Numbers(t) => GgufValue::Array(t.to_array()?),
            gguf::Value::Text(t) => GgufValue::Text(t.clone()),
            gguf::Value::Texts(t) => GgufValue::Texts(t.clone()),
        })
    };
    let metadata = file.metadata.iter().map(|(k, v)| Ok((k.clone(), value(v)?))).collect::<Result<_>>()?;
    Ok((arrays, metadata))
}

/// Writes arrays and metadata as GGUF version 3, in the given order, not quantized; `.gguf` is added to a path
/// without it.
///
/// # Errors
/// Faults of computing the arrays; `Value` for what the format cannot hold (see [`gguf::write`]); `Io` when writing
/// fails: the old file is then as it was.
pub fn save_gguf<'a, K: AsRef<str> + 'a>(
    path: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a K, &'a Array)>,
    metadata: &GgufMetadata,
) -> Result<()> {
    let arrays: Vec<(&K, &Array)> = arrays.into_iter().collect();
    let numbers = metadata.values().filter_map(|v| if let GgufValue::Array(a) = v { Some(a) } else { None });
    eval(arrays.iter().map(|(_, a)| *a).chain(numbers))?;
    let value = |(k, v): (&String, &GgufValue)| {
        let v = match v {
            GgufValue::Text(t) => gguf::Value::Text(t.clone()),
            GgufValue::Texts(t) => gguf::Value::Texts(t.clone()),
            GgufValue::Array(a) => {
                let bytes = Bytes::copy(&row_major(a)?)?;
                gguf::Value::Numbers(RawTensor::new(k, a.dtype(), a.shape().into(), bytes)?)
            }
        };
        Ok((k.clone(), v))
    };
    let metadata = metadata.iter().map(value).collect::<Result<_>>()?;
    let specs: Vec<Spec> = arrays.iter().map(spec).collect();
    gguf::write(with_suffix(path.as_ref(), "gguf"), &specs, &metadata, |i| row_major(arrays[i].1))
}

pub(crate) fn spec<K: AsRef<str>>((name, a): &(&K, &Array)) -> Spec {
    Spec { name: name.as_ref().into(), dtype: a.dtype(), shape: a.shape().into() }
}

/// The bytes of an array, row-major; copied only when it lies otherwise.
pub(crate) fn row_major(a: &Array) -> Result<Cow<'_, [u8]>> {
    let tensor = a.tensor()?;
    if tensor.is_row_contiguous() {
        return Ok(Cow::Borrowed(tensor.contiguous_bytes()));
    }
    Ok(Cow::Owned(ops::contiguous(a, false)?.to_bytes()?))
}

/// `path`, with `.suffix` after its name when it ends otherwise.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    if path.extension().is_some_and(|e| e == suffix) {
        return path.to_path_buf();
    }
    let mut name = path.as_os_str().to_os_string();
    name.push(".");
    name.push(suffix);
    name.into()
}
