//! Rows of data sets on this machine: lines of JSON.

use super::task::Doc;
use crate::hub::Hub;
use lapis::{Error, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a task's files are looked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Place {
    /// The folder of the task's own file.
    pub(super) folder: PathBuf,
    /// A folder of data sets.
    pub(super) data: Option<PathBuf>,
}

/// What a task says of its data set.
pub(super) struct Set<'a> {
    pub(super) task: &'a str,
    pub(super) path: Option<String>,
    pub(super) name: Option<String>,
    /// `data_files`: a path, or paths by split.
    pub(super) files: Option<&'a Value>,
    pub(super) place: &'a Place,
}

/// An error without the name of the operation.
pub(super) fn reason(e: &Error) -> &str {
    let text = e.message();
    text.split_once("] ").filter(|(op, _)| op.starts_with('[')).map_or(text, |(_, rest)| rest)
}

impl Set<'_> {
    /// The rows of a split.
    pub(super) fn split(&self, split: &str) -> Result<Vec<Doc>> {
        if let Some(files) = self.files {
            let named = match files {
                Value::Object(all) => all.get(split),
                one => Some(one),
            };
            let named: Vec<&str> = match named {
                Some(Value::String(one)) => vec![one],
                Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            if named.is_empty() {
                return Err(Error::value(format!("[evaluate] {}: data_files names no file of {split:?}", self.task)));
            }
            let mut all = Vec::new();
            for name in named {
                let beside = self.place.folder.join(name);
                all.extend(read(&if beside.exists() { beside } else { PathBuf::from(name) })?);
            }
            return Ok(all);
        }
        let tried = self.candidates(split);
        match tried.iter().find(|p| p.is_file()) {
            Some(path) => read(path),
            None => Err(self.absent(split)),
        }
    }

    /// Files that may hold a split, the likeliest first.
    fn candidates(&self, split: &str) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = self.place.data.iter().flat_map(|d| [d.join(self.task), d.clone()]).collect();
        if let Some(path) = &self.path {
            roots.extend(self.place.data.iter().map(|d| d.join(path.rsplit('/').next().unwrap_or(path))));
            roots.extend([self.place.folder.join(path), PathBuf::from(path)]);
            // What another tool has fetched.
            let cached = Hub::from_env().map(|hub| hub.cache.scan()).unwrap_or_default();
            for repository in cached.into_iter().filter(|r| r.kind == "dataset" && r.id == *path) {
                roots.extend(repository.revisions.keys().map(|c| repository.path.join("snapshots").join(c)));
            }
        }
        let file = format!("{split}.jsonl");
        let named = |root: &PathBuf| {
            let own = self.name.iter().flat_map(|n| [root.join(n).join(&file), root.join(format!("{n}_{file}"))]);
            own.chain([root.join(&file), root.join("data").join(&file)]).collect::<Vec<_>>()
        };
        roots.iter().flat_map(named).collect()
    }

    fn absent(&self, split: &str) -> Error {
        let (task, path) = (self.task, self.path.as_deref().unwrap_or("DATASET"));
        let name = self.name.as_ref().map_or(String::new(), |n| format!(", {n:?}"));
        Error::io(format!(
            "[evaluate] {task}: there are no rows of {split:?} on this machine\n  Write them as lines of JSON to \
             DIR/{task}/{split}.jsonl and give --data-dir DIR; with Python's datasets:\n  \
             load_dataset({path:?}{name}, split={split:?}).to_json(\"DIR/{task}/{split}.jsonl\")"
        ))
    }
}

/// The rows of a file of lines of JSON objects.
pub(super) fn read(file: &Path) -> Result<Vec<Doc>> {
    let shown: Arc<str> = file.display().to_string().into();
    let text = std::fs::read_to_string(file).map_err(|e| Error::io(format!("[evaluate] {shown}: {e}")))?;
    let mut all = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |why: &str| Error::value(format!("[evaluate] {shown}:{}: {why}", i + 1));
        let row: Value = serde_json::from_str(line).map_err(|e| bad(&e.to_string()))?;
        let Value::Object(values) = row else { return Err(bad("the line is no JSON object")) };
        all.push(Doc { values: Arc::new(values), file: shown.clone(), line: i + 1 });
    }
    Ok(all)
}
