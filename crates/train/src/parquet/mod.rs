//! Rows of Parquet files, as the hub keeps data sets. Knows nothing of what rows mean.
//!
//! The format is that of <https://parquet.apache.org/docs/file-format/>, as far as writers use it by themselves: plain values and
//! dictionaries, unpacked or packed by Snappy or gzip, nested in any way.

mod pages;
mod schema;
mod thrift;

use crate::sources::Rows;
use lapis::{Error, Result};
use pages::Column;
use schema::{Kind, Leaf, Node, Often};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{Read as _, Seek, SeekFrom};
use std::path::Path;
use thrift::{Bytes, Read, Thrift};

/// The rows of a file, each with its number, which begins at 1. Bytes that are no text (pictures, sounds) are null, times and dates
/// numbers.
///
/// # Errors
/// A file that cannot be read, is damaged, or is packed in a way that is not known here.
pub(crate) fn read(file: &Path, shown: String) -> Result<Rows> {
    let fault = |e: std::io::Error| Error::io(format!("[lora] {shown}: {e}"));
    let mut open = File::open(file).map_err(fault)?;
    let long = open.metadata().map_err(fault)?.len();
    let mut part = |from: u64, n: usize| -> Read<Vec<u8>> {
        if from.checked_add(n as u64).is_none_or(|end| end > long) {
            return Err("it ends too early".into());
        }
        let mut bytes = vec![0; n];
        let done = open.seek(SeekFrom::Start(from)).and_then(|_| open.read_exact(&mut bytes));
        done.map(|()| bytes).map_err(|e| e.to_string())
    };
    let how = format!(
        "\n  If it is whole, write it anew with Python: import pyarrow.parquet as p; p.write_table(p.read_table({shown:?}), \
         \"train.parquet\")"
    );
    match rows(&mut part, long) {
        Ok(all) => Ok(Rows { shown, rows: all.into_iter().enumerate().map(|(i, row)| (i + 1, row)).collect() }),
        Err(why) => Err(Error::value(format!("[lora] {shown} cannot be read: {why}{how}"))),
    }
}

fn rows(part: &mut dyn FnMut(u64, usize) -> Read<Vec<u8>>, long: u64) -> Read<Vec<Map<String, Value>>> {
    let no = "it is no Parquet file";
    let end = part(long.checked_sub(8).ok_or(no)?, 8)?;
    match &end[4..] {
        b"PAR1" => {}
        b"PARE" => return Err("it is encrypted".into()),
        _ => return Err(no.into()),
    }
    let size = u64::from(u32::from_le_bytes([end[0], end[1], end[2], end[3]]));
    let footer = part(long.checked_sub(8 + size).ok_or(no)?, size as usize)?;
    let meta = Thrift::read(&mut Bytes(&footer))?;
    let (root, leaves) = schema::read(meta.list(2)?)?;
    let mut all = Vec::new();
    for group in meta.list(4)? {
        let chunks = group.list(1)?;
        if chunks.len() != leaves.len() {
            return Err(format!("{} columns are named, {} are there", leaves.len(), chunks.len()));
        }
        let columns = leaves
            .iter()
            .zip(chunks)
            .map(|(leaf, chunk)| column(part, leaf, chunk).map_err(|why| format!("column {}: {why}", leaf.path)));
        let mut left = Left(columns.collect::<Read<Vec<_>>>()?.into_iter().map(Cursor::new).collect());
        for _ in 0..group.count(3)? {
            match left.content(&root)? {
                Value::Object(row) => all.push(row),
                _ => return Err(no.into()),
            }
        }
    }
    Ok(all)
}

/// A column of a group of rows.
fn column(part: &mut dyn FnMut(u64, usize) -> Read<Vec<u8>>, leaf: &Leaf, chunk: &Thrift) -> Read<Column> {
    let meta = chunk.get(3).ok_or("it is not described")?;
    let packing = meta.int(4).unwrap_or(-1);
    if !(0..=2).contains(&packing) {
        let names = ["UNCOMPRESSED", "SNAPPY", "GZIP", "LZO", "BROTLI", "LZ4", "ZSTD", "LZ4_RAW"];
        let name = usize::try_from(packing).ok().and_then(|i| names.get(i)).unwrap_or(&"an unknown way");
        return Err(format!("it is packed by {name}; files without packing, of Snappy and of gzip are read"));
    }
    let first = meta.count(9)?;
    let first = meta.count(11).ok().filter(|&at| at > 0 && at < first).unwrap_or(first);
    let bytes = part(first as u64, meta.count(7)?)?;
    Column::read(Bytes(&bytes), leaf, packing, meta.count(5)?)
}

