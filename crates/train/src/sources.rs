//! Where rows come from: JSON lines, CSV or Parquet, in a directory or in a data set of the cache that tools of the hub share. Knows
//! nothing of what rows mean.

use crate::parquet;
use crate::subsets::{self, matches};
use lapis::{Error, Result};
use lapis_lm::hub::{Hub, Name};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows of a file, each with the number of its line; of a Parquet file, which has none, with its own.
pub(crate) struct Rows {
    /// What errors call the file.
    pub(crate) shown: String,
    pub(crate) rows: Vec<(usize, Map<String, Value>)>,
}

/// Files of a set of rows.
pub(crate) struct Source {
    dir: PathBuf,
    /// Files, by their paths below it.
    files: Vec<String>,
    /// What errors call it.
    shown: String,
    /// Whether files lie as those who upload data put them, and not only as mlx-lm wants them.
    spread: bool,
    /// Splits and their files, where the card of a data set names them.
    splits: Vec<(String, Vec<String>)>,
}

/// Words in the names of files that hold a split.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("valid", &["valid", "validation", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

impl Source {
    /// A directory, or `owner/name[@revision]` of a data set that is in the cache; of that, a subset.
    ///
    /// # Errors
    /// Neither; a subset that there is not, or several of which none is chosen.
    pub(crate) fn find(data: &str, subset: Option<&str>) -> Result<Source> {
        let dir = Path::new(data);
        if dir.is_dir() {
            let files = below(dir, 0);
            return Ok(Source { dir: dir.into(), files, shown: data.into(), spread: false, splits: Vec::new() });
        }
        let name = Name::parse(data).ok().filter(|name| name.repo.contains('/') && !dir.exists());
        let Some(name) = name else {
            return Err(Error::io(format!(
                "[lora] {data} is no directory; --data takes one with train.jsonl, valid.jsonl and test.jsonl (or .csv, .parquet), or the \
                 name of a data set in the cache of the hub, owner/name"
            )));
        };
        let cache = Hub::from_env()?.cache;
        let Some(dir) = cache.dataset(&name) else {
            let (folder, revision) = (cache.root.display(), &name.revision);
            return Err(Error::io(format!(
                "[lora] {data} is no directory, and no data set in {folder}\n  Fetch it with hf download --repo-type dataset {} --revision \
                 {revision}",
                name.repo
            )));
        };
        let mut source = Source { files: below(&dir, 2), dir, shown: data.into(), spread: true, splits: Vec::new() };
        source.keep(subset)?;
        Ok(source)
    }

    /// Keeps the files of a subset.
    fn keep(&mut self, name: Option<&str>) -> Result<()> {
        let folder = |name: &str| format!("{}/", name.trim_matches('/'));
        let chosen = match subsets::choose(subsets::of_card(&self.dir), name) {
            Ok(chosen) => chosen,
            // Without a card, folders are subsets.
            Err(_) if name.is_some_and(|name| self.files.iter().any(|f| f.starts_with(&folder(name)))) => {
                let own = folder(name.unwrap_or_default());
                self.files.retain(|f| f.starts_with(&own));
                return Ok(());
            }
            Err(known) => {
                let (shown, first) = (&self.shown, known.first().map_or("NAME", String::as_str));
                let what = match name {
                    Some(name) => format!("has no subset {name:?}; it has {}", known.join(", ")),
                    None => format!("has the subsets {}", known.join(", ")),
                };
                return Err(Error::value(format!(
                    "[lora] {shown} {what}\n  Choose one in a YAML file: hf_dataset: {{path: {shown}, config: {{name: {first}}}}}"
                )));
            }
        };
        let Some(subset) = chosen else { return Ok(()) };
        if let Some(own) = subset.folder.as_deref().map(folder) {
            self.files.retain(|f| f.starts_with(&own));
        }
        let of = |patterns: Vec<String>| -> Vec<String> {
            self.files.iter().filter(|f| patterns.iter().any(|p| matches(p, f))).cloned().collect()
        };
        self.splits = subset.splits.into_iter().map(|(split, patterns)| (split, of(patterns))).collect();
        Ok(())
    }

