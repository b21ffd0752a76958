//! JSON schemas as the grammar compiler takes them soundly: what it would ignore, approximate or read otherwise than the
//! standard is refused by name and place; what says nothing about validity is left out.
//!
//! The result is a schema of draft 2020-12 whose references all point into its own `$defs`. Read are drafts 6 to
//! 2020-12; a schema that names none is one of 2020-12.

use std::collections::HashMap;

use lapis::Error;
use serde_json::{Map, Value, json};

use super::pattern;

mod references;

/// Bytes of a schema's text.
const MAX_BYTES: usize = 256 << 10;
/// Schemas inside schemas.
const MAX_DEPTH: usize = 64;
/// Schemas inside schemas where each reference goes on.
const MAX_CHAIN: usize = 256;
/// Schemas and values of a schema, with what its references bring.
const MAX_NODES: usize = 10_000;
/// Alternatives that hold together: the compiler looks at all combinations.
const MAX_COMBINATIONS: usize = 2_000;
/// The least count or length that may be asked for.
const MAX_LEAST: u64 = 10_000;
/// A count or length above this is no limit.
const NO_LIMIT: u64 = 1 << 24;

/// Formats that the compiler knows as regular expressions.
const FORMATS: [&str; 6] = ["duration", "email", "ipv4", "ipv6", "uuid", "uri"];
/// Formats of the standard that it does not know. Names that no standard has say nothing.
const UNKNOWN_FORMATS: [&str; 10] = [
    "hostname",
    "idn-email",
    "idn-hostname",
    "uri-reference",
    "iri",
    "iri-reference",
    "uri-template",
    "json-pointer",
    "relative-json-pointer",
    "regex",
];
/// Keywords that constrain and are not supported.
const REFUSED: [&str; 14] = [
    "not",
    "if",
    "contains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "extends",
    "disallow",
];

/// Why a schema is not taken.
pub(super) struct Fault {
    pub(super) error: Error,
    /// The schema and its keyword that are not supported, where that is the reason.
    pub(super) place: Option<(String, String)>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault { error, place: None }
    }
}

type Result<T> = std::result::Result<T, Fault>;

/// The schema that stands for another one.
pub(super) struct Supported {
    pub(super) schema: Value,
    /// Each schema in it with its place, the inner ones first; without `defs`.
    pub(super) parts: Vec<(String, Value)>,
    /// What references point to.
    pub(super) defs: Map<String, Value>,
}

/// A schema with what its references point to.
pub(super) fn with_defs(mut schema: Value, defs: &Map<String, Value>) -> Value {
    if let Value::Object(object) = &mut schema
        && !defs.is_empty()
    {
        object.insert("$defs".into(), Value::Object(defs.clone()));
    }
    schema
}

/// Translates a schema; lists its parts if `listed`.
///
/// # Errors
/// `Unsupported` with keyword and place; `Value` for what is no schema or too large.
pub(super) fn supported(schema: &Value, listed: bool) -> Result<Supported> {
    let bytes = schema.to_string().len();
    if bytes > MAX_BYTES {
        return Err(Error::value(format!("[schema] it has {bytes} bytes; {MAX_BYTES} are taken")).into());
    }
    let named = schema.get("$schema").and_then(Value::as_str);
    let tuples = match named.map(|s| s.trim_end_matches('#')) {
        None | Some("https://json-schema.org/draft/2020-12/schema") => false,
        Some(
            "https://json-schema.org/draft/2019-09/schema"
            | "http://json-schema.org/draft-07/schema"
            | "http://json-schema.org/draft-06/schema",
        ) => true,
        Some(other) => return Err(refuse("$schema", "", &format!("of {other:?}"))),
    };
    let overrides = tuples && !named.is_some_and(|s| s.contains("2019"));
    let mut reader = Reader {
        root: schema,
        named,
        tuples,
        overrides,
        listed,
        nodes: 0,
        multiples: Vec::new(),
        targets: HashMap::new(),
        defs: Map::new(),
        parts: Vec::new(),
    };
    let out = reader.schema(schema, Place { path: "", depth: 0, chain: 0, inside: &[] })?;
    Ok(Supported { schema: with_defs(out, &reader.defs), parts: reader.parts, defs: reader.defs })
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// As a JSON pointer.
    path: &'a str,
    /// Schemas around it in the document.
    depth: usize,
    /// Schemas around it, references followed.
    chain: usize,
    /// References that led here without a step into the value.
    inside: &'a [String],
}

