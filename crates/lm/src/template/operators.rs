//! Python's operators, as filters that the rewritten template calls, and the budget of what a rendering may make.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use minijinja::value::{Object, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, FormatStyle, State, format_filter};

use super::value::{Dict, Result, as_float, dict, fault, is_tuple, items, list, sequence, storable, text};

/// How many bytes of values a rendering may make altogether.
const MAX_BYTES: u64 = 256 << 20;
/// How long a rendering may take.
const MAX_TIME: Duration = Duration::from_millis(250);
/// A number in a format, such as a width, may have so many digits.
const MAX_WIDTH_DIGITS: usize = 4;

/// What is left of a rendering's allowance.
#[derive(Debug)]
struct Budget {
    made: AtomicU64,
    end: Instant,
}

impl Object for Budget {}

/// Counts `bytes` that are about to be made.
pub(super) fn charge(state: &State, bytes: usize) -> Result<()> {
    let begin = || Budget { made: AtomicU64::new(0), end: Instant::now() + MAX_TIME };
    let budget = state.get_or_set_temp_object("budget", begin);
    let made = budget.made.fetch_add(bytes as u64, Ordering::Relaxed).saturating_add(bytes as u64);
    if made > MAX_BYTES {
        return Err(fault(format!("the template makes more than {} MiB of text", MAX_BYTES >> 20)));
    }
    if Instant::now() > budget.end {
        return Err(fault(format!("the template takes longer than {} ms", MAX_TIME.as_millis())));
    }
    Ok(())
}

/// Adds the operators to `env`.
pub(super) fn register(env: &mut Environment) {
    env.add_filter("_add", add);
    env.add_filter("_concat", concat);
    env.add_filter("_mul", mul);
    env.add_filter("_mod", modulo);
    env.add_filter("_slice", slice);
    env.add_filter("_store", |value: Value| storable(&value).map(|()| value));
    env.add_filter("_list", |state: &State, value: Value| literal(state, &value, false));
    env.add_filter("_tuple", |state: &State, value: Value| literal(state, &value, true));
    env.add_filter("_dict", |state: &State, value: Value| {
        let entries = pairs(&value)?;
        charge(state, 64 * entries.len())?;
        dict(entries)
    });
}

/// The entries of any map.
pub(super) fn pairs(value: &Value) -> Result<Vec<(Value, Value)>> {
    if let Some(dict) = value.downcast_object_ref::<Dict>() {
        return Ok(dict.entries().to_vec());
    }
    value.try_iter()?.map(|key| Ok((key.clone(), value.get_item(&key)?))).collect()
}

fn literal(state: &State, value: &Value, tuple: bool) -> Result<Value> {
    let items: Vec<Value> = value.try_iter()?.collect();
    charge(state, 32 * items.len())?;
    sequence(items, tuple)
}

/// An error about operands as Python words it.
fn unsupported(operator: &str, left: &Value, right: &Value) -> Error {
    let named = [left, right].into_iter().find(|v| v.is_undefined());
    match named {
        Some(_) => Error::new(ErrorKind::UndefinedError, format!("an operand of {operator} is undefined")),
        None if left.as_str().is_some() && operator == "+" => {
            fault(format!("can only concatenate text to text, not {}", right.kind()))
        }
        None => fault(format!("unsupported operands of {operator}: {} and {}", left.kind(), right.kind())),
    }
}

/// An integer; true and false count as 1 and 0.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(value.is_true().into()),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    as_float(value).or_else(|| integer(value).map(|x| x as f64))
}

/// Text as it is added to text that is marked safe.
pub(super) fn escaped(value: &Value) -> String {
    let plain = text(value);
    if value.is_safe() { plain } else { escape(&plain) }
}

/// HTML's special characters as entities, spelled as MarkupSafe does.
pub(super) fn escape(text: &str) -> String {
    let entities = [("&", "&amp;"), (">", "&gt;"), ("<", "&lt;"), ("'", "&#39;"), ("\"", "&#34;")];
    entities.iter().fold(text.to_owned(), |text, (c, entity)| text.replace(c, entity))
}

fn add(state: &State, left: Value, right: Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        charge(state, a.len() + b.len())?;
        return Ok(match left.is_safe() || right.is_safe() {
            true => Value::from_safe_string(escaped(&left) + &escaped(&right)),
            false => Value::from([a, b].concat()),
        });
    }
    if let (Some(a), Some(b)) = (integer(&left), integer(&right)) {
        return a.checked_add(b).map(Value::from).ok_or_else(|| fault("a sum overflows"));
    }
    if let (Some(a), Some(b)) = (number(&left), number(&right)) {
        return Ok(Value::from(a + b));
    }
    match (items(&left), items(&right)) {
        (Some(mut a), Some(b)) if is_tuple(&left) == is_tuple(&right) => {
            charge(state, 32 * (a.len() + b.len()))?;
            a.extend(b);
            sequence(a, is_tuple(&left))
        }
        _ => Err(unsupported("+", &left, &right)),
    }
}