/// What is left of a column.
struct Cursor {
    levels: std::iter::Peekable<std::vec::IntoIter<(u32, u32)>>,
    values: std::vec::IntoIter<Value>,
}

impl Cursor {
    fn new(column: Column) -> Cursor {
        Cursor { levels: column.levels.into_iter().peekable(), values: column.values.into_iter() }
    }
}

/// What is left of the columns of a group of rows.
struct Left(Vec<Cursor>);

impl Left {
    /// A part of a row, which may be absent or repeated.
    fn value(&mut self, node: &Node) -> Read<Value> {
        if node.often == Often::Once {
            return self.content(node);
        }
        let there = self.0[node.first].levels.peek().is_some_and(|l| l.1 >= node.there);
        if !there {
            for column in &mut self.0[node.first..node.last] {
                column.levels.next().ok_or("a column is shorter than others")?;
            }
            return Ok(if node.often == Often::Repeated { Value::Array(Vec::new()) } else { Value::Null });
        }
        if node.often == Often::Perhaps {
            return self.content(node);
        }
        let mut all = vec![self.content(node)?];
        while self.0[node.first].levels.peek().is_some_and(|l| l.0 == node.repeats) {
            all.push(self.content(node)?);
        }
        Ok(Value::Array(all))
    }

    /// A part of a row that is there.
    fn content(&mut self, node: &Node) -> Read<Value> {
        Ok(match (&node.kind, &node.children[..]) {
            (Kind::Leaf, _) => {
                let column = &mut self.0[node.first];
                column.levels.next().ok_or("a column is shorter than others")?;
                column.values.next().ok_or("a column has fewer values than places for them")?
            }
            (Kind::List | Kind::Element, [only]) => self.value(only)?,
            (Kind::Map, [pairs]) => {
                let Value::Array(pairs) = self.value(pairs)? else { return Err("a map has no pairs".into()) };
                let pair = |pair: Value| {
                    let mut both = pair.as_object()?.values();
                    let name = match both.next()? {
                        Value::String(text) => text.clone(),
                        other => other.to_string(),
                    };
                    Some((name, both.next()?.clone()))
                };
                pairs.into_iter().filter_map(pair).collect()
            }
            (_, children) => {
                let mut fields = Map::new();
                for child in children {
                    let value = self.value(child)?;
                    fields.insert(child.name.clone(), value);
                }
                Value::Object(fields)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::lines;

    fn data(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
    }

    /// `tests/data/rows.py` has written them.
    #[test]
    fn rows_are_those_that_pyarrow_wrote() {
        let want = lines(&std::fs::read_to_string(data("rows.jsonl")).unwrap(), "rows.jsonl".into()).unwrap().rows;
        for name in ["rows.parquet", "pages.parquet", "gzip.parquet"] {
            assert_eq!(read(&data(name), name.into()).unwrap().rows, want, "{name}");
        }
        for (name, says) in [
            ("zstd.parquet", "zstd.parquet cannot be read: column text: it is packed by ZSTD"),
            ("delta.parquet", "column text: values are written as DELTA_BYTE_ARRAY"),
            ("rows.jsonl", "rows.jsonl cannot be read: it is no Parquet file"),
        ] {
            let why = read(&data(name), name.into()).err().unwrap().to_string();
            assert!(why.contains(says) && why.contains("p.write_table("), "{why}");
        }
    }

    #[test]
    fn damage_is_an_error_or_other_rows_and_never_a_panic() {
        let file = std::env::temp_dir().join(format!("lapis-train-{}.parquet", std::process::id()));
        let mut state = 7u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut refused = 0;
        for name in ["rows.parquet", "pages.parquet", "gzip.parquet"] {
            let good = std::fs::read(data(name)).unwrap();
            for i in 0..500 {
                let mut bytes = good.clone();
                match i % 5 {
                    0 => bytes.truncate(next(good.len())),
                    _ => bytes[next(good.len())] = next(256) as u8,
                }
                std::fs::write(&file, &bytes).unwrap();
                refused +=
                    usize::from(read(&file, "it".into()).is_err_and(|e| e.to_string().contains("it cannot be read: ")));
            }
        }
        std::fs::remove_file(file).unwrap();
        assert!(refused > 400, "{refused}");
    }
}
