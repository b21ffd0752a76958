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
    Arrays,
}

const KINDS: [(&str, Kind); 6] = [
    ("KVCache", Kind::Plain),
    ("ConcatenateKVCache", Kind::Concatenate),
    ("RotatingKVCache", Kind::Rotating),
    ("QuantizedKVCache", Kind::Quantized),
    ("ArraysCache", Kind::Arrays),
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

    /// Its numbers: as layout B orders them after the tensors, and where layout A has each.
    fn numbers(self) -> &'static [(&'static str, usize)] {
        match self {
            Kind::Plain | Kind::Concatenate | Kind::Arrays => &[],
            Kind::Rotating => &[("offset", 2), ("keep", 0), ("max_size", 1), ("index", 3)],
            Kind::Quantized => &[("offset", 0), ("group_size", 1), ("bits", 2)],
        }
    }

    /// Paths of its tensors; those of arrays depend on their number.
    fn paths(self) -> &'static [&'static str] {
        match self {
            Kind::Plain | Kind::Concatenate | Kind::Rotating => &["0", "1"],
            Kind::Quantized => &["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"],
            Kind::Arrays => &[],
        }
    }
}

/// One cache: its tensors, none where one is not there, and its numbers in the order of layout B. A plain cache has its
/// offset as its number; without one all rows count.
pub(super) struct Stored {
    pub(super) kind: Kind,
    pub(super) tensors: Vec<Option<Array>>,
    pub(super) numbers: Vec<i64>,
}

type Read<T> = std::result::Result<T, String>;

/// Tensors and metadata of a file.
pub(super) fn write(layers: &[Stored], notes: &Metadata, layout: Layout) -> Result<(Arrays, Metadata)> {
    let (mut tensors, mut metadata) = (Arrays::new(), Metadata::new());
    let (user, kinds) = if layout == Layout::B { (0, 1) } else { (1, 2) };
    let mut scalars = Vec::new();
    for (l, layer) in layers.iter().enumerate() {
        metadata.insert(format!("{kinds}.{l}"), layer.kind.name().into());
        for (i, tensor) in layer.tensors.iter().enumerate() {
            let path = match (layer.kind, layout) {
                (Kind::Arrays, Layout::B) => format!("{l}.0.{i}"),
                (Kind::Arrays, Layout::A) => format!("{l}.{i}"),
                (kind, _) => format!("{l}.{}", kind.paths()[i]),
            };
            let none = || Array::from_vec(Vec::<f32>::new(), &[0]);
            if tensor.is_none() && layout == Layout::B {
                scalars.push((path.clone(), "none"));
            }
            tensors.insert(path, tensor.clone().unwrap_or_else(none));
        }
        match layout {
            Layout::B => {
                for (i, &n) in layer.numbers.iter().enumerate() {
                    let path = format!("{l}.{}", 2 + i);
                    scalars.push((path.clone(), "scalar"));
                    tensors.insert(path, Array::from_vec(vec![n as i32], &[]));
                }
                if layer.kind == Kind::Arrays {
                    // No padding, no lengths.
                    for path in [format!("{l}.1"), format!("{l}.2")] {
                        scalars.push((path.clone(), "none"));
                        tensors.insert(path, Array::from_vec(Vec::<f32>::new(), &[0]));
                    }
                }
            }
            Layout::A => {
                let places = layer.kind.numbers();
                if places.is_empty() {
                    metadata.insert(format!("0.{l}"), String::new());
                }
                for (n, (_, place)) in layer.numbers.iter().zip(places) {
                    metadata.insert(format!("0.{l}.{place}"), n.to_string());
                }
            }
        }
    }
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

/// The caches of a file, and what it says of itself.
pub(super) fn read(mut tensors: Arrays, metadata: &Metadata) -> Read<(Vec<Stored>, Metadata)> {
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
    let mut layers = Vec::new();
    for l in 0.. {
        let Some(name) = metadata.get(&format!("{kinds}.{l}")) else { break };
        let known = KINDS.map(|k| k.0).join(", ");
        let kind = Kind::from_name(name).ok_or_else(|| format!("layer {l} is a {name}; known are {known}"))?;
        let fail = |what: String| format!("layer {l}, a {name}: {what}");
        let mut take = |path: String| -> Read<Option<Array>> {
            // The order of what is left does not matter.
            let tensor = tensors.swap_remove(&path).ok_or_else(|| fail(format!("tensor {path} is missing")))?;
            let none = absent.contains(&path) || layout == Layout::A && kind == Kind::Arrays && tensor.size() == 0;
            Ok((!none).then_some(tensor))
        };
        let mut found = Vec::new();
        for path in kind.paths() {
            found.push(take(format!("{l}.{path}"))?);
        }
        let mut numbers = Vec::new();
        match (kind, layout) {
            (Kind::Arrays, _) => {
                let place = if layout == Layout::B { format!("{l}.0") } else { l.to_string() };
                for i in 0.. {
                    let Ok(tensor) = take(format!("{place}.{i}")) else { break };
                    found.push(tensor);
                }
                if layout == Layout::B && (take(format!("{l}.1"))?.is_some() || take(format!("{l}.2"))?.is_some()) {
                    return Err(fail("it has padding: it is a batch of prompts, not one".into()));
                }
            }
            (Kind::Plain, Layout::A) => {}
            (_, Layout::A) => {
                for (what, place) in kind.numbers() {
                    let text = metadata.get(&format!("0.{l}.{place}"));
                    let n = text.and_then(|t| t.parse().ok());
                    numbers.push(n.ok_or_else(|| fail(format!("{what} is {text:?}, no whole number")))?);
                }
            }
            (_, Layout::B) => {
                let names = if kind == Kind::Plain { &[("offset", 0)] } else { kind.numbers() };
                for (i, (what, _)) in names.iter().enumerate() {
                    let tensor = take(format!("{l}.{}", 2 + i))?;
                    let n = tensor.filter(|t| t.size() == 1).and_then(|t| whole(&t));
                    numbers.push(n.ok_or_else(|| fail(format!("{what} is no whole number")))?);
                }
            }
        }
        layers.push(Stored { kind, tensors: found, numbers });
    }
    if let Some(path) = tensors.keys().next() {
        return Err(format!("tensor {path} belongs to no layer"));
    }
    Ok((layers, notes(metadata)?))
}

fn whole(a: &Array) -> Option<i64> {
    if a.dtype().is_floating() {
        return None;
    }
    lapis::ops::astype(a, Dtype::Int64).ok()?.item::<i64>().ok()
}