impl<'a> Place<'a> {
    /// A schema for the same value.
    fn beside<'b>(&self, path: &'b str) -> Place<'b>
    where
        'a: 'b,
    {
        Place { path, depth: self.depth + 1, chain: self.chain + 1, inside: self.inside }
    }

    /// A schema for a part of the value.
    fn within<'b>(&self, path: &'b str) -> Place<'b>
    where
        'a: 'b,
    {
        Place { inside: &[], ..self.beside(path) }
    }
}

struct Reader<'a> {
    root: &'a Value,
    named: Option<&'a str>,
    /// `items` may be a list (before 2020-12).
    tuples: bool,
    /// `$ref` overrides what stands beside it (before 2019-09).
    overrides: bool,
    listed: bool,
    nodes: usize,
    /// All that numbers are multiples of.
    multiples: Vec<String>,
    /// Names in `$defs` of the targets of references.
    targets: HashMap<String, String>,
    defs: Map<String, Value>,
    parts: Vec<(String, Value)>,
}

impl<'a> Reader<'a> {
    fn count(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::value(format!("[schema] it has more than {MAX_NODES} schemas and values")).into());
        }
        Ok(())
    }

    fn schema(&mut self, schema: &Value, at: Place<'_>) -> Result<Value> {
        self.count()?;
        if at.depth > MAX_DEPTH || at.chain > MAX_CHAIN {
            let (deepest, how) =
                if at.depth > MAX_DEPTH { (MAX_DEPTH, "") } else { (MAX_CHAIN, ", references followed") };
            return Err(Error::value(format!(
                "[schema] it is more than {deepest} schemas deep{how}: {}",
                shown(at.path)
            ))
            .into());
        }
        let object = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(object) => object,
            _ => return Err(malformed("a schema", at.path, "is an object, true or false")),
        };
        self.identity(object, at)?;
        let mut out = Map::new();
        if !(self.overrides && object.contains_key("$ref")) {
            self.assertions(object, at, &mut out)?;
        }
        self.applicators(object, at, &mut out)?;
        let out = Value::Object(out);
        if self.listed {
            self.parts.push((at.path.to_string(), out.clone()));
        }
        Ok(out)
    }

    /// What changes the meaning of references.
    fn identity(&self, object: &Map<String, Value>, at: Place<'_>) -> Result<()> {
        let root = std::ptr::eq(object, self.root.as_object().unwrap_or(object));
        let id = object.get("$id").and_then(Value::as_str).filter(|id| !id.starts_with('#'));
        let overridden = self.overrides && object.contains_key("$ref");
        if id.is_some() && !root && !overridden {
            return Err(refuse("$id", at.path, "inside a schema"));
        }
        match object.get("$schema").and_then(Value::as_str) {
            Some(other) if !root && Some(other) != self.named => {
                Err(refuse("$schema", at.path, &format!("of {other:?}")))
            }
            _ => Ok(()),
        }
    }

    /// Keywords about the value itself and its parts.
    fn assertions(&mut self, object: &Map<String, Value>, at: Place<'_>, out: &mut Map<String, Value>) -> Result<()> {
        for (key, value) in object {
            let path = below(at.path, key);
            match key.as_str() {
                "type" => types(value, &path)?,
                "minLength" | "minItems" | "minProperties" => {
                    let n = size(key, value, &path)?;
                    if n > MAX_LEAST {
                        return Err(refuse(key, at.path, &format!("above {MAX_LEAST}")));
                    }
                    out.insert(key.clone(), json!(n));
                    continue;
                }
                "maxLength" | "maxItems" | "maxProperties" => {
                    let n = size(key, value, &path)?;
                    if n <= NO_LIMIT {
                        out.insert(key.clone(), json!(n));
                    }
                    continue;
                }
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => number(value, &path)?,
                "multipleOf" => {
                    number(value, &path)?;
                    if value.as_f64().is_none_or(|x| x <= 0.0) {
                        return Err(malformed("multipleOf", &path, "is a number above 0"));
                    }
                    self.multiple(value, at.path)?;
                }
                "pattern" => {
                    let text = value.as_str().ok_or_else(|| malformed(key, &path, "is a string"))?;
                    out.insert(key.clone(), self.pattern(text, key, at.path)?.into());
                    continue;
                }
                "format" => match value.as_str() {
                    None => return Err(malformed(key, &path, "is a string")),
                    Some(name) if FORMATS.contains(&name) => {}
                    Some(name) if pattern::moment(name).is_some() => {
                        out.insert("allOf".into(), json!([{"pattern": pattern::moment(name)}]));
                        continue;
                    }
                    Some(name) if UNKNOWN_FORMATS.contains(&name) => {
                        return Err(refuse(key, at.path, &format!("{name:?}")));
                    }
                    Some(_) => continue,
                },
                "required" => {
                    let names = value.as_array().filter(|all| all.iter().all(Value::is_string));
                    names.ok_or_else(|| malformed(key, &path, "is a list of strings"))?;
                }
                "properties" | "patternProperties" => {
                    let schemas = self.schemas(key, value, &path, at)?;
                    out.insert(key.clone(), schemas);
                    continue;
                }
                "additionalProperties" => {
                    out.insert(key.clone(), self.schema(value, at.within(&path))?);
                    continue;
                }
                "prefixItems" if self.tuples => continue,
                "items" if value.is_array() && !self.tuples => {
                    return Err(refuse(key, at.path, "with a list; `prefixItems` is its name since 2020-12"));
                }
                "items" if value.is_array() => {
                    out.insert("prefixItems".into(), self.list(key, value, &path, at, true)?);
                    continue;
                }
                "prefixItems" => {
                    out.insert(key.clone(), self.list(key, value, &path, at, true)?);
                    continue;
                }
                "items" => {
                    out.insert(key.clone(), self.schema(value, at.within(&path))?);
                    continue;
                }
                "additionalItems" => {
                    if self.tuples && object.get("items").is_some_and(Value::is_array) {
                        out.insert("items".into(), self.schema(value, at.within(&path))?);
                    }
                    continue;
                }
                name if REFUSED.contains(&name) && !self.is_empty(name, value, object) => {
                    return Err(refuse(key, at.path, ""));
                }
                // Titles, descriptions and whatever the standard does not know say nothing about validity.
                _ => continue,
            }
            out.insert(key.clone(), value.clone());
        }
        self.few_names(object, at)
    }

    /// Numbers that are multiples of several: the compiler has 32 bits for their least common multiple.
    fn multiple(&mut self, value: &Value, path: &str) -> Result<()> {
        let text = value.to_string();
        if !self.multiples.contains(&text) {
            self.multiples.push(text);
        }
        let places = |text: &str| match text.split_once(['e', 'E']) {
            Some((digits, exponent)) => {
                let point = digits.split_once('.').map_or(0, |p| p.1.len() as i32);
                point - exponent.parse::<i32>().unwrap_or(0)
            }
            None => text.split_once('.').map_or(0, |p| p.1.trim_end_matches('0').len() as i32),
        };
        let most = self.multiples.iter().map(|t| places(t)).max().unwrap_or(0).max(0);
        let scaled = self.multiples.iter().map(|t| t.parse::<f64>().unwrap_or(f64::MAX) * 10f64.powi(most));
        if scaled.product::<f64>() > f64::from(u32::MAX) {
            return Err(refuse("multipleOf", path, &format!("of {value}, with so many digits in all")));
        }
        Ok(())
    }

    /// Whether a keyword that is not supported says nothing here.
    fn is_empty(&self, name: &str, value: &Value, object: &Map<String, Value>) -> bool {
        match name {
            "uniqueItems" => value == &Value::Bool(false),
            "not" => value == &Value::Bool(false),
            "if" => !object.contains_key("then") && !object.contains_key("else"),
            "dependencies" | "dependentRequired" | "dependentSchemas" => value.as_object().is_some_and(Map::is_empty),
            "propertyNames" | "unevaluatedItems" | "unevaluatedProperties" => value == &Value::Bool(true),
            "extends" | "disallow" => true,
            _ => false,
        }
    }

    /// The compiler lets names come twice, and counts them twice.
    fn few_names(&self, object: &Map<String, Value>, at: Place<'_>) -> Result<()> {
        let least = object.get("minProperties").and_then(Value::as_f64).unwrap_or(0.0);
        let required = object
            .get("required")
            .and_then(Value::as_array)
            .map_or(0, |names| names.iter().collect::<std::collections::HashSet<_>>().len());
        if least >= required as f64 + 2.0 {
            return Err(refuse("minProperties", at.path, "2 or more above the number of `required` ones"));
        }
        Ok(())
    }

    fn pattern(&self, text: &str, key: &str, path: &str) -> Result<String> {
        pattern::translate(text).map_err(|why| refuse(key, path, &format!("{text:?}: {why}")))
    }

    /// A schema for each name or pattern.
    fn schemas(&mut self, key: &str, value: &Value, path: &str, at: Place<'_>) -> Result<Value> {
        let object = value.as_object().ok_or_else(|| malformed(key, path, "is an object of schemas"))?;
        let mut out = Map::new();
        for (name, schema) in object {
            let inner = self.schema(schema, at.within(&below(path, name)))?;
            let name = if key == "properties" { name.clone() } else { self.pattern(name, key, at.path)? };
            if out.insert(name, inner).is_some() {
                return Err(refuse(key, at.path, "with a pattern twice"));
            }
        }
        Ok(Value::Object(out))
    }

    fn list(&mut self, key: &str, value: &Value, path: &str, at: Place<'_>, inner: bool) -> Result<Value> {
        let all = value.as_array().ok_or_else(|| malformed(key, path, "is a list of schemas"))?;
        let schemas = all.iter().enumerate().map(|(i, schema)| {
            let path = below(path, &i.to_string());
            self.schema(schema, if inner { at.within(&path) } else { at.beside(&path) })
        });
        Ok(Value::Array(schemas.collect::<Result<_>>()?))
    }

    /// Keywords that bring more schemas for the same value.
    fn applicators(&mut self, object: &Map<String, Value>, at: Place<'_>, out: &mut Map<String, Value>) -> Result<()> {
        let mut combinations = object.get("type").and_then(Value::as_array).map_or(1, Vec::len);
        if let Some(reference) = object.get("$ref") {
            let path = below(at.path, "$ref");
            let text = reference.as_str().ok_or_else(|| malformed("$ref", &path, "is a string"))?;
            out.insert("$ref".into(), self.reference(text, at)?.into());
            if self.overrides {
                return Ok(());
            }
        }
        for (key, value) in object {
            let path = below(at.path, key);
            match key.as_str() {
                "const" => self.value(value, &path)?,
                "enum" => {
                    let all = value.as_array().ok_or_else(|| malformed(key, &path, "is a list"))?;
                    all.iter().try_for_each(|v| self.value(v, &path))?;
                    combinations = combinations.saturating_mul(all.len().max(1));
                }
                "allOf" | "anyOf" | "oneOf" => {
                    let all = self.list(key, value, &path, at, false)?;
                    let len = all.as_array().map_or(0, Vec::len);
                    if len == 0 {
                        return Err(malformed(key, &path, "is a list of one schema at least"));
                    }
                    let each = all.as_array().into_iter().flatten().map(|s| alternatives(s, 4));
                    combinations = combinations.saturating_mul(match key.as_str() {
                        "allOf" => each.fold(1, usize::saturating_mul),
                        _ => each.fold(0, usize::saturating_add),
                    });
                    match (out.get_mut(key), all) {
                        (Some(Value::Array(own)), Value::Array(all)) => own.extend(all),
                        (_, all) => _ = out.insert(key.clone(), all),
                    }
                    continue;
                }
                _ => continue,
            }
            out.insert(key.clone(), value.clone());
        }
        // A long list alone is no product.
        let kinds = ["type", "enum", "allOf", "anyOf", "oneOf"].iter().filter(|k| out.contains_key(**k)).count();
        if combinations > MAX_COMBINATIONS && (kinds > 1 || out.contains_key("allOf")) {
            return Err(Error::value(format!(
                "[schema] {} combines more than {MAX_COMBINATIONS} alternatives",
                shown(at.path)
            ))
            .into());
        }
        Ok(())
    }

    /// A value that stands in the schema. Its text must be one that the compiler writes and reads exactly.
    fn value(&mut self, value: &Value, path: &str) -> Result<()> {
        self.count()?;
        match value {
            Value::Number(_) => number(value, path),
            Value::String(text) => plain(text, path),
            Value::Array(all) => all.iter().try_for_each(|v| self.value(v, path)),
            Value::Object(object) => object.iter().try_for_each(|(name, v)| {
                plain(name, path)?;
                self.value(v, path)
            }),
            Value::Null | Value::Bool(_) => Ok(()),
        }
    }
}

