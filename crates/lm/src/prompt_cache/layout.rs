//! The two layouts of mlx-lm's files: layers as tensors by paths, numbers beside them as tensors (B) or as text (A).
//! Knows no model.

use lapis::io::{Arrays, Metadata};
use lapis::{Array, Dtype, Result};

/// How a file is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// As mlx-lm 0.32.0 and before wrote it.
    A,
    /// As mlx-lm 0.32.2 and later write it.
    #[default]
    B,
}

/// The caches of mlx-lm that lapis knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Concatenate,
    Rotating,
    Quantized,
    Chunked,
    Arrays,
    List,
}

const KINDS: [(&str, Kind); 8] = [
    ("KVCache", Kind::Plain),
    ("ConcatenateKVCache", Kind::Concatenate),
    ("RotatingKVCache", Kind::Rotating),
    ("QuantizedKVCache", Kind::Quantized),
    ("ChunkedKVCache", Kind::Chunked),
    ("ArraysCache", Kind::Arrays),
    ("CacheList", Kind::List),
    // Of earlier versions.
    ("MambaCache", Kind::Arrays),
];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        KINDS.iter().find(|k| k.1 == self).map_or("", |k| k.0)
    }

    fn from_name(name: &str) -> Option<Kind> {
        KINDS.iter().find(|k| k.0 == name).map(|k| k.1)
    }

    /// Its numbers: as layout B orders them after the tensors, and where layout A has each that it has.
    fn numbers(self) -> &'static [(&'static str, Option<usize>)] {
        match self {
            Kind::Concatenate | Kind::Arrays | Kind::List => &[],
            Kind::Plain => &[("offset", None)],
            Kind::Chunked => &[("offset", None), ("chunk_size", Some(0)), ("start_position", Some(1))],
            Kind::Rotating => &[("offset", Some(2)), ("keep", Some(0)), ("max_size", Some(1)), ("index", Some(3))],
            Kind::Quantized => &[("offset", Some(0)), ("group_size", Some(1)), ("bits", Some(2))],
        }
    }

    /// Paths of its tensors; those of arrays depend on their number.
    fn paths(self) -> &'static [&'static str] {
        match self {
            Kind::Plain | Kind::Concatenate | Kind::Rotating | Kind::Chunked => &["0", "1"],
            Kind::Quantized => &["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"],
            Kind::Arrays | Kind::List => &[],
        }
    }
}

/// One cache: its tensors, none where one is not there, and those of its numbers that the file has in the order of
/// layout B. A plain cache has its offset as its number; without one all rows count.
pub(super) struct Stored {
    pub(super) kind: Kind,
    pub(super) tensors: Vec<Option<Array>>,
    pub(super) numbers: Vec<i64>,
    /// Caches of a list.
    pub(super) parts: Vec<Stored>,
}

type Read<T> = std::result::Result<T, String>;

/// A file on its way.
struct Writer {
    layout: Layout,
    tensors: Arrays,
    metadata: Metadata,
    /// Tensors that stand for something else.
    scalars: Vec<(String, &'static str)>,
}

impl Writer {
    fn scalar(&mut self, path: String, what: &'static str, value: Array) {
        self.scalars.push((path.clone(), what));
        self.tensors.insert(path, value);
    }

