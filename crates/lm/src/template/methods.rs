//! Methods of Python's texts, dicts and lists. Those that change a value are not there: the sandbox of transformers
//! refuses them too.

use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind, FormatStyle, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::operators::{charge, format};
use super::value::{Dict, Result, dict, fault, items, list, sequence, text};

/// The methods of dicts.
pub(super) const DICT: [&str; 5] = ["get", "items", "keys", "values", "copy"];
/// Methods of dicts that are refused.
pub(super) const DICT_CHANGES: [&str; 6] = ["clear", "pop", "popitem", "setdefault", "update", "fromkeys"];

/// Calls `value.name(args)`.
pub(super) fn call(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    if let Some(s) = value.as_str() {
        return text_method(state, value, s, name, args);
    }
    if let Some(dict) = value.downcast_object_ref::<Dict>() {
        return dict_method(dict, name, args);
    }
    match items(value) {
        Some(items) => list_method(&items, name, args),
        None => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn dict_method(this: &Dict, name: &str, args: &[Value]) -> Result<Value> {
    let entries = this.entries();
    if name != "get" && DICT.contains(&name) {
        let () = from_args(args)?;
    }
    match name {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            Ok(this.get(key).or(default).unwrap_or_else(|| Value::from(())))
        }
        "items" => {
            list(entries.iter().map(|(k, v)| sequence(vec![k.clone(), v.clone()], true)).collect::<Result<_>>()?)
        }
        "keys" => list(entries.iter().map(|e| e.0.clone()).collect()),
        "values" => list(entries.iter().map(|e| e.1.clone()).collect()),
        "copy" => dict(entries.to_vec()),
        name if DICT_CHANGES.contains(&name) => Err(refused(name, "dict")),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn list_method(items: &[Value], name: &str, args: &[Value]) -> Result<Value> {
    match name {
        "count" => {
            let (what,): (&Value,) = from_args(args)?;
            Ok(Value::from(items.iter().filter(|x| *x == what).count()))
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let at = items.iter().position(|x| x == what);
            at.map(Value::from).ok_or_else(|| fault(format!("{} is not in the list", text(what))))
        }
        "copy" => list(items.to_vec()),
        "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" => Err(refused(name, "list")),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn refused(method: &str, kind: &str) -> Error {
    fault(format!("the method {method} would change a {kind}, which templates may not do"))
}

fn text_method(state: &State, value: &Value, s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let stripped = |left: bool, right: bool| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok(Value::from(strip(s, chars, left, right)))
    };
    let padded = |side: Side| {
        let (width, fill): (usize, Option<char>) = from_args(args)?;
        pad(state, s, width, fill.unwrap_or(' '), side)
    };
    let parted = |at: Option<usize>, sep: &str, last: bool| {
        let parts = match at {
            Some(at) => [&s[..at], sep, &s[at + sep.len()..]],
            None if last => ["", "", s],
            None => [s, "", ""],
        };
        sequence(parts.map(Value::from).to_vec(), true)
    };
    charge(state, s.len())?;
    match name {
        "strip" => stripped(true, true),
        "lstrip" => stripped(true, false),
        "rstrip" => stripped(false, true),
        "split" | "rsplit" => {
            let (sep, limit, options): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
            let sep = sep.or(options.get("sep")?).filter(|s| !s.is_none());
            let limit = limit.or(options.get("maxsplit")?).filter(|n| *n >= 0).map(|n| n as usize);
            options.assert_all_used()?;
            let parts = split(s, sep.as_ref().map(text).as_deref(), limit, name == "rsplit")?;
            charge(state, 32 * parts.len())?;
            list(parts.into_iter().map(Value::from).collect())
        }
        "splitlines" => {
            let (keep, options): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(options.get("keepends")?).unwrap_or(false);
            let lines =
                s.split_inclusive('\n').map(|line| if keep { line } else { line.trim_end_matches(['\n', '\r']) });
            list(lines.map(Value::from).collect())
        }
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, s, old, new, count.unwrap_or(-1))
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            let part = |v: Value| match v.as_str() {
                Some(part) => Ok(part.to_owned()),
                None => Err(fault(format!("join needs texts, not a value of type {}", v.kind()))),
            };
            let parts: Vec<String> = values.try_iter()?.map(part).collect::<Result<_>>()?;
            join(state, s, parts.into_iter())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(s.strip_prefix(prefix).unwrap_or(s)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(s.strip_suffix(suffix).unwrap_or(s)))
        }
        "partition" | "rpartition" => {
            let (sep,): (&str,) = from_args(args)?;
            let last = name == "rpartition";
            match (sep.is_empty(), last) {
                (true, _) => Err(fault("an empty separator")),
                (_, false) => parted(s.find(sep), sep, false),
                (_, true) => parted(s.rfind(sep), sep, true),
            }
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let at = if name.starts_with('r') { s.rfind(what) } else { s.find(what) };
            match at {
                Some(at) => Ok(Value::from(s[..at].chars().count())),
                None if name.ends_with("find") => Ok(Value::from(-1)),
                None => Err(fault("a substring was not found")),
            }
        }
        "ljust" => padded(Side::Right),
        "rjust" => padded(Side::Left),
        "center" => padded(Side::Both),
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = s.split_at(s.starts_with(['-', '+']) as usize);
            let padded = pad(state, digits, width.saturating_sub(sign.len()), '0', Side::Left)?;
            Ok(Value::from(sign.to_owned() + &text(&padded)))
        }
        "capitalize" => Ok(Value::from(capitalize(s))),
        "casefold" => Ok(Value::from(s.to_lowercase())),
        "swapcase" => {
            let swap =
                |c: char| if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() };
            Ok(Value::from(s.chars().map(swap).collect::<String>()))
        }
        "format" => format(state, value, args, FormatStyle::StrFormat),
        "isdigit" | "isnumeric" | "isdecimal" => Ok(Value::from(!s.is_empty() && s.chars().all(char::is_numeric))),
        "isalnum" => Ok(Value::from(!s.is_empty() && s.chars().all(char::is_alphanumeric))),
        "isalpha" => Ok(Value::from(!s.is_empty() && s.chars().all(char::is_alphabetic))),
        "isspace" => Ok(Value::from(!s.is_empty() && s.chars().all(is_space))),
        "islower" | "isupper" => {
            let (lower, upper) = (s.chars().any(char::is_lowercase), s.chars().any(char::is_uppercase));
            Ok(Value::from(if name == "islower" { lower && !upper } else { upper && !lower }))
        }
        "startswith" | "endswith" => {
            let (what, start, end): (&Value, Option<Value>, Option<Value>) = from_args(args)?;
            if start.is_some() || end.is_some() {
                let part = state.apply_filter(
                    "_slice",
                    &[value.clone(), start.unwrap_or_default(), end.unwrap_or_else(|| Value::from(()))],
                )?;
                return unknown_method_callback(state, &part, name, std::slice::from_ref(what));
            }
            unknown_method_callback(state, value, name, args)
        }
        _ => unknown_method_callback(state, value, name, args),
    }
}