    /// The rows of a split; `None` where there is none.
    ///
    /// # Errors
    /// Files that cannot be read, and rows, by file and line; a split in a format that is not read.
    pub(crate) fn split(&self, split: &str) -> Result<Option<Vec<Rows>>> {
        for end in [".jsonl", ".csv", ".parquet"] {
            let files: Vec<&String> =
                self.files.iter().filter(|f| f.ends_with(end) && self.is_of(f, end, split)).collect();
            if !files.is_empty() {
                return files.iter().map(|f| read(&self.dir.join(f))).collect::<Result<_>>().map(Some);
            }
        }
        let other = |f: &&String| {
            let end = f.rfind('.').map_or("", |at| &f[at..]);
            [".json", ".gz", ".zst", ".arrow", ".txt"].contains(&end) && self.is_of(f, end, split)
        };
        match self.files.iter().find(other) {
            None => Ok(None),
            Some(file) => Err(Error::unsupported(format!(
                "[lora] {}/{file}: rows are read from .jsonl, .csv and .parquet; write them so, for instance with Python: \
                 datasets.load_dataset(...).to_json(\"train.jsonl\")",
                self.shown
            ))),
        }
    }

    /// What the file of a split is called in a directory.
    pub(crate) fn file(&self, split: &str) -> String {
        format!("{}/{split}.jsonl", self.shown)
    }

    fn is_of(&self, file: &str, end: &str, split: &str) -> bool {
        if !self.spread {
            return file.strip_suffix(end) == Some(split);
        }
        let words = |of: &str| SPLITS.iter().find(|(name, _)| *name == of).map_or(&[][..], |(_, words)| words);
        if !self.splits.is_empty() {
            let named = |own: &str| own == split || words(split).contains(&own);
            return self.splits.iter().any(|(own, files)| named(own) && files.iter().any(|f| f == file));
        }
        // A name of the set's own.
        if words(split).is_empty() {
            let name = file.rsplit('/').next().unwrap_or(file);
            return name.strip_prefix(split).is_some_and(|rest| rest == end || rest.starts_with('-'));
        }
        let holds = |of: &str| {
            let mut parts = file.split(|c: char| !c.is_ascii_alphanumeric());
            parts.any(|part| words(of).contains(&part.to_lowercase().as_str()))
        };
        // A set without names of splits is one to learn from.
        holds(split) || (split == "train" && !SPLITS.iter().any(|(name, _)| holds(name)))
    }
}

/// Files below a directory, by their paths, in order.
fn below(dir: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        // Links lead to files in the cache.
        match entry.path() {
            path if path.is_dir() && depth > 0 => {
                found.extend(below(&path, depth - 1).into_iter().map(|f| format!("{name}/{f}")));
            }
            path if path.is_file() => found.push(name),
            _ => {}
        }
    }
    found.sort();
    found
}

/// The rows of a file.
///
/// # Errors
/// A file that cannot be read, and rows, by file and line.
pub(crate) fn read(file: &Path) -> Result<Rows> {
    let shown = file.display().to_string();
    if shown.ends_with(".parquet") {
        return parquet::read(file, shown);
    }
    let text = text(file)?;
    match shown.ends_with(".csv") {
        true => csv(&text, shown),
        false => lines(&text, shown),
    }
}

/// The text of a file, without the mark that some programs write before it.
///
/// # Errors
/// A file that cannot be read; bytes that are no UTF-8, by their line.
pub(crate) fn text(file: &Path) -> Result<String> {
    let shown = file.display().to_string();
    let bytes = std::fs::read(file).map_err(|e| Error::io(format!("[lora] {shown}: {e}")))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        bad(&shown, line, "the line is not UTF-8; save the file in that encoding")
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_string(),
        None => text,
    })
}

/// What is wrong in a line.
fn bad(shown: &str, line: usize, why: &str) -> Error {
    Error::value(format!("[lora] {shown}:{line}: {why}"))
}