    /// A cache whose tensors lie at `place`, and whose numbers layout A has at `meta`.
    fn put(&mut self, cache: &Stored, place: &str, meta: &str) {
        let b = self.layout == Layout::B;
        let none = || Array::from_vec(Vec::<f32>::new(), &[0]);
        for (i, tensor) in cache.tensors.iter().enumerate() {
            let path = match cache.kind {
                Kind::Arrays if b => format!("{place}.0.{i}"),
                Kind::Arrays => format!("{place}.{i}"),
                kind => format!("{place}.{}", kind.paths()[i]),
            };
            match tensor {
                None if b => self.scalar(path, "none", none()),
                tensor => drop(self.tensors.insert(path, tensor.clone().unwrap_or_else(none))),
            }
        }
        for (j, part) in cache.parts.iter().enumerate() {
            let name = part.kind.name();
            if b {
                self.put(part, &format!("{place}.{j}.0"), meta);
                let letters: Vec<i32> = name.chars().map(|c| c as i32).collect();
                let n = letters.len();
                self.scalar(format!("{place}.{j}.1"), "string", Array::from_vec(letters, &[n]));
            } else {
                self.metadata.insert(format!("{meta}.0.{j}"), name.into());
                self.put(part, &format!("{place}.{j}"), &format!("{meta}.1.{j}"));
            }
        }
        if b {
            for (i, &n) in cache.numbers.iter().enumerate() {
                self.scalar(format!("{place}.{}", 2 + i), "scalar", Array::from_vec(vec![n as i32], &[]));
            }
            if cache.kind == Kind::Arrays {
                // No padding, no lengths.
                self.scalar(format!("{place}.1"), "none", none());
                self.scalar(format!("{place}.2"), "none", none());
            }
            return;
        }
        let numbers = cache.numbers.iter().zip(cache.kind.numbers());
        let mut numbers = numbers.filter_map(|(n, (_, at))| at.map(|at| (at, n))).peekable();
        if numbers.peek().is_none() && cache.parts.is_empty() {
            self.metadata.insert(meta.into(), String::new());
        }
        for (at, n) in numbers {
            self.metadata.insert(format!("{meta}.{at}"), n.to_string());
        }
    }
}

/// Tensors and metadata of a file.
pub(super) fn write(layers: &[Stored], notes: &Metadata, layout: Layout) -> Result<(Arrays, Metadata)> {
    let mut file = Writer { layout, tensors: Arrays::new(), metadata: Metadata::new(), scalars: Vec::new() };
    let (user, kinds) = if layout == Layout::B { (0, 1) } else { (1, 2) };
    for (l, layer) in layers.iter().enumerate() {
        file.metadata.insert(format!("{kinds}.{l}"), layer.kind.name().into());
        file.put(layer, &l.to_string(), &format!("0.{l}"));
    }
    let Writer { tensors, mut metadata, scalars, .. } = file;
    metadata.extend(notes.iter().map(|(k, v)| (format!("{user}.{k}"), v.clone())));
    if layout == Layout::B {
        metadata.insert("2.0".into(), String::new());
        for (k, (path, what)) in scalars.into_iter().enumerate() {
            metadata.insert(format!("2.{}.0", k + 1), path);
            metadata.insert(format!("2.{}.1", k + 1), what.into());
        }
    }
    Ok((tensors, metadata))
}

fn layout(metadata: &Metadata) -> Read<Layout> {
    match metadata.get("2.0").map(String::as_str) {
        Some("") => Ok(Layout::B),
        Some(_) => Ok(Layout::A),
        None => Err("no prompt cache, or of a layout that is not known: its metadata has no 2.0".into()),
    }
}

/// What a file says of itself.
pub(super) fn notes(metadata: &Metadata) -> Read<Metadata> {
    let user = if layout(metadata)? == Layout::B { "0." } else { "1." };
    let own = |(k, v): (&String, &String)| Some((k.strip_prefix(user)?.to_string(), v.clone()));
    Ok(metadata.iter().filter_map(own).collect())
}

/// A file that is read.
struct Reader<'a> {
    layout: Layout,
    /// Those that nobody has taken yet.
    tensors: Arrays,
    metadata: &'a Metadata,
    /// Paths where there is nothing.
    absent: Vec<String>,
}