/// Where padding goes.
pub(super) enum Side {
    Left,
    Right,
    Both,
}

/// A text of at least `width` characters.
pub(super) fn pad(state: &State, s: &str, width: usize, fill: char, side: Side) -> Result<Value> {
    let missing = width.saturating_sub(s.chars().count());
    charge(state, s.len().saturating_add(missing.saturating_mul(fill.len_utf8())))?;
    let left = match side {
        Side::Left => missing,
        Side::Right => 0,
        Side::Both => missing / 2 + (missing & width & 1),
    };
    let space = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(Value::from(space(left) + s + &space(missing - left)))
}

/// What Python's `str.strip` takes for space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// A text without the characters of `chars` (or space) at its ends.
pub(super) fn strip<'s>(s: &'s str, chars: Option<&str>, left: bool, right: bool) -> &'s str {
    let gone = |c: char| chars.map_or(is_space(c), |chars| chars.contains(c));
    let s = if left { s.trim_start_matches(gone) } else { s };
    if right { s.trim_end_matches(gone) } else { s }
}

/// A text with its first character in upper case and the others in lower case.
pub(super) fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect())
}

/// A text with the first `count` (all, when negative) of `old` replaced.
pub(super) fn replace(state: &State, s: &str, old: &str, new: &str, count: i64) -> Result<Value> {
    let found = s.matches(old).count();
    let count = if count < 0 { found } else { found.min(count as usize) };
    charge(state, s.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::from(s.replacen(old, new, count)))
}

/// Texts with `separator` between them.
pub(super) fn join(state: &State, separator: &str, parts: impl Iterator<Item = String>) -> Result<Value> {
    let mut out = String::new();
    for (i, part) in parts.enumerate() {
        charge(state, separator.len() + part.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(&part);
    }
    Ok(Value::from(out))
}

/// The parts between separators, or between runs of space.
fn split<'s>(s: &'s str, sep: Option<&str>, limit: Option<usize>, from_right: bool) -> Result<Vec<&'s str>> {
    let limit = limit.map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<&str> = match sep {
        Some("") => return Err(fault("an empty separator")),
        Some(sep) if from_right => s.rsplitn(limit, sep).collect(),
        Some(sep) => return Ok(s.splitn(limit, sep).collect()),
        None => {
            let mut parts = Vec::new();
            let mut rest = strip(s, None, true, true);
            while !rest.is_empty() {
                let border = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
                let (part, others) = match border {
                    Some(at) if parts.len() + 1 < limit => {
                        let end = at + rest[at..].chars().next().map_or(0, char::len_utf8);
                        if from_right { (&rest[end..], &rest[..at]) } else { (&rest[..at], &rest[end..]) }
                    }
                    _ => (rest, ""),
                };
                parts.push(part);
                rest = strip(others, None, !from_right, from_right);
            }
            // With a limit, the end of the last part keeps its space in Python.
            if !from_right
                && parts.len() == limit
                && let Some(last) = parts.last_mut()
            {
                let begin = last.as_ptr() as usize - s.as_ptr() as usize;
                *last = &s[begin..];
            }
            parts
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts)
}