/// What is wrong in the rows of a file: the first few, and how many there are.
pub(crate) struct Faults<'a> {
    shown: &'a str,
    first: Vec<String>,
    all: usize,
}

impl Faults<'_> {
    const SHOWN: usize = 5;

    pub(crate) fn of(shown: &str) -> Faults<'_> {
        Faults { shown, first: Vec::new(), all: 0 }
    }

    pub(crate) fn add(&mut self, line: usize, why: &str) {
        self.all += 1;
        if self.first.len() < Faults::SHOWN {
            self.first.push(format!("{}:{line}: {why}", self.shown));
        }
    }

    /// # Errors
    /// There are some.
    pub(crate) fn none(mut self) -> Result<()> {
        if self.all > self.first.len() {
            self.first.push(format!("{} rows are bad; the first {} are shown", self.all, Faults::SHOWN));
        }
        match self.first.is_empty() {
            true => Ok(()),
            false => Err(Error::value(format!("[lora] {}", self.first.join("\n  ")))),
        }
    }
}

/// Rows of JSON, one a line.
pub(crate) fn lines(text: &str, shown: String) -> Result<Rows> {
    let (mut rows, mut faults) = (Vec::new(), Faults::of(&shown));
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match serde_json::from_str(line) {
            Ok(Value::Object(row)) => rows.push((i + 1, row)),
            Ok(_) => faults.add(i + 1, "the line is no JSON object"),
            // The place that is meant is in the file, not in the line.
            Err(e) => faults.add(i + 1, &e.to_string().replace(" at line 1 column ", " in column ")),
        }
    }
    faults.none()?;
    Ok(Rows { shown, rows })
}

/// Rows of comma-separated values (RFC 4180) under a row of names. Values are texts; a list or an object of JSON is what it says.
fn csv(text: &str, shown: String) -> Result<Rows> {
    let mut records = records(text, &shown)?.into_iter();
    let names = records.next().map_or(Vec::new(), |(_, names)| names);
    let (mut rows, mut faults) = (Vec::new(), Faults::of(&shown));
    for (line, values) in records {
        if values.len() != names.len() {
            let (n, all) = (values.len(), names.len());
            faults.add(line, &format!("the row has {n} values, the first line names {all}"));
            continue;
        }
        let value = |text: String| match text.trim_start().starts_with(['[', '{']) {
            true => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            false => Value::String(text),
        };
        rows.push((line, names.iter().cloned().zip(values.into_iter().map(value)).collect()));
    }
    faults.none()?;
    Ok(Rows { shown, rows })
}

/// Records, each with the number of the line where it begins.
fn records(text: &str, shown: &str) -> Result<Vec<(usize, Vec<String>)>> {
    let (mut all, mut record, mut field) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut first) = (1, 1);
    // Inside quotes since that line; a field that was quoted is over at its last quote.
    let (mut quoted, mut closed) = (None, false);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        line += usize::from(c == '\n');
        match (c, quoted) {
            ('"', Some(_)) if rest.next_if_eq(&'"').is_some() => field.push('"'),
            ('"', Some(_)) => (quoted, closed) = (None, true),
            (c, Some(_)) => field.push(c),
            ('"', None) if field.is_empty() && !closed => quoted = Some(line),
            (',', None) => {
                record.push(std::mem::take(&mut field));
                closed = false;
            }
            ('\r', None) if rest.peek() == Some(&'\n') => {}
            ('\n', None) => {
                record.push(std::mem::take(&mut field));
                // An empty line is no row.
                match record.len() == 1 && record[0].is_empty() && !closed {
                    true => record.clear(),
                    false => all.push((first, std::mem::take(&mut record))),
                }
                (first, closed) = (line, false);
            }
            (_, None) if closed => {
                return Err(bad(shown, line, "after the closing quote of a value comes another sign"));
            }
            (c, None) => field.push(c),
        }
    }
    if let Some(line) = quoted {
        return Err(bad(shown, line, "the quote that opens here is not closed"));
    }
    if !record.is_empty() || !field.is_empty() || closed {
        record.push(field);
        all.push((first, record));
    }
    Ok(all)
}

