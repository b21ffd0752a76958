//! Python's values inside templates: lists, tuples, dicts and generators, how they print and how they become JSON.
//!
//! The template engine has sequences and maps of its own; these keep what chat templates can tell apart: `x.items` is a
//! method of a dict though it has a key `items`, a generator is no sequence and no JSON, a tuple prints in parentheses.
//! Lists and dicts know how deeply they nest, so that neither printing nor dropping one can overflow the stack.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectExt, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::methods;

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Values may nest this deeply.
const MAX_DEPTH: usize = 128;

/// An error with a text for users.
pub(super) fn fault(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, text.into())
}

/// A list or a tuple.
#[derive(Debug)]
pub(super) struct List {
    items: Vec<Value>,
    tuple: bool,
    shape: Shape,
}

/// A dict with keys in the order of insertion.
#[derive(Debug)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    texts: HashMap<Arc<str>, usize>,
    shape: Shape,
}

/// What `map`, `select` and their like give.
#[derive(Debug)]
pub(super) struct Generator(Vec<Value>);

/// `x.items` without the call.
#[derive(Debug)]
struct Method(Value, &'static str);

/// A list of `items`.
pub(super) fn list(items: Vec<Value>) -> Result<Value> {
    sequence(items, false)
}

/// A list or a tuple of `items`.
pub(super) fn sequence(items: Vec<Value>, tuple: bool) -> Result<Value> {
    let shape = nesting(items.iter())?;
    Ok(Value::from_object(List { items, tuple, shape }))
}

/// A dict of `entries`; the last of equal keys wins, at the place of the first.
pub(super) fn dict(entries: impl IntoIterator<Item = (Value, Value)>) -> Result<Value> {
    let mut out = Dict { entries: Vec::new(), texts: HashMap::new(), shape: Shape::default() };
    for (key, value) in entries {
        match out.position(&key) {
            Some(at) => out.entries[at].1 = value,
            None => {
                if let Some(text) = key.as_str() {
                    out.texts.insert(text.into(), out.entries.len());
                }
                out.entries.push((key, value));
            }
        }
    }
    out.shape = nesting(out.entries.iter().map(|e| &e.1))?;
    Ok(Value::from_object(out))
}

/// A generator over `items`.
pub(super) fn generator(items: Vec<Value>) -> Value {
    Value::from_object(Generator(items))
}

/// Refuses what could make a value contain itself: a namespace, or what holds one, in a namespace.
pub(super) fn storable(value: &Value) -> Result<()> {
    if shape(value).namespaces { Err(fault("a namespace cannot be put into another namespace")) } else { Ok(()) }
}

/// How deeply a value nests, and whether there are namespaces in it.
#[derive(Clone, Copy, Default, Debug)]
struct Shape {
    depth: usize,
    namespaces: bool,
}

/// The shape of a container of `items`.
fn around(items: impl Iterator<Item = Shape>) -> Shape {
    let all = items
        .fold(Shape::default(), |a, b| Shape { depth: a.depth.max(b.depth), namespaces: a.namespaces || b.namespaces });
    Shape { depth: all.depth + 1, ..all }
}

/// The shape of a container of `items`, within the limit.
fn nesting<'a>(items: impl Iterator<Item = &'a Value>) -> Result<Shape> {
    let shape = around(items.map(shape));
    if shape.depth > MAX_DEPTH {
        return Err(fault(format!("values nest more than {MAX_DEPTH} deep")));
    }
    Ok(shape)
}

fn shape(value: &Value) -> Shape {
    if let Some(list) = value.downcast_object_ref::<List>() {
        list.shape
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        dict.shape
    } else if let Some(items) = value.downcast_object_ref::<Generator>() {
        around(items.0.iter().map(shape))
    } else {
        match value.kind() {
            ValueKind::Seq => value.try_iter().map_or(Shape::default(), |items| around(items.map(|v| shape(&v)))),
            kind => Shape { depth: 0, namespaces: kind == ValueKind::Map },
        }
    }
}

/// The value of JSON data.
pub(super) fn from_json(json: &serde_json::Value) -> Result<Value> {
    convert(json, MAX_DEPTH)
}

