//! Checkpoints in several safetensors files and the index that says which tensor is in which.
//!
//! The index is `model.safetensors.index.json`: `{"metadata": {"total_size": ..}, "weight_map": {tensor: file}}`.
//! Files are siblings of the index, by plain name.

use crate::arrays::{Arrays, save_safetensors};
use crate::atomic::AtomicFile;
use crate::safetensors::{self, Metadata};
use crate::source::{ReadMode, Source};
use indexmap::{IndexMap, IndexSet};
use lapis_core::array::Array;
use lapis_core::error::{Error, Result};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::fmt;
use std::path::Path;

const OP: &str = "load_sharded";

/// Most bytes of a shard that others write: 5 GiB.
pub const SHARD_LIMIT: u64 = 5 << 30;

/// The map of an index file: tensor name to file name, in file order.
pub type WeightMap = IndexMap<String, String>;

/// Reads an index and checks that it names plain files, each tensor once.
///
/// # Errors
/// `Io` when the index cannot be read or is malformed; a file name that leads elsewhere is named.
pub fn read_index(path: impl AsRef<Path>) -> Result<WeightMap> {
    let source = Source::open(path, ReadMode::Copy)?;
    let bytes = source.bytes(0..source.len())?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| source.error(OP, e))?;
    let mut problems = Vec::new();
    for file in index.weight_map.values().collect::<IndexSet<_>>() {
        if file.is_empty() || file.contains(['/', '\\', '\0', ':']) || file == ".." || file == "." {
            problems.push(format!("{file:?} is no plain file name"));
        }
    }
    report(&source, problems)?;
    Ok(index.weight_map)
}

/// The arrays of all files that the index at `path` names, file by file, and the metadata of the first file.
///
/// # Errors
/// `Io` with all problems listed: file names that lead elsewhere, missing or malformed files, tensors that are not
/// where the index says or occur twice, a number of files that their names contradict (`-of-00003`).
pub fn load_sharded(path: impl AsRef<Path>, mode: ReadMode) -> Result<(Arrays, Metadata)> {
    let path = path.as_ref();
    let map = read_index(path)?;
    let index = Source::open(path, mode)?;
    let files: IndexSet<&str> = map.values().map(String::as_str).collect();
    let mut problems = Vec::new();
    if let Some(n) = files.iter().find_map(|f| shard_count(f))
        && n != files.len()
    {
        problems.push(format!("file names speak of {n} files, the index names {}", files.len()));
    }
    let (mut tensors, mut metadata) = (IndexMap::new(), None);
    for file in &files {
        let read = Source::open(path.with_file_name(file), mode).and_then(|s| safetensors::read(&s));
        let (found, meta) = match read {
            Ok(read) => read,
            Err(e) => {
                problems.push(e.message().to_owned());
                continue;
            }
        };
        metadata.get_or_insert(meta);
        let names: std::collections::HashSet<&str> = found.iter().map(|t| t.name.as_str()).collect();
        let lost = map.iter().filter(|(name, f)| f == file && !names.contains(name.as_str()));
        problems.extend(lost.map(|(name, _)| format!("tensor {name:?} is not in {file:?}")));
        for tensor in found {
            if let Some((other, _)) = tensors.get(&tensor.name) {
                problems.push(format!("tensor {:?} is in {other:?} and in {file:?}", tensor.name));
            }
            tensors.insert(tensor.name.clone(), (*file, tensor));
        }
    }
    report(&index, problems)?;
    let arrays = tensors.into_iter().map(|(name, (_, t))| Ok((name, t.to_array()?))).collect::<Result<_>>()?;
    Ok((arrays, metadata.unwrap_or_default()))
}

/// One error for all problems; the first twenty are spelled out.
fn report(source: &Source, problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(20);
    let mut text = problems.iter().take(20).cloned().collect::<Vec<_>>().join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    Err(source.error(OP, text))
}

/// The 3 of `model-00001-of-00003.safetensors`.
fn shard_count(file: &str) -> Option<usize> {
    let (_, rest) = file.rsplit_once("-of-")?;
    rest.split('.').next()?.parse().ok()
}

