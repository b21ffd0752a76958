//! Values that a model writes as plain text, as JSON: by the type that the tool's schema names, in each format's way.

use serde_json::Value;

use super::json;
use super::literal::literal;

/// A way from text to JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Values {
    /// All types that a schema names are tried, the narrowest first.
    Schema,
    /// The one type that a schema names.
    Type,
    /// JSON or a Python literal, unless the schema says `string`.
    Literal,
    /// JSON, else text.
    Json,
    /// Text.
    Text,
}

impl Values {
    /// The JSON of a text, whose parameter has this schema.
    pub(super) fn json(self, text: &str, schema: Option<&Value>) -> String {
        match self {
            Values::Schema => by_types(text, &types(schema)),
            Values::Type => by_type(text, schema),
            Values::Literal if is_string(schema) => json::quote(text),
            Values::Literal => guess(text),
            Values::Json => json::value(text).unwrap_or_else(|| json::quote(text)),
            Values::Text => json::quote(text),
        }
    }
}

/// Whether a schema says `string` and nothing else.
pub(super) fn is_string(schema: Option<&Value>) -> bool {
    schema.and_then(|s| s.get("type")).is_some_and(|t| t == "string")
}

/// JSON, a literal, or else the text itself.
pub(super) fn guess(text: &str) -> String {
    json::value(text).or_else(|| literal(text)).unwrap_or_else(|| json::quote(text))
}

/// The names of all types that a schema allows; `string` where it names none.
pub(super) fn types(schema: Option<&Value>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(schema) = schema {
        collect(schema, 8, &mut all);
    }
    if all.is_empty() {
        all.push("string".into());
    }
    all
}

fn collect(schema: &Value, depth: usize, all: &mut Vec<String>) {
    let before = all.len();
    match schema.get("type") {
        Some(Value::String(name)) => all.push(name.to_lowercase()),
        Some(Value::Array(names)) => all.extend(names.iter().filter_map(Value::as_str).map(str::to_lowercase)),
        _ => {}
    }
    let list = |name: &str| schema.get(name).and_then(Value::as_array).into_iter().flatten();
    all.extend(list("enum").map(|value| {
        String::from(match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        })
    }));
    for name in ["anyOf", "oneOf", "allOf"] {
        list(name).filter(|_| depth > 0).for_each(|schema| collect(schema, depth - 1, all));
    }
    if all.len() == before {
        all.push("string".into());
    }
}

fn by_types(text: &str, types: &[String]) -> String {
    let has = |names: &[&str]| types.iter().any(|t| names.contains(&t.as_str()));
    let lower = text.to_lowercase();
    if lower == "null" || has(&["null"]) && ["none", "nil"].contains(&lower.as_str()) {
        return "null".into();
    }
    let integer = || has(&["integer", "int"]).then(|| integer(text))?;
    let number = || has(&["number", "float"]).then(|| number(text))?;
    let boolean = || match lower.trim() {
        _ if !has(&["boolean", "bool"]) => None,
        "true" | "1" | "yes" | "on" => Some("true".into()),
        "false" | "0" | "no" | "off" => Some("false".into()),
        _ => None,
    };
    let nested = || has(&["object", "array"]).then(|| json::value(text).or_else(|| literal(text)))?;
    let string = || has(&["string", "str", "text"]).then(|| json::quote(text));
    let found = integer().or_else(number).or_else(boolean).or_else(nested).or_else(string);
    found.or_else(|| json::value(text)).unwrap_or_else(|| json::quote(text))
}

fn by_type(text: &str, schema: Option<&Value>) -> String {
    let Some(schema) = schema.filter(|s| s.as_object().is_some_and(|s| !s.is_empty())) else {
        return if text.to_lowercase() == "null" { "null".into() } else { json::quote(text) };
    };
    let begins = |name: &str, with: &[&str]| with.iter().any(|w| name.starts_with(w));
    let name = match schema.get("type") {
        _ if text.to_lowercase() == "null" => return "null".into(),
        Some(Value::String(name)) => name.trim().to_lowercase(),
        // Several types: the narrowest that fits.
        Some(_) => return by_types(text, &types(Some(schema))),
        None => {
            let nested = json::value(text).filter(|json| json.starts_with(['{', '[']));
            return nested.unwrap_or_else(|| json::quote(text));
        }
    };
    let found = match name.as_str() {
        "string" | "str" | "text" | "varchar" | "char" | "enum" => None,
        "boolean" | "bool" | "binary" => Some((text.to_lowercase() == "true").to_string()),
        n if begins(n, &["int", "uint", "long", "short", "unsigned"]) => {
            integer(text).or_else(|| number(text).filter(|n| !n.contains(['.', 'e'])))
        }
        n if begins(n, &["num", "float"]) => number(text),
        n if ["object", "array", "arr"].contains(&n) || begins(n, &["dict", "list"]) => {
            json::value(text).or_else(|| literal(text))
        }
        _ => literal(text),
    };
    found.unwrap_or_else(|| json::quote(text))
}

/// A whole number as Python reads one: blanks around it, a sign, underscores between digits.
fn integer(text: &str) -> Option<String> {
    let text = text.trim();
    let (minus, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let good = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits.split('_').all(good) {
        return None;
    }
    let digits = digits.replace('_', "");
    let digits = digits.trim_start_matches('0');
    Some(if digits.is_empty() { "0".into() } else { format!("{minus}{digits}") })
}

/// A finite number; without a fraction where it has none.
fn number(text: &str) -> Option<String> {
    let text = text.trim();
    if let Some(integer) = integer(text) {
        return Some(integer);
    }
    if !text.contains(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let x: f64 = text.replace('_', "").parse().ok().filter(|x: &f64| x.is_finite())?;
    if x == x.trunc() { Some(format!("{x:.0}")) } else { serde_json::Number::from_f64(x).map(|n| n.to_string()) }
}
