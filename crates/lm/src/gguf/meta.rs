//! Metadata of a file by their keys.

use lapis::io::gguf::{File, Value as Raw};
use lapis::io::{RawTensor, ReadMode, Source};
use lapis::{Dtype, Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Metadata, and where they come from.
pub(crate) struct Meta {
    name: String,
    arch: String,
    all: BTreeMap<String, Raw>,
}

impl Meta {
    /// Those of a file.
    ///
    /// # Errors
    /// A file that is malformed.
    pub(crate) fn open(path: &Path) -> Result<Meta> {
        Ok(Meta::new(path, File::open(Source::open(path, ReadMode::Map)?)?.metadata))
    }

    pub(super) fn new(path: &Path, all: impl IntoIterator<Item = (String, Raw)>) -> Meta {
        let all = all.into_iter().collect();
        let mut meta = Meta { name: path.display().to_string(), arch: String::new(), all };
        meta.arch = meta.text("general.architecture").unwrap_or_default().into();
        meta
    }

    /// The path of the file.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `general.architecture`; empty without one.
    pub(super) fn arch(&self) -> &str {
        &self.arch
    }

    pub(super) fn error(&self, what: String) -> Error {
        Error::io(format!("[load] {}: {what}", self.name))
    }

    /// A key of the architecture's own.
    pub(super) fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.all.get(key) {
            Some(Raw::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.all.get(key) {
            Some(Raw::Texts(texts)) => Some(texts),
            _ => None,
        }
    }

    /// A list of numbers.
    pub(super) fn list(&self, key: &str) -> Result<Option<Vec<f64>>> {
        match self.all.get(key) {
            Some(Raw::Numbers(t)) if t.shape.len() == 1 => numbers(t).map(Some),
            None => Ok(None),
            _ => Err(self.error(format!("{key} is no list of numbers"))),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.error(format!("{key} is {value}, no whole number from 0")))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.error(format!("{key} is {value}, expected true or false")))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.error(format!("{key} is {value}, no number")))
    }

    /// A value; of a list whose items are all the same, that item.
    pub(super) fn value(&self, key: &str) -> Result<Option<Value>> {
        let Some(raw) = self.all.get(key) else { return Ok(None) };
        let t = match raw {
            Raw::Text(text) => return Ok(Some(json!(text))),
            Raw::Texts(texts) => return Ok(Some(json!(texts))),
            Raw::Numbers(t) => t,
        };
        let one = |x: f64| match t.dtype {
            Dtype::Bool => json!(x != 0.0),
            // Whole numbers of 64 bits that a double does not hold stand for nothing that is looked at here.
            _ if !t.dtype.is_floating() && x >= 0.0 => json!(x as u64),
            _ if !t.dtype.is_floating() => json!(x as i64),
            _ => json!(x),
        };
        let all = numbers(t)?;
        Ok(Some(match &all[..] {
            [first, rest @ ..] if rest.iter().all(|x| x == first) => one(*first),
            _ => all.into_iter().map(one).collect(),
        }))
    }
}

/// A single-precision number as the decimal that it was rounded from.
pub(super) fn decimal(x: f32) -> f64 {
    format!("{x:?}").parse().unwrap_or(f64::from(x))
}

fn numbers(t: &RawTensor) -> Result<Vec<f64>> {
    let bytes = t.bytes()?;
    macro_rules! read {
        ($t:ty, $f:expr) => {
            bytes.as_chunks::<{ size_of::<$t>() }>().0.iter().map(|b| $f(<$t>::from_le_bytes(*b))).collect()
        };
    }
    Ok(match t.dtype {
        Dtype::Uint8 | Dtype::Bool => bytes.iter().map(|&b| f64::from(b)).collect(),
        Dtype::Int8 => read!(i8, f64::from),
        Dtype::Uint16 => read!(u16, f64::from),
        Dtype::Int16 => read!(i16, f64::from),
        Dtype::Uint32 => read!(u32, f64::from),
        Dtype::Int32 => read!(i32, f64::from),
        Dtype::Uint64 => read!(u64, |x| x as f64),
        Dtype::Int64 => read!(i64, |x| x as f64),
        Dtype::Float32 => read!(f32, decimal),
        Dtype::Float64 => read!(f64, |x| x),
        other => return Err(Error::value(format!("[load] metadata of {other}"))),
    })
}
