//! `tojson`: JSON text as Python's `json.dumps` writes it.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};

use super::value::{Dict, Result, as_float, fault, float, items};

/// How to write: the options of `json.dumps` that transformers passes on.
pub(super) struct Style {
    pub(super) ascii: bool,
    /// What one level of indentation is; one line without.
    pub(super) indent: Option<String>,
    pub(super) item: String,
    pub(super) key: String,
    pub(super) sort: bool,
}

/// The JSON text of `value`.
pub(super) fn dumps(value: &Value, style: &Style) -> Result<String> {
    let mut out = String::new();
    write(value, style, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, style: &Style, level: usize, out: &mut String) -> Result<()> {
    if let Some(text) = value.as_str() {
        quote(text, style.ascii, out);
    } else if let Some(x) = as_float(value) {
        match x {
            x if x.is_nan() => out.push_str("NaN"),
            f64::INFINITY => out.push_str("Infinity"),
            f64::NEG_INFINITY => out.push_str("-Infinity"),
            x => out.push_str(&float(x)),
        }
    } else if let Some(dict) = value.downcast_object_ref::<Dict>() {
        let mut entries: Vec<(String, &Value)> =
            dict.entries().iter().map(|(k, v)| Ok((key(k)?, v))).collect::<Result<_>>()?;
        if style.sort {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        block(('{', '}'), &entries, style, level, out, |(key, value), out| {
            quote(key, style.ascii, out);
            out.push_str(&style.key);
            write(value, style, level + 1, out)
        })?;
    } else if let Some(items) = items(value) {
        block(('[', ']'), &items, style, level, out, |item, out| write(item, style, level + 1, out))?;
    } else {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => _ = write!(out, "{value}"),
            kind => return Err(fault(format!("a value of type {kind} cannot be written as JSON"))),
        }
    }
    Ok(())
}

fn block<T>(
    (begin, end): (char, char),
    items: &[T],
    style: &Style,
    level: usize,
    out: &mut String,
    mut item: impl FnMut(&T, &mut String) -> Result<()>,
) -> Result<()> {
    let line = |level: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    };
    out.push(begin);
    for (i, x) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.item);
        }
        line(level + 1, out);
        item(x, out)?;
    }
    if !items.is_empty() {
        line(level, out);
    }
    out.push(end);
    Ok(())
}

fn key(key: &Value) -> Result<String> {
    if let Some(text) = key.as_str() {
        return Ok(text.to_owned());
    }
    if let Some(x) = as_float(key) {
        return Ok(float(x));
    }
    match key.kind() {
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number => Ok(key.to_string()),
        kind => Err(fault(format!("a key of type {kind} cannot be written as JSON"))),
    }
}

fn quote(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