/// How many alternatives a translated schema has, about.
fn alternatives(schema: &Value, depth: usize) -> usize {
    let Some(object) = schema.as_object().filter(|_| depth > 0) else { return 1 };
    let sum = |key: &str| {
        let all = object.get(key).and_then(Value::as_array);
        all.map_or(1, |all| all.iter().map(|s| alternatives(s, depth - 1)).fold(0, usize::saturating_add).max(1))
    };
    let all = object.get("allOf").and_then(Value::as_array).into_iter().flatten();
    let product = all.map(|s| alternatives(s, depth - 1)).fold(1, usize::saturating_mul);
    ["type", "enum", "anyOf", "oneOf"].iter().map(|k| sum(k)).fold(product, usize::saturating_mul)
}

fn types(value: &Value, path: &str) -> Result<()> {
    let known = ["null", "boolean", "number", "integer", "string", "array", "object"];
    let is = |v: &Value| v.as_str().is_some_and(|name| known.contains(&name));
    let good = match value {
        Value::Array(all) => !all.is_empty() && all.iter().all(is),
        one => is(one),
    };
    if good { Ok(()) } else { Err(malformed("type", path, "is one or several of the seven types' names")) }
}

fn size(key: &str, value: &Value, path: &str) -> Result<u64> {
    let whole = value.as_f64().filter(|x| *x >= 0.0 && x.fract() == 0.0);
    whole.map(|x| x as u64).ok_or_else(|| malformed(key, path, "is a whole number, 0 or more"))
}

