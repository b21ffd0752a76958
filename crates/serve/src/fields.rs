//! Bodies of requests by tables: which fields there are, what each may be, whether it has an effect.
//!
//! One table a route. It checks bodies, names what is wrong, finds what is unknown, and describes the route in the
//! OpenAPI document, so that the three cannot differ. `null` is the same as absent.

use crate::error::ApiError;
use serde_json::{Map, Value, json};

/// A field of a body.
#[derive(Clone, Copy)]
pub(crate) struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it does.
    pub effect: Effect,
    /// What it is for.
    pub about: &'static str,
}

/// What a field may be.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A whole number between two.
    Integer(i128, i128),
    /// A number between two.
    Number(f64, f64),
    /// True or false.
    Flag,
    /// A text.
    Text,
    /// A list of so many things at most.
    List(usize),
    /// An object.
    Object,
    /// Whatever the route takes.
    Any,
}

/// What a field does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It counts.
    Used,
    /// It must be there.
    Needed,
    /// It is taken and does nothing, which the answer says.
    Nothing,
    /// It would change what is meant, and there is no such thing here.
    Refused,
}

/// A field that counts.
pub(crate) const fn field(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, effect: Effect::Used, about }
}

/// A field without effect.
pub(crate) const fn nothing(name: &'static str) -> Field {
    Field { name, kind: Kind::Any, effect: Effect::Nothing, about: "Taken, without effect." }
}

impl Field {
    /// The same field, which must be there.
    pub(crate) const fn needed(self) -> Field {
        Field { effect: Effect::Needed, ..self }
    }

    /// The same field, which is refused.
    pub(crate) const fn refused(self) -> Field {
        Field { effect: Effect::Refused, ..self }
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        let wrong = |what: String| Err(format!("{} must be {what}, and is {}", self.name, shown(value)));
        match self.kind {
            Kind::Integer(least, most) => match integer(value) {
                Some(n) if (least..=most).contains(&n) => Ok(()),
                _ => wrong(format!("a whole number between {least} and {most}")),
            },
            Kind::Number(least, most) => match value.as_f64() {
                Some(n) if (least..=most).contains(&n) => Ok(()),
                _ => wrong(format!("a number between {least} and {most}")),
            },
            Kind::Flag if !value.is_boolean() => wrong("true or false".into()),
            Kind::Text if !value.is_string() => wrong("a text".into()),
            Kind::List(most) => match value.as_array() {
                Some(list) if list.len() <= most => Ok(()),
                Some(list) => Err(format!("{} has {} entries; {most} are taken", self.name, list.len())),
                None => wrong("a list".into()),
            },
            Kind::Object if !value.is_object() => wrong("an object".into()),
            _ => Ok(()),
        }
    }

    /// What OpenAPI says of it.
    pub(crate) fn schema(&self) -> Value {
        let mut schema = match self.kind {
            Kind::Integer(least, most) => {
                // Beyond what numbers of JSON hold exactly, a bound says nothing.
                let plain = |n: i128| i64::try_from(n).ok().filter(|n| n.unsigned_abs() < 1 << 53);
                let mut schema = json!({"type": "integer"});
                for (key, bound) in [("minimum", plain(least)), ("maximum", plain(most))] {
                    if let Some(bound) = bound {
                        schema[key] = json!(bound);
                    }
                }
                schema
            }
            Kind::Number(least, most) => json!({"type": "number", "minimum": least, "maximum": most}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::Text => json!({"type": "string"}),
            Kind::List(most) => json!({"type": "array", "maxItems": most, "items": {}}),
            Kind::Object => json!({"type": "object"}),
            Kind::Any => json!({}),
        };
        if self.effect != Effect::Needed
            && let Some(kind) = schema.get("type").cloned()
        {
            schema["type"] = json!([kind, "null"]);
        }
        let about = match self.effect {
            Effect::Refused => format!("Refused. {}", self.about),
            _ => self.about.to_string(),
        };
        schema["description"] = json!(about);
        schema
    }
}

/// The whole number that a value is.
fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// A value as an error shows it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// A body that was checked by a table.
pub(crate) struct Body {
    fields: Map<String, Value>,
    /// What was taken without effect, or not known.
    pub warnings: Vec<String>,
}

impl Body {
    /// Checks a body by tables of fields.
    ///
    /// # Errors
    /// No JSON, no object, a field that is missing, refused or not what it may be.
    pub(crate) fn read(bytes: &[u8], tables: &[&[Field]]) -> Result<Body, ApiError> {
        let value: Value = match serde_json::from_slice(bytes) {
            Ok(value) => value,
            Err(e) => return Err(ApiError::new(400, format!("the body is no JSON: {e}"))),
        };
        let Value::Object(mut fields) = value else {
            return Err(ApiError::new(400, "the body must be a JSON object"));
        };
        fields.retain(|_, value| !value.is_null());
        let known = || tables.iter().flat_map(|t| t.iter());
        let mut warnings = Vec::new();
        for (name, value) in &fields {
            let Some(field) = known().find(|f| f.name == name) else {
                let name: String = name.chars().filter(|c| c.is_ascii_graphic()).take(60).collect();
                warnings.push(format!("{name}: unknown"));
                continue;
            };
            match field.effect {
                Effect::Refused => {
                    return Err(ApiError::field(name, format!("{name} is not taken: {}", field.about)));
                }
                Effect::Nothing => warnings.push(format!("{name}: no effect")),
                _ => field.check(value).map_err(|why| ApiError::field(name, why))?,
            }
        }
        if let Some(missing) = known().find(|f| f.effect == Effect::Needed && !fields.contains_key(f.name)) {
            return Err(ApiError::field(missing.name, format!("{} is missing: {}", missing.name, missing.about)));
        }
        Ok(Body { fields, warnings })
    }

