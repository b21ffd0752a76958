//! Subsets of a data set of the hub and their splits, as its card (README.md) names them. Knows nothing of rows.

use lapis_lm::yaml;
use serde_json::{Map, Value};
use std::path::Path;

/// A subset.
pub(crate) struct Subset {
    pub(crate) name: String,
    /// Taken where none is named.
    usual: bool,
    /// Splits with patterns of the paths of their files; without any, files say by their names what they are.
    pub(crate) splits: Vec<(String, Vec<String>)>,
    /// The folder of its files.
    pub(crate) folder: Option<String>,
}

/// The subsets that the card of a data set in a directory names; none where it has none, or names none.
pub(crate) fn of_card(dir: &Path) -> Vec<Subset> {
    let text = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default().replace("\r\n", "\n");
    let front = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")).map_or("", |(front, _)| front);
    let front = yaml::parse(front).unwrap_or_default();
    let configs = front.get("configs").and_then(Value::as_array);
    configs.into_iter().flatten().filter_map(Value::as_object).map(subset).collect()
}

fn subset(config: &Map<String, Value>) -> Subset {
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(String::from);
    let patterns = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(all) => all.iter().filter_map(Value::as_str).map(String::from).collect(),
            other => other.as_str().map(String::from).into_iter().collect(),
        }
    };
    let mut splits = Vec::new();
    match config.get("data_files") {
        Some(Value::Object(all)) => splits.extend(all.iter().map(|(split, files)| (split.clone(), patterns(files)))),
        Some(Value::Array(all)) if all.iter().any(Value::is_object) => {
            let one = |entry: &Value| Some((entry["split"].as_str()?.to_string(), patterns(&entry["path"])));
            splits.extend(all.iter().filter_map(one));
        }
        Some(files @ (Value::Array(_) | Value::String(_))) => splits.push(("train".into(), patterns(files))),
        _ => {}
    }
    let name = text("config_name").unwrap_or_else(|| "default".into());
    let usual = config.get("default") == Some(&Value::Bool(true)) || name == "default";
    Subset { name, usual, splits, folder: text("data_dir") }
}

/// The subset of that name; without a name the usual one, or the only one.
///
/// # Errors
/// The names that there are, where none is chosen.
pub(crate) fn choose(mut all: Vec<Subset>, name: Option<&str>) -> Result<Option<Subset>, Vec<String>> {
    let found = match name {
        Some(name) => all.iter().position(|s| s.name == name),
        None if all.len() < 2 => (!all.is_empty()).then_some(0),
        None => all.iter().position(|s| s.usual),
    };
    match (found, name.is_none() && all.is_empty()) {
        (Some(at), _) => Ok(Some(all.swap_remove(at))),
        (None, true) => Ok(None),
        (None, false) => Err(all.into_iter().map(|s| s.name).collect()),
    }
}

/// Whether a path is one of a pattern, in which `*` and `?` stand for what is in a folder's name and `**` for any folders.
pub(crate) fn matches(pattern: &str, path: &str) -> bool {
    fn from(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            ([b'*', b'*', b'/', rest @ ..], _) => {
                let folders = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i + 1);
                std::iter::once(0).chain(folders).any(|at| from(rest, &path[at..]))
            }
            ([b'*', b'*', rest @ ..], _) => (0..=path.len()).any(|at| from(rest, &path[at..])),
            ([b'*', rest @ ..], _) => {
                let end = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
                (0..=end).any(|at| from(rest, &path[at..]))
            }
            ([b'?', rest @ ..], [b, after @ ..]) => *b != b'/' && from(rest, after),
            ([a, rest @ ..], [b, after @ ..]) => a == b && from(rest, after),
            _ => false,
        }
    }
    // More would take long for patterns that are made to.
    pattern.matches('*').count() <= 8 && from(pattern.trim_start_matches("./").as_bytes(), path.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_as_data_sets_have_them() {
        for (pattern, path, is) in [
            ("main/train-*", "main/train-00000-of-00001.parquet", true),
            ("main/train-*", "socratic/train-00000-of-00001.parquet", false),
            ("data/*.parquet", "data/a/b.parquet", false),
            ("**/*.parquet", "data/a/b.parquet", true),
            ("**/*.parquet", "b.parquet", true),
            ("train.json?", "train.jsonl", true),
            ("./train.jsonl", "train.jsonl", true),
            ("train.jsonl", "train.jsonl2", false),
        ] {
            assert_eq!(matches(pattern, path), is, "{pattern} {path}");
        }
    }
}
