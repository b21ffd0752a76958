//! Jinja2's filters, tests and functions where the engine's own differ from them.

use fancy_regex::Regex;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, FormatStyle, State, filters, functions};

use super::json::{Style, dumps};
use super::methods;
use super::operators::{charge, escape, escaped, format, pairs};
use super::value::{
    Dict, Result, as_float, dict, fault, generator, is_generator, items, list, sequence, storable, text,
};

/// A level of indentation may have so many characters.
const MAX_INDENT: usize = 64;

/// Adds them to `env`.
pub(super) fn register(env: &mut Environment) {
    for name in ["batch", "slice", "chain", "zip", "lines", "bool", "pprint", "split"] {
        env.remove_filter(name);
    }
    env.remove_global("debug");
    texts(env);
    sequences(env);
    env.add_filter("tojson", tojson);
    env.add_filter("int", int);
    env.add_filter("float", |value: &Value, default: Option<f64>| to_float(value).unwrap_or(default.unwrap_or(0.0)));
    env.add_filter("round", round);

    env.add_test("mapping", |value: &Value| value.downcast_object_ref::<Dict>().is_some());
    env.add_test("sequence", |value: &Value| {
        value.as_str().is_some()
            || value.is_undefined()
            || value.downcast_object_ref::<Dict>().is_some()
            || items(value).is_some()
    });
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);

    env.add_function("dict", |source: Option<Value>, named: Kwargs| {
        let mut entries = match source {
            Some(source) if source.kind() == ValueKind::Map => pairs(&source)?,
            Some(source) => {
                let pair = |pair: Value| Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?));
                source.try_iter()?.map(pair).collect::<Result<_>>()?
            }
            None => Vec::new(),
        };
        for name in named.args() {
            entries.push((Value::from(name), named.get(name)?));
        }
        dict(entries)
    });
    env.add_function("namespace", |state: &State, source: Option<Value>| {
        charge(state, 64)?;
        let values = source.as_ref().map(pairs).transpose()?;
        values.iter().flatten().try_for_each(|(_, value)| storable(value))?;
        functions::namespace(source)
    });
    env.add_function("range", |state: &State, a: isize, b: Option<isize>, step: Option<isize>| {
        let step = step.unwrap_or(1);
        let (from, to) = b.map_or((0, a), |b| (a, b));
        let span = if step < 0 { from.saturating_sub(to) } else { to.saturating_sub(from) };
        let count = match step.unsigned_abs() {
            0 => return Err(fault("range() needs a step that is not zero")),
            step => span.max(0).unsigned_abs().div_ceil(step),
        };
        if count > 1_000_000 {
            return Err(fault(format!("range() of {count} numbers; at most 1000000 are made")));
        }
        charge(state, 32 * count)?;
        list((0..count as isize).map(|i| Value::from(from + i * step)).collect())
    });
    env.add_function("raise_exception", |message: Value| -> Result<Value> { Err(fault(text(&message))) });
}

/// Filters that give text.
/// Adds the evaluation harness's own.
pub(super) fn register_patterns(env: &mut Environment) {
    env.add_filter(
        "regex_replace",
        |state: &State, value: &Value, pattern: String, by: String, count: Option<usize>| {
            let pattern = Regex::new(&pattern).map_err(|e| fault(format!("{pattern:?} is no pattern: {e}")))?;
            // Groups are `\\1` in Python and `${1}` here.
            let mut marks = String::new();
            let mut rest = by.chars().peekable();
            while let Some(c) = rest.next() {
                match (c, rest.peek()) {
                    ('\\', Some(n)) if n.is_ascii_digit() => {
                        marks.push_str(&format!("${{{}}}", rest.next().unwrap_or('0')))
                    }
                    ('$', _) => marks.push_str("$$"),
                    (c, _) => marks.push(c),
                }
            }
            let whole = text(value);
            let all = pattern.try_replacen(&whole, count.unwrap_or(0), &marks).map_err(|e| fault(e.to_string()))?;
            charge(state, all.len())?;
            Ok(Value::from(all.into_owned()))
        },
    );
}