fn convert(json: &serde_json::Value, depth: usize) -> Result<Value> {
    use serde_json::Value as Json;
    let depth = depth.checked_sub(1).ok_or_else(|| fault(format!("values nest more than {MAX_DEPTH} deep")))?;
    match json {
        Json::Null => Ok(Value::from(())),
        Json::Bool(x) => Ok(Value::from(*x)),
        Json::Number(x) => Ok(match (x.as_i64(), x.as_u64()) {
            (Some(x), _) => Value::from(x),
            (_, Some(x)) => Value::from(x),
            _ => Value::from(x.as_f64().unwrap_or(f64::NAN)),
        }),
        Json::String(x) => Ok(Value::from(x.as_str())),
        Json::Array(x) => list(x.iter().map(|x| convert(x, depth)).collect::<Result<_>>()?),
        Json::Object(x) => {
            let entries: Result<Vec<_>> =
                x.iter().map(|(k, v)| Ok((Value::from(k.as_str()), convert(v, depth)?))).collect();
            dict(entries?)
        }
    }
}

impl Object for List {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.items.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(Arc::clone(self))))
    }
}

impl Dict {
    fn position(&self, key: &Value) -> Option<usize> {
        match key.as_str() {
            Some(text) => self.texts.get(text).copied(),
            None => self.entries.iter().position(|e| e.0 == *key),
        }
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn get(&self, key: &Value) -> Option<Value> {
        self.position(key).map(|at| self.entries[at].1.clone())
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key)
    }

    /// `x.name`, where methods hide keys.
    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<Value> {
        match methods::DICT.iter().find(|method| **method == name) {
            Some(method) => Some(Value::from_object(Method(Value::from_dyn_object(Arc::clone(self)), method))),
            None if methods::DICT_CHANGES.contains(&name) => None,
            None => self.texts.get(name).map(|at| self.entries[*at].1.clone()),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.entries.iter().map(|e| e.0.clone())))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.entries.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&repr(&Value::from_dyn_object(Arc::clone(self))))
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.0.iter().cloned()))
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<generator object>")
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &State<'_, '_>, args: &[Value]) -> Result<Value> {
        self.0.call_method(state, self.1, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of dict object>", self.1)
    }
}

/// The items of a list, a tuple or a slice of one; none for generators, dicts and texts.
pub(super) fn items(value: &Value) -> Option<Vec<Value>> {
    let listed = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !is_generator(value);
    if listed { Some(value.try_iter().ok()?.collect()) } else { None }
}

pub(super) fn is_generator(value: &Value) -> bool {
    value.downcast_object_ref::<Generator>().is_some()
}

pub(super) fn is_tuple(value: &Value) -> bool {
    match value.downcast_object_ref::<List>() {
        Some(list) => list.tuple,
        None => value.kind() == ValueKind::Seq,
    }
}

/// A number that is not an integer.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    let float = value.kind() == ValueKind::Number && !value.is_integer();
    if float { f64::try_from(value.clone()).ok() } else { None }
}

/// Python's `str`.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => repr(value),
    }
}

/// Python's `repr`.
pub(super) fn repr(value: &Value) -> String {
    let mut out = String::new();
    write_repr(value, &mut out);
    out
}

fn write_repr(value: &Value, out: &mut String) {
    if let Some(text) = value.as_str() {
        write_quoted(text, out);
    } else if let Some(x) = as_float(value) {
        out.push_str(&float(x));
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        let pair = |(key, value): &(Value, Value), out: &mut String| {
            write_repr(key, out);
            out.push_str(": ");
            write_repr(value, out);
        };
        write_joined("{", "}", dict.entries(), out, pair);
    } else if value.is_undefined() {
        out.push_str("Undefined");
    } else if let Some(items) = items(value) {
        let end = match (is_tuple(value), items.len()) {
            (true, 1) => ",)",
            (true, _) => ")",
            (false, _) => "]",
        };
        write_joined(if is_tuple(value) { "(" } else { "[" }, end, &items, out, write_repr);
    } else if value.kind() == ValueKind::Map {
        out.push_str("<Namespace>");
    } else {
        let _ = write!(out, "{value}");
    }
}

fn write_joined<T>(begin: &str, end: &str, items: &[T], out: &mut String, mut item: impl FnMut(&T, &mut String)) {
    out.push_str(begin);
    for (i, x) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        item(x, out);
    }
    out.push_str(end);
}

/// A text as Python's source would have it: in single quotes unless it has some and no double ones.
fn write_quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || ('\u{7f}'..'\u{a1}').contains(&c) || c == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// A float as Python prints it: the shortest digits that read back the same, with an exponent from 1e16 and below 1e-4.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let size = x.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let text = x.to_string();
    if text.contains('.') { text } else { text + ".0" }
}