/// Numbers go through doubles.
fn number(value: &Value, path: &str) -> Result<()> {
    let key = path.rsplit('/').next().unwrap_or(path);
    let x = value.as_f64().ok_or_else(|| malformed(key, path, "is a number"))?;
    if x.abs() >= (1u64 << 53) as f64 || x != 0.0 && x.abs() < 1e-12 {
        let parent = path.rsplit_once('/').map_or("", |p| p.0);
        return Err(refuse(key, parent, &format!("of {value}; a number between 1e-12 and 2^53")));
    }
    Ok(())
}

/// Characters that the grammar does not write.
fn plain(text: &str, path: &str) -> Result<()> {
    let odd = |c: &char| c.is_ascii_control() && !matches!(c, '\u{8}' | '\t' | '\n' | '\u{c}' | '\r');
    match text.chars().find(odd) {
        None => Ok(()),
        Some(c) => {
            let (parent, key) = path.rsplit_once('/').unwrap_or(("", path));
            Err(refuse(key, parent, &format!("with the character {c:?}")))
        }
    }
}

fn below(path: &str, key: &str) -> String {
    format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// A place for people.
pub(super) fn shown(path: &str) -> String {
    let mut end = path.len().min(200);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    format!("#{}", &path[..end])
}

fn refuse(key: &str, path: &str, what: &str) -> Fault {
    let space = if what.is_empty() { "" } else { " " };
    let error = Error::unsupported(format!("[schema] `{key}`{space}{what} at {} is not supported", shown(path)));
    Fault { error, place: Some((path.to_owned(), key.to_owned())) }
}

fn malformed(key: &str, path: &str, what: &str) -> Fault {
    Error::value(format!("[schema] {key} {what} (at {})", shown(path))).into()
}