impl Reader<'_> {
    fn kind(name: &str) -> Read<Kind> {
        let known = KINDS.map(|k| k.0).join(", ");
        Kind::from_name(name).ok_or_else(|| format!("a {name}; known are {known}"))
    }

    fn take(&mut self, path: String, kind: Kind) -> Read<Option<Array>> {
        // The order of what is left does not matter.
        let tensor = self.tensors.swap_remove(&path).ok_or_else(|| format!("tensor {path} is missing"))?;
        let none =
            self.absent.contains(&path) || self.layout == Layout::A && kind == Kind::Arrays && tensor.size() == 0;
        Ok((!none).then_some(tensor))
    }

    /// The cache of this kind whose tensors lie at `place`, and whose numbers layout A has at `meta`.
    fn cache(&mut self, kind: Kind, place: &str, meta: &str) -> Read<Stored> {
        let b = self.layout == Layout::B;
        let (mut tensors, mut numbers, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for path in kind.paths() {
            tensors.push(self.take(format!("{place}.{path}"), kind)?);
        }
        if kind == Kind::Arrays {
            let inside = if b { format!("{place}.0") } else { place.to_string() };
            for i in 0.. {
                let Ok(tensor) = self.take(format!("{inside}.{i}"), kind) else { break };
                tensors.push(tensor);
            }
            if b && (self.take(format!("{place}.1"), kind)?.is_some()
                || self.take(format!("{place}.2"), kind)?.is_some())
            {
                return Err("it has padding: it is a batch of prompts, not one".into());
            }
        }
        if kind == Kind::List {
            for j in 0.. {
                let name = match b {
                    true => self.tensors.swap_remove(&format!("{place}.{j}.1")).and_then(|a| letters(&a)),
                    false => self.metadata.get(&format!("{meta}.0.{j}")).cloned(),
                };
                let Some(name) = name else { break };
                let fail = |what: String| format!("part {j}, a {name}: {what}");
                let (place, meta) = match b {
                    true => (format!("{place}.{j}.0"), meta.to_string()),
                    false => (format!("{place}.{j}"), format!("{meta}.1.{j}")),
                };
                let kind = Reader::kind(&name).map_err(fail)?;
                if kind == Kind::List {
                    return Err(fail("lists in lists are not read".into()));
                }
                parts.push(self.cache(kind, &place, &meta).map_err(fail)?);
            }
            if parts.is_empty() {
                return Err("it holds nothing".into());
            }
        }
        for (i, (what, at)) in kind.numbers().iter().enumerate() {
            match (b, at) {
                (true, _) => {
                    let tensor = self.take(format!("{place}.{}", 2 + i), kind)?;
                    let n = tensor.filter(|t| t.size() == 1).and_then(|t| whole(&t));
                    numbers.push(n.ok_or_else(|| format!("{what} is no whole number"))?);
                }
                (false, Some(at)) => {
                    let text = self.metadata.get(&format!("{meta}.{at}"));
                    let n = text.and_then(|t| t.parse().ok());
                    numbers.push(n.ok_or_else(|| format!("{what} is {text:?}, no whole number"))?);
                }
                (false, None) => {}
            }
        }
        Ok(Stored { kind, tensors, numbers, parts })
    }
}

/// The caches of a file, and what it says of itself.
pub(super) fn read(tensors: Arrays, metadata: &Metadata) -> Read<(Vec<Stored>, Metadata)> {
    let layout = layout(metadata)?;
    let kinds = if layout == Layout::B { 1 } else { 2 };
    let mut absent = Vec::new();
    if layout == Layout::B {
        for k in 1.. {
            let Some(path) = metadata.get(&format!("2.{k}.0")) else { break };
            if metadata.get(&format!("2.{k}.1")).is_some_and(|what| what == "none") {
                absent.push(path.clone());
            }
        }
    }
    let (mut file, mut layers) = (Reader { layout, tensors, metadata, absent }, Vec::new());
    for l in 0.. {
        let Some(name) = metadata.get(&format!("{kinds}.{l}")) else { break };
        let kind = Reader::kind(name).map_err(|what| format!("layer {l} is {what}"))?;
        let cache = file.cache(kind, &l.to_string(), &format!("0.{l}"));
        layers.push(cache.map_err(|what| format!("layer {l}, a {name}: {what}"))?);
    }
    if let Some(path) = file.tensors.keys().next() {
        return Err(format!("tensor {path} belongs to no layer"));
    }
    Ok((layers, notes(metadata)?))
}

/// A text that stands as the numbers of its letters.
fn letters(a: &Array) -> Option<String> {
    let all = lapis::ops::astype(a, Dtype::Int64).ok()?.to_vec::<i64>().ok()?;
    all.into_iter().map(|n| u32::try_from(n).ok().and_then(char::from_u32)).collect()
}

fn whole(a: &Array) -> Option<i64> {
    if a.dtype().is_floating() {
        return None;
    }
    lapis::ops::astype(a, Dtype::Int64).ok()?.item::<i64>().ok()
}