fn texts(env: &mut Environment) {
    let made = |state: &State, text: String| {
        charge(state, text.len())?;
        Ok(Value::from(text))
    };
    env.add_filter(
        "string",
        move |state: &State, value: Value| {
            if value.as_str().is_some() { Ok(value) } else { made(state, text(&value)) }
        },
    );
    env.add_filter("lower", move |state: &State, value: &Value| made(state, text(value).to_lowercase()));
    env.add_filter("upper", move |state: &State, value: &Value| made(state, text(value).to_uppercase()));
    env.add_filter("capitalize", move |state: &State, value: &Value| made(state, methods::capitalize(&text(value))));
    env.add_filter("escape", escape_filter);
    env.add_filter("e", escape_filter);
    env.add_filter("trim", move |state: &State, value: &Value, chars: Option<String>| {
        made(state, methods::strip(&text(value), chars.as_deref(), true, true).to_owned())
    });
    env.add_filter("replace", |state: &State, value: &Value, old: String, new: String, count: Option<i64>| {
        methods::replace(state, &text(value), &old, &new, count.unwrap_or(-1))
    });
    env.add_filter("join", |state: &State, value: Value, separator: Option<Value>, options: Kwargs| {
        let attribute: Option<Value> = options.get("attribute")?;
        let separator = separator.map(|s| text(&s)).unwrap_or_default();
        let values: Vec<Value> = value.try_iter()?.collect();
        let values = match attribute {
            Some(name) => values.iter().map(|v| v.get_item(&name)).collect::<Result<_>>()?,
            None => values,
        };
        methods::join(state, &separator, values.iter().map(text))
    });
    env.add_filter("indent", indent);
    env.add_filter("format", |state: &State, pattern: &Value, values: Rest<Value>| {
        format(state, pattern, &values, FormatStyle::Printf)
    });
    env.add_filter("wordcount", |value: &Value| text(value).split_whitespace().count());
    env.add_filter("center", |state: &State, value: &Value, width: Option<usize>| {
        methods::pad(state, &text(value), width.unwrap_or(80), ' ', methods::Side::Both)
    });
}

fn escape_filter(state: &State, value: &Value) -> Result<Value> {
    let text = if value.is_safe() { escaped(value) } else { escape(&text(value)) };
    charge(state, text.len())?;
    Ok(Value::from_safe_string(text))
}