/// A part of a split, as `datasets` writes it: `train`, `train[:80%]`, `train[-100:]`, `train[10%:20%]`.
#[derive(Debug, PartialEq)]
pub(crate) struct Slice {
    pub(crate) split: String,
    ends: [Option<End>; 2],
}

/// A border, from the end where it is negative.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Row(i64),
    Percent(i64),
}

impl Slice {
    /// Reads one.
    ///
    /// # Errors
    /// Another form.
    pub(crate) fn parse(text: &str) -> Result<Slice> {
        let wrong = || Error::value(format!("[lora] hf_dataset: {text:?} is no split; train and train[:80%] are"));
        let Some((split, inside)) = text.split_once('[') else {
            return Ok(Slice { split: text.into(), ends: [None, None] });
        };
        let (first, last) = inside.strip_suffix(']').and_then(|ends| ends.split_once(':')).ok_or_else(wrong)?;
        let end = |text: &str| match text.trim() {
            "" => Ok(None),
            text => {
                let number = text.strip_suffix('%').unwrap_or(text).parse::<i64>().map_err(|_| wrong())?;
                let percent = text.ends_with('%');
                let fits = !percent || (-100..=100).contains(&number);
                fits.then_some(Some(if percent { End::Percent(number) } else { End::Row(number) })).ok_or_else(wrong)
            }
        };
        Ok(Slice { split: split.into(), ends: [end(first)?, end(last)?] })
    }

    /// Which of `n` rows.
    pub(crate) fn of(&self, n: usize) -> Range<usize> {
        let n = n as i64;
        let at = |end: Option<End>, otherwise: i64| {
            let row = match end {
                None => return otherwise as usize,
                Some(End::Row(row)) => row,
                // Rounded to the nearest row, as `datasets` does.
                Some(End::Percent(percent)) => (percent as f64 * n as f64 / 100.0).round_ties_even() as i64,
            };
            (if row < 0 { row + n } else { row }).clamp(0, n) as usize
        };
        let (first, last) = (at(self.ends[0], 0), at(self.ends[1], n));
        first..last.max(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_as_rfc_4180_has_it() {
        let text = "prompt,completion\r\n\"a \"\"b\"\", c\",d\r\n\r\n\"two\nlines\",\"\"\n[1],x";
        let rows = csv(text, "a.csv".into()).unwrap().rows;
        let want =
            [(2, "a \"b\", c".into(), "d"), (4, Value::from("two\nlines"), ""), (6, serde_json::json!([1]), "x")];
        assert_eq!(rows.len(), want.len());
        for ((line, row), (at, prompt, completion)) in rows.iter().zip(want) {
            assert_eq!((*line, &row["prompt"], row["completion"].as_str()), (at, &prompt, Some(completion)));
        }
        for (text, why) in [
            ("a,b\n1,2\n3", "a.csv:3: the row has 1 values, the first line names 2"),
            ("a,b\n1,\"2\n3,4", "a.csv:2: the quote that opens here is not closed"),
            ("a\n\"1\"2\n", "a.csv:2: after the closing quote"),
        ] {
            let e = csv(text, "a.csv".into()).err().unwrap();
            assert!(e.message().contains(why), "{e}");
        }
    }

    #[test]
    fn slices_as_datasets_has_them() {
        for (text, n, want) in [
            ("train", 7, 0..7),
            ("train[:80%]", 7, 0..6),
            ("train[-10%:]", 25, 23..25),
            ("train[2:-1]", 7, 2..6),
            ("train[10%:20%]", 50, 5..10),
            ("train[5:100]", 7, 5..7),
            ("train[5:2]", 7, 5..5),
        ] {
            assert_eq!(Slice::parse(text).unwrap().of(n), want, "{text} of {n}");
        }
        for text in ["train[", "train[1]", "train[a:]", "train[:101%]"] {
            assert!(Slice::parse(text).is_err(), "{text}");
        }
    }
}