fn concat(state: &State, left: Value, right: Value) -> Result<Value> {
    let joined = text(&left) + &text(&right);
    charge(state, joined.len())?;
    Ok(Value::from(joined))
}

fn mul(state: &State, left: Value, right: Value) -> Result<Value> {
    if let (Some(a), Some(b)) = (integer(&left), integer(&right)) {
        return a.checked_mul(b).map(Value::from).ok_or_else(|| fault("a product overflows"));
    }
    if let (Some(a), Some(b)) = (number(&left), number(&right)) {
        return Ok(Value::from(a * b));
    }
    let (value, times) = match (integer(&left), integer(&right)) {
        (None, Some(n)) => (&left, n),
        (Some(n), None) => (&right, n),
        _ => return Err(unsupported("*", &left, &right)),
    };
    let times = times.clamp(0, u32::MAX.into()) as usize;
    if let Some(text) = value.as_str() {
        charge(state, text.len().saturating_mul(times))?;
        return Ok(Value::from(text.repeat(times)));
    }
    let items = items(value).ok_or_else(|| unsupported("*", &left, &right))?;
    charge(state, items.len().saturating_mul(times).saturating_mul(32))?;
    let repeated = std::iter::repeat_n(&items, times).flatten().cloned();
    sequence(repeated.collect(), is_tuple(value))
}

fn modulo(state: &State, left: Value, right: Value) -> Result<Value> {
    if left.as_str().is_some() {
        let arguments = if is_tuple(&right) { items(&right).unwrap_or_default() } else { vec![right] };
        return format(state, &left, &arguments, FormatStyle::Printf);
    }
    let zero = || fault("a remainder by zero");
    if let (Some(a), Some(b)) = (integer(&left), integer(&right)) {
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(Value::from(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }));
    }
    match (number(&left), number(&right)) {
        (Some(_), Some(0.0)) => Err(zero()),
        (Some(a), Some(b)) => Ok(Value::from(a - b * (a / b).floor())),
        _ => Err(unsupported("%", &left, &right)),
    }
}

/// A text with values put in by either of Python's two formats.
pub(super) fn format(state: &State, pattern: &Value, values: &[Value], style: FormatStyle) -> Result<Value> {
    let pattern = pattern.as_str().ok_or_else(|| fault("a format must be a text"))?;
    let wide = |digits: &str| digits.len() > MAX_WIDTH_DIGITS;
    if pattern.contains('*') && style == FormatStyle::Printf || pattern.split(|c: char| !c.is_ascii_digit()).any(wide) {
        return Err(fault("a format has a width that is too large"));
    }
    let text = format_filter(style, pattern, values)?;
    charge(state, text.len())?;
    Ok(Value::from(text))
}

/// Python's `value[start:stop:step]`.
fn slice(state: &State, value: Value, bounds: Rest<Value>) -> Result<Value> {
    let bound = |at: usize| match bounds.get(at) {
        None => Ok(None),
        Some(v) if v.is_none() => Ok(None),
        Some(v) => integer(v).map(Some).ok_or_else(|| fault("slice indices must be integers or none")),
    };
    let (start, stop, step) = (bound(0)?, bound(1)?, bound(2)?.unwrap_or(1));
    if step == 0 {
        return Err(fault("a slice's step cannot be zero"));
    }
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "a slice of an undefined value"));
    }
    let chars = value.as_str().map(|s| s.chars().collect::<Vec<_>>());
    let items = if chars.is_some() { None } else { items(&value) };
    let len = chars.as_ref().map(Vec::len).or_else(|| items.as_ref().map(Vec::len));
    let Some(len) = len else {
        return Err(fault(format!("a value of type {} cannot be sliced", value.kind())));
    };
    charge(state, 4 * len)?;

    let n = len as i128;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clip = |at: Option<i128>, default| match at {
        None => default,
        Some(at) => (if at < 0 { at + n } else { at }).clamp(low, high),
    };
    let (start, stop) = if step > 0 { (clip(start, 0), clip(stop, n)) } else { (clip(start, n - 1), clip(stop, -1)) };
    let mut at = start;
    let picked = std::iter::from_fn(|| {
        let inside = if step > 0 { at < stop } else { at > stop };
        let here = at as usize;
        at = at.saturating_add(step);
        inside.then_some(here)
    });
    match (chars, items) {
        (Some(chars), _) => Ok(Value::from(picked.map(|i| chars[i]).collect::<String>())),
        (_, Some(items)) if is_tuple(&value) => sequence(picked.map(|i| items[i].clone()).collect(), true),
        (_, Some(items)) => list(picked.map(|i| items[i].clone()).collect()),
        _ => Ok(Value::UNDEFINED),
    }
}