/// Filters that give or look at sequences.
fn sequences(env: &mut Environment) {
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("items", |value: &Value| match value.downcast_object_ref::<Dict>() {
        _ if value.is_undefined() => Ok(generator(Vec::new())),
        Some(dict) => Ok(generator(
            dict.entries().iter().map(|(k, v)| sequence(vec![k.clone(), v.clone()], true)).collect::<Result<_>>()?,
        )),
        None => Err(fault(format!("`items` needs a mapping, not a value of type {}", value.kind()))),
    });
    env.add_filter("dictsort", |state: &State, value: &Value, args: Rest<Value>| {
        let (args, options): (&[Value], Kwargs) = from_args(&args)?;
        let option = |at: usize, name: &str| match args.get(at) {
            Some(value) => Ok(Some(value.clone())),
            None => options.get::<Option<Value>>(name),
        };
        let strict = option(0, "case_sensitive")?.is_some_and(|v| v.is_true());
        let by_value = option(1, "by")?.is_some_and(|v| v.as_str() == Some("value"));
        let reverse = option(2, "reverse")?.is_some_and(|v| v.is_true());
        let mut entries = match value.downcast_object_ref::<Dict>() {
            Some(dict) => dict.entries().to_vec(),
            None => return Err(fault(format!("`dictsort` needs a mapping, not a value of type {}", value.kind()))),
        };
        charge(state, 64 * entries.len())?;
        entries.sort_by_cached_key(|(key, value)| {
            let by = if by_value { value } else { key };
            if strict || by.as_str().is_none() { by.clone() } else { Value::from(text(by).to_lowercase()) }
        });
        if reverse {
            entries.reverse();
        }
        list(entries.into_iter().map(|(k, v)| sequence(vec![k, v], true)).collect::<Result<_>>()?)
    });
    env.add_filter("list", |state: &State, value: Value| collected(state, value));
    env.add_filter("reverse", |state: &State, value: Value| match value.as_str() {
        Some(text) => Ok(Value::from(text.chars().rev().collect::<String>())),
        None => {
            let mut items: Vec<Value> = value.try_iter()?.collect();
            charge(state, 32 * items.len())?;
            items.reverse();
            list(items)
        }
    });
    env.add_filter("sort", |state: &State, value: Value, args: Rest<Value>| {
        // Positional: reverse, case_sensitive, attribute.
        let (positional, options): (&[Value], Kwargs) = from_args(&args)?;
        let names = ["reverse", "case_sensitive", "attribute"];
        let mut given: Vec<(&str, Value)> = names.into_iter().zip(positional.iter().cloned()).collect();
        for name in options.args() {
            given.push((name, options.get(name)?));
        }
        let options: Kwargs = given.into_iter().collect();
        collected(state, filters::sort(state, value, options)?)
    });
    env.add_filter("unique", |state: &State, value: Value, options: Kwargs| {
        filters::unique(state, value, options).and_then(|unique| Ok(generator(unique.try_iter()?.collect())))
    });
    env.add_filter("map", |state: &State, value: Value, args: Rest<Value>| {
        Ok::<_, minijinja::Error>(generator(filters::map(state, value, args)?))
    });
    env.add_filter("select", |state: &State, value: Value, args: Rest<Value>| picked(state, "select", value, &args));
    env.add_filter("reject", |state: &State, value: Value, args: Rest<Value>| picked(state, "reject", value, &args));
    env.add_filter("selectattr", |state: &State, value: Value, args: Rest<Value>| {
        picked(state, "selectattr", value, &args)
    });
    env.add_filter("rejectattr", |state: &State, value: Value, args: Rest<Value>| {
        picked(state, "rejectattr", value, &args)
    });
    env.add_filter("first", |value: &Value| match value.is_undefined() {
        true => Ok(Value::UNDEFINED),
        false => Ok::<_, minijinja::Error>(value.try_iter()?.next().unwrap_or(Value::UNDEFINED)),
    });
    env.add_filter("last", |value: &Value| match value.is_undefined() {
        true => Ok(Value::UNDEFINED),
        false => Ok::<_, minijinja::Error>(value.try_iter()?.last().unwrap_or(Value::UNDEFINED)),
    });
}

fn collected(state: &State, value: Value) -> Result<Value> {
    let items: Vec<Value> = value.try_iter()?.collect();
    charge(state, 32 * items.len())?;
    list(items)
}

/// The values of a sequence that pass, or do not pass, a test on them or on an attribute.
fn picked(state: &State, filter: &str, value: Value, args: &[Value]) -> Result<Value> {
    let by_attribute = filter.ends_with("attr");
    let keep = filter.starts_with("select");
    let name = match (by_attribute, args.first()) {
        (true, Some(name)) => Some(text(name)),
        (true, None) => return Err(fault(format!("`{filter}` needs the name of an attribute"))),
        _ => None,
    };
    let (test, rest) = args[by_attribute as usize..].split_first().map_or((None, &[][..]), |(t, r)| (Some(t), r));
    let test = test.map(text);
    let mut out = Vec::new();
    for item in value.try_iter()? {
        let subject = match &name {
            Some(path) => path.split('.').try_fold(item.clone(), |value, part| match part.parse::<usize>() {
                Ok(index) => value.get_item_by_index(index),
                Err(_) => value.get_item(&Value::from(part)),
            })?,
            None => item.clone(),
        };
        let passes = match &test {
            Some(test) => {
                let arguments: Vec<Value> = std::iter::once(subject).chain(rest.iter().cloned()).collect();
                state.perform_test(test, &arguments)?
            }
            None => subject.is_true(),
        };
        if passes == keep {
            out.push(item);
        }
    }
    charge(state, 32 * out.len())?;
    Ok(generator(out))
}

fn length(value: &Value) -> Result<usize> {
    match value.len() {
        _ if value.is_undefined() => Ok(0),
        Some(len) if !is_generator(value) => Ok(len),
        _ => Err(fault(format!("a value of type {} has no length", value.kind()))),
    }
}

