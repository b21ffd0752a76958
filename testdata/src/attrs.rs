//! The keyword arguments of a case, by name and type.

use lapis_core::dtype::Dtype;
use serde_json::{Map, Value};

/// Keyword arguments. Every getter gives `None` for a name that is absent or null.
///
/// # Panics
/// A value of another type than asked for is a fault of the case file or of the runner: the getters panic and name it.
#[derive(Clone, Debug, Default)]
pub struct Attrs(pub(crate) Map<String, Value>);

/// A JSON number, or one of the strings that stand for non-finite ones.
pub(crate) fn number(v: &Value) -> Option<f64> {
    match v {
        Value::String(s) if s == "nan" => Some(f64::NAN),
        Value::String(s) if s == "inf" => Some(f64::INFINITY),
        Value::String(s) if s == "-inf" => Some(f64::NEG_INFINITY),
        _ => v.as_f64(),
    }
}

impl Attrs {
    fn typed<'a, T>(&'a self, name: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.0.get(name).filter(|v| !v.is_null())?;
        Some(read(value).unwrap_or_else(|| panic!("attribute {name} = {value} is not {what}")))
    }

    /// The names that are given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// The JSON value, null included.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Whether the attribute is given and not null.
    pub fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|v| !v.is_null())
    }

    /// An integer.
    pub fn int(&self, name: &str) -> Option<i64> {
        self.typed(name, "an integer", Value::as_i64)
    }

    /// A real number.
    pub fn float(&self, name: &str) -> Option<f64> {
        self.typed(name, "a number", number)
    }

    /// A truth value; false when absent.
    pub fn flag(&self, name: &str) -> bool {
        self.typed(name, "a bool", Value::as_bool).unwrap_or(false)
    }

    /// A truth value.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.typed(name, "a bool", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.typed(name, "a text", Value::as_str)
    }

    /// A dtype by name.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.typed(name, "a dtype", |v| Dtype::from_name(v.as_str()?).ok())
    }

    /// One integer or a list of them, as a list.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.typed(name, "an integer or a list of integers", |v| match v {
            Value::Array(items) => items.iter().map(Value::as_i64).collect(),
            _ => Some(vec![v.as_i64()?]),
        })
    }

    /// A list of lists of integers.
    pub fn lists(&self, name: &str) -> Option<Vec<Vec<i64>>> {
        self.typed(name, "a list of lists", |v| {
            v.as_array()?.iter().map(|row| row.as_array()?.iter().map(Value::as_i64).collect()).collect()
        })
    }

    /// Whether the attribute is a list (of anything).
    pub fn is_list(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(Value::is_array)
    }

    /// Whether the attribute is written as an integer.
    pub fn is_int(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(Value::is_i64)
    }
}