    /// A field that is there.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.get(name)
    }

    /// Takes a field out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name)
    }

    /// A whole number.
    pub(crate) fn integer(&self, name: &str) -> Option<i128> {
        self.get(name).and_then(integer)
    }

    /// A whole number that counts something.
    pub(crate) fn count(&self, name: &str) -> Option<usize> {
        self.integer(name).and_then(|n| usize::try_from(n).ok())
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Value::as_f64)
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A text, or a list of up to `most` texts of up to `bytes` bytes.
    ///
    /// # Errors
    /// Anything else.
    pub(crate) fn texts(&self, name: &str, most: usize, bytes: usize) -> Result<Vec<String>, ApiError> {
        let wrong = |what: String| ApiError::field(name, format!("{name} {what}"));
        let texts = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => vec![text.clone()],
            Some(Value::Array(list)) => {
                let texts: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(String::from)).collect();
                texts.ok_or_else(|| wrong("must hold texts only".into()))?
            }
            Some(other) => return Err(wrong(format!("must be a text or a list of texts, and is {}", shown(other)))),
        };
        if texts.len() > most {
            return Err(wrong(format!("has {} entries; {most} are taken", texts.len())));
        }
        if let Some(long) = texts.iter().find(|t| t.len() > bytes) {
            return Err(wrong(format!("has an entry of {} bytes; {bytes} are taken", long.len())));
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Field] = &[
        field("n", Kind::Integer(1, 16), "How many."),
        field("seed", Kind::Integer(-(1 << 63), (1 << 64) - 1), "Seed."),
        field("top_p", Kind::Number(0.0, 1.0), "Mass."),
        field("model", Kind::Text, "Name.").needed(),
        nothing("user"),
        field("audio", Kind::Any, "no model here speaks").refused(),
    ];

    fn read(text: &str) -> Result<Body, ApiError> {
        Body::read(text.as_bytes(), &[TABLE])
    }

    #[test]
    fn null_is_absent_and_the_rest_is_checked() {
        let body = read(r#"{"model": "m", "n": null, "user": 5, "zzz": 1, "top_p": 1, "seed": 18446744073709551615}"#);
        let body = body.unwrap();
        assert_eq!((body.integer("n"), body.number("top_p")), (None, Some(1.0)));
        assert_eq!(body.integer("seed"), Some(u64::MAX.into()));
        assert_eq!(body.warnings, ["user: no effect", "zzz: unknown"]);
        for (text, param) in [
            (r#"{"model": "m", "n": 0}"#, "n"),
            (r#"{"model": "m", "n": 1.5}"#, "n"),
            (r#"{"model": "m", "n": "1"}"#, "n"),
            (r#"{"model": "m", "n": 1e308}"#, "n"),
            (r#"{"model": "m", "top_p": -0.1}"#, "top_p"),
            (r#"{"model": "m", "top_p": []}"#, "top_p"),
            (r#"{"model": "m", "audio": {}}"#, "audio"),
            (r#"{"model": {}}"#, "model"),
            (r#"{"model": null}"#, "model"),
        ] {
            let error = read(text).err().unwrap_or_else(|| panic!("{text}"));
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{text}");
        }
        for text in ["", "[]", "{", "{\"n\": NaN}", "5", "{} {}"] {
            assert_eq!(read(text).err().unwrap().status, 400, "{text}");
        }
    }

    #[test]
    fn values_in_errors_are_short() {
        let long = format!(r#"{{"model": "m", "n": "{}"}}"#, "é".repeat(10_000));
        assert!(read(&long).err().unwrap().message.len() < 250);
    }
}