struct Index {
    weight_map: WeightMap,
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Index;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a weight_map")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Index, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    if key == "weight_map" {
                        if found.replace(map.next_value::<safetensors::Texts>()?.0).is_some() {
                            return Err(de::Error::custom("weight_map twice"));
                        }
                    } else {
                        map.next_value::<serde_json::Value>()?;
                    }
                }
                Ok(Index { weight_map: found.ok_or_else(|| de::Error::missing_field("weight_map"))? })
            }
        }
        d.deserialize_map(V)
    }
}

/// Arrays by the files that they go into, before any is written.
#[derive(Clone)]
pub struct Shards {
    /// Files in their order, each with its arrays.
    pub files: Vec<(String, Vec<(String, Array)>)>,
    /// Bytes of all arrays.
    pub bytes: u64,
}

impl Shards {
    /// One file `model.safetensors`, or `model-00001-of-000NN.safetensors` where one would pass `limit` bytes (a larger array
    /// gets a file of its own). Arrays stay in the given order.
    ///
    /// # Errors
    /// `Value` for a name that is given twice.
    pub fn of(arrays: impl IntoIterator<Item = (String, Array)>, limit: u64) -> Result<Shards> {
        let (mut shards, mut room, mut bytes) = (vec![Vec::new()], limit, 0u64);
        let mut names = std::collections::HashSet::new();
        for (name, array) in arrays {
            if !names.insert(name.clone()) {
                return Err(Error::value(format!("[save_sharded] tensor name {name:?} is given twice")));
            }
            let size = array.nbytes() as u64;
            bytes += size;
            if size > room && shards.last().is_some_and(|s| !s.is_empty()) {
                shards.push(Vec::new());
                room = limit;
            }
            room = room.saturating_sub(size);
            shards.last_mut().expect("never empty").push((name, array));
        }
        let count = shards.len();
        let name = |i: usize| match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        Ok(Shards { files: shards.into_iter().enumerate().map(|(i, arrays)| (name(i), arrays)).collect(), bytes })
    }

    /// The text of `model.safetensors.index.json`; `parameters` is the number of values that the model has.
    ///
    /// # Errors
    /// None but of memory.
    pub fn index(&self, parameters: u64) -> Result<Vec<u8>> {
        let files = self.files.iter().flat_map(|(file, arrays)| arrays.iter().map(move |(name, _)| (name, file)));
        let index = serde_json::json!({
            "metadata": { "total_size": self.bytes, "total_parameters": parameters },
            "weight_map": files.collect::<std::collections::BTreeMap<_, _>>(),
        });
        let mut text = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut text, indent);
        serde::Serialize::serialize(&index, &mut writer).map_err(|e| Error::io(format!("[save_sharded] {e}")))?;
        Ok(text)
    }
}

/// Writes arrays into `dir` as [`Shards::of`] puts them into files, and then `model.safetensors.index.json`. `parameters` is the
/// number of values the model has, for the index.
///
/// # Errors
/// As [`save_safetensors`]; files that are complete stay, the index is written last.
pub fn save_sharded<'a, K: AsRef<str> + 'a>(
    dir: impl AsRef<Path>,
    arrays: impl IntoIterator<Item = (&'a K, &'a Array)>,
    metadata: &Metadata,
    parameters: u64,
    limit: u64,
) -> Result<()> {
    let dir = dir.as_ref();
    let arrays = arrays.into_iter().map(|(name, array)| (name.as_ref().to_owned(), array.clone()));
    let shards = Shards::of(arrays, limit)?;
    for (file, arrays) in &shards.files {
        save_safetensors(dir.join(file), arrays.iter().map(|(name, array)| (name, array)), metadata)?;
    }
    let text = shards.index(parameters)?;
    let mut file = AtomicFile::create(dir.join("model.safetensors.index.json"), "save_sharded", text.len() as u64)?;
    file.write(&text)?;
    file.commit()
}
