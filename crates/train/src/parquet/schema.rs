//! What columns of a Parquet file are in its rows.

use super::thrift::{Read, Thrift};

/// What a column holds.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Bool,
    Int32,
    Int64,
    Float,
    Double,
    Bytes,
    /// Of so many bytes.
    Fixed(usize),
}

/// A column.
pub(super) struct Leaf {
    /// Its names from the root, with dots.
    pub(super) path: String,
    pub(super) kind: Type,
    pub(super) unsigned: bool,
    /// The highest level at which it repeats.
    pub(super) repeats: u32,
    /// The level at which a value is there.
    pub(super) there: u32,
}

/// How often something is there.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Often {
    Once,
    /// Or not at all.
    Perhaps,
    /// Any number of times.
    Repeated,
}

pub(super) enum Kind {
    /// A column.
    Leaf,
    /// An object.
    Struct,
    /// What its only child, which repeats, holds.
    List,
    /// Keys and values of its only child.
    Map,
    /// Its only child, as element of a list.
    Element,
}

/// A part of a row.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) often: Often,
    pub(super) kind: Kind,
    /// The level of repetition where it is repeated.
    pub(super) repeats: u32,
    /// The level from which on it is there.
    pub(super) there: u32,
    pub(super) children: Vec<Node>,
    /// Its columns, by their numbers.
    pub(super) first: usize,
    pub(super) last: usize,
}

/// How deep parts may lie in each other.
const DEPTH: usize = 32;

/// The parts of a row, and all columns.
pub(super) fn read(elements: &[Thrift]) -> Read<(Node, Vec<Leaf>)> {
    let mut build = Build { elements: elements.iter(), leaves: Vec::new() };
    let mut root = build.node("", 0, 0, 0)?;
    if build.elements.next().is_some() || !matches!(root.kind, Kind::Struct) || root.often == Often::Repeated {
        return Err("its columns are no rows".into());
    }
    (root.often, root.there) = (Often::Once, 0);
    Ok((root, build.leaves))
}

struct Build<'a, 'b> {
    elements: std::slice::Iter<'a, Thrift<'b>>,
    leaves: Vec<Leaf>,
}

impl Build<'_, '_> {
    fn node(&mut self, above: &str, repeats: u32, there: u32, depth: usize) -> Read<Node> {
        let element = self.elements.next().ok_or("its columns are not all named")?;
        let name = element.text(4)?;
        let path = match depth {
            0 => String::new(),
            1 => name.clone(),
            DEPTH.. => return Err("columns lie too deep in each other".into()),
            _ => format!("{above}.{name}"),
        };
        // The root repeats nothing, whatever it says.
        let often = match element.int(3).filter(|_| depth > 0) {
            Some(1) => Often::Perhaps,
            Some(2) => Often::Repeated,
            _ => Often::Once,
        };
        let repeats = repeats + u32::from(often == Often::Repeated);
        let there = there + u32::from(often != Often::Once);
        let first = self.leaves.len();
        let n = element.int(5).unwrap_or(0);
        let (mut children, mut kind) = (Vec::new(), Kind::Leaf);
        if n > 0 || depth == 0 {
            for _ in 0..n {
                children.push(self.node(&path, repeats, there, depth + 1)?);
            }
            let says = |converted: &[i64], logical: i64| {
                element.int(6).is_some_and(|c| converted.contains(&c))
                    || element.get(10).is_some_and(|own| own.get(logical).is_some())
            };
            let inner = match &mut children[..] {
                [only] if only.often == Often::Repeated => Some(only),
                _ => None,
            };
            kind = match inner {
                Some(pairs) if says(&[1, 2], 2) && pairs.children.len() == 2 => Kind::Map,
                Some(element) if says(&[3], 3) => {
                    // Lists of old are those of the group itself.
                    let own = element.name == "array" || element.name == format!("{name}_tuple");
                    if element.children.len() == 1 && !own {
                        element.kind = Kind::Element;
                    }
                    Kind::List
                }
                _ => Kind::Struct,
            };
        } else {
            let own = match element.int(1) {
                Some(0) => Type::Bool,
                Some(1) => Type::Int32,
                Some(2) => Type::Int64,
                Some(3) => Type::Fixed(12),
                Some(4) => Type::Float,
                Some(5) => Type::Double,
                Some(6) => Type::Bytes,
                Some(7) => Type::Fixed(element.count(2)?),
                _ => return Err(format!("column {path} is of no known type")),
            };
            let logical = element.get(10).and_then(|own| own.get(10)).and_then(|int| int.on(2));
            let unsigned = element.int(6).is_some_and(|c| (11..=14).contains(&c)) || logical == Some(false);
            self.leaves.push(Leaf { path, kind: own, unsigned, repeats, there });
        }
        let last = self.leaves.len();
        if first == last {
            return Err("there are no columns".into());
        }
        Ok(Node { name, often, kind, repeats, there, children, first, last })
    }
}