fn tojson(state: &State, value: &Value, args: Rest<Value>) -> Result<Value> {
    // Positional: ensure_ascii, indent, separators, sort_keys.
    let (positional, options): (&[Value], Kwargs) = from_args(&args)?;
    let option = |at: usize, name: &str| match positional.get(at) {
        Some(value) => Ok(Some(value.clone())),
        None => options.get::<Option<Value>>(name),
    };
    let flag = |value: Option<Value>| value.is_some_and(|v| v.is_true());
    let indent = match option(1, "indent")? {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(value.as_usize().unwrap_or(0).min(MAX_INDENT + 1)),
        }),
    };
    if indent.as_ref().is_some_and(|i| i.len() > MAX_INDENT) {
        return Err(fault(format!("`tojson` indents by at most {MAX_INDENT} characters")));
    }
    let separators: Vec<String> = match option(2, "separators")? {
        Some(pair) if !pair.is_none() => pair.try_iter()?.map(|s| text(&s)).collect(),
        _ => Vec::new(),
    };
    let item = if indent.is_some() { "," } else { ", " };
    let style = Style {
        ascii: flag(option(0, "ensure_ascii")?),
        indent,
        item: separators.first().map_or(item, String::as_str).to_owned(),
        key: separators.get(1).map_or(": ", String::as_str).to_owned(),
        sort: flag(option(3, "sort_keys")?),
    };
    let json = dumps(value, &style)?;
    charge(state, json.len())?;
    Ok(Value::from(json))
}

fn indent(state: &State, value: &Value, args: Rest<Value>) -> Result<Value> {
    let (width, first, blank, options): (Option<Value>, Option<bool>, Option<bool>, Kwargs) = from_args(&args)?;
    let width = match width {
        None => options.get::<Option<Value>>("width")?,
        some => some,
    };
    let width = match width {
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(width.as_usize().unwrap_or(0).min(MAX_INDENT + 1)),
        },
        None => " ".repeat(4),
    };
    if width.len() > MAX_INDENT {
        return Err(fault(format!("`indent` indents by at most {MAX_INDENT} characters")));
    }
    let first = first.or(options.get("first")?).unwrap_or(false);
    let blank = blank.or(options.get("blank")?).unwrap_or(false);
    options.assert_all_used()?;
    let text = text(value);
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&width);
        }
        out.push_str(line);
    }
    charge(state, out.len())?;
    Ok(Value::from(out))
}

/// Jinja2's `int`: the default where the value is no number.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    let base = base.unwrap_or(10);
    let whole = match value.as_str() {
        Some(text) if (2..=36).contains(&base) => i64::from_str_radix(&text.trim().replace('_', ""), base)
            .ok()
            .or_else(|| Some(to_float(value)?.trunc() as i64)),
        _ if value.is_integer() => return value.clone(),
        _ => to_float(value).filter(|x| x.is_finite()).map(|x| x.trunc() as i64),
    };
    whole.map(Value::from).or(default).unwrap_or_else(|| Value::from(0))
}

fn to_float(value: &Value) -> Option<f64> {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => text.trim().parse().ok(),
        (_, ValueKind::Bool) => Some(value.is_true().into()),
        (_, ValueKind::Number) => as_float(value).or_else(|| f64::try_from(value.clone()).ok()),
        _ => None,
    }
}

fn round(value: &Value, precision: Option<i32>, method: Option<String>) -> Result<Value> {
    if value.is_integer() && method.as_deref().is_none_or(|m| m == "common") {
        return Ok(value.clone());
    }
    let x = to_float(value).filter(|_| value.as_str().is_none());
    let x = x.ok_or_else(|| fault(format!("`round` needs a number, not a value of type {}", value.kind())))?;
    let scale = 10f64.powi(precision.unwrap_or(0));
    Ok(Value::from(match method.as_deref() {
        Some("ceil") => (x * scale).ceil() / scale,
        Some("floor") => (x * scale).floor() / scale,
        _ => (x * scale).round_ties_even() / scale,
    }))
}
