//! Calls of a name and pairs of tags, `f<arg_key>k</arg_key><arg_value>v</arg_value>`, as GLM and LongCat write them; and
//! what they write besides: JSON, `f {json}`, `f k=v`.

use serde_json::{Map, Value};

use super::input::{Found, Input};
use super::json;
use super::out::Out;
use super::values::{Values, guess, is_string};
use super::{Calls, Next};
use crate::engine::Finish;

/// The tags of a format.
pub(super) struct Rules {
    /// What ends a call.
    pub(super) end: &'static str,
    /// Around a key.
    pub(super) key: (&'static str, &'static str),
    /// Around a value.
    pub(super) value: (&'static str, &'static str),
    /// Calls may stand without tags.
    pub(super) plain: bool,
}

/// Bytes of the longest name.
const NAME: usize = 256;

/// Reads a call.
pub(super) struct Pairs {
    rules: &'static Rules,
    state: State,
    name: String,
    key: String,
    count: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Name,
    /// JSON up to the end of the call.
    Json,
    Inside,
    Key,
    BeforeValue,
    Value,
}

impl Pairs {
    pub(super) fn new(rules: &'static Rules) -> Pairs {
        Pairs { rules, state: State::Name, name: String::new(), key: String::new(), count: 0 }
    }

    fn name(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let blanks = input.rest().len() - input.rest().trim_start().len();
        input.read(blanks);
        let rest = input.rest();
        if rest.starts_with(['{', '[']) {
            self.state = State::Json;
            return None;
        }
        // Whose first word is no function is no call.
        let word = rest.split(|c: char| c.is_whitespace() || "<{(".contains(c)).next().unwrap_or("");
        if (word.len() < rest.len() || word.len() > NAME) && !out.tools.has(word) {
            return Some(Next::Broken);
        }
        match input.search(&[self.rules.key.0, self.rules.end]) {
            Found::At(bytes, 0) => {
                let name = input.rest()[..bytes].trim().to_owned();
                if !out.tools.has(&name) {
                    return Some(Next::Broken);
                }
                input.pass(bytes + self.rules.key.0.len());
                out.call(None, &name);
                (self.name, self.state) = (name, State::Key);
                None
            }
            Found::At(bytes, _) => Some(self.plain(bytes, self.rules.end.len(), input, out)),
            Found::None(_) if input.ends() => Some(self.plain(input.rest().len(), 0, input, out)),
            Found::None(_) => Some(Next::More),
        }
    }

    /// A call without tags.
    fn plain(&self, bytes: usize, end: usize, input: &mut Input, out: &mut Out) -> Next {
        let call = plain(&input.rest()[..bytes], out).filter(|_| self.rules.plain);
        input.read(bytes + end);
        give(call, out)
    }

    fn json(&self, input: &mut Input, out: &mut Out) -> Next {
        let (bytes, end) = match input.search(&[self.rules.end]) {
            Found::At(bytes, _) => (bytes, self.rules.end.len()),
            Found::None(_) if input.ends() => (input.rest().len(), 0),
            Found::None(_) => return Next::More,
        };
        let call = named(&input.rest()[..bytes], self.rules.plain, out);
        input.read(bytes + end);
        give(call, out)
    }

    fn inside(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        match input.search(&[self.rules.key.0, self.rules.end]) {
            Found::At(bytes, 0) => {
                input.pass(bytes + self.rules.key.0.len());
                self.state = State::Key;
                None
            }
            Found::None(bytes) if input.last != Some(Finish::Stop) => {
                input.pass(bytes);
                Some(Next::More)
            }
            found => {
                let (Found::At(bytes, _) | Found::None(bytes)) = found;
                let end = if matches!(found, Found::At(..)) { self.rules.end.len() } else { 0 };
                input.pass(bytes + end);
                out.arguments(if self.count == 0 { "{}" } else { "}" });
                out.end_call();
                Some(Next::Over)
            }
        }
    }

    /// Text up to a tag.
    fn upto(input: &mut Input, end: &str) -> Option<String> {
        let Found::At(bytes, _) = input.search(&[end]) else { return None };
        let text = input.rest()[..bytes].trim().to_owned();
        input.pass(bytes + end.len());
        Some(text)
    }
}

impl Calls for Pairs {
    fn step(&mut self, input: &mut Input, out: &mut Out) -> Next {
        loop {
            let next = match self.state {
                State::Name => self.name(input, out),
                State::Json => Some(self.json(input, out)),
                State::Inside => self.inside(input, out),
                State::Key => Self::upto(input, self.rules.key.1).map_or(Some(Next::More), |key| {
                    self.key = key;
                    self.state = State::BeforeValue;
                    None
                }),
                State::BeforeValue => Self::upto(input, self.rules.value.0).map_or(Some(Next::More), |_| {
                    self.state = State::Value;
                    None
                }),
                State::Value => Self::upto(input, self.rules.value.1).map_or(Some(Next::More), |text| {
                    let value = Values::Literal.json(&text, out.tools.parameter(&self.name, &self.key));
                    let comma = if self.count == 0 { "{" } else { ", " };
                    out.arguments(&format!("{comma}{}: {value}", json::quote(&self.key)));
                    self.count += 1;
                    self.state = State::Inside;
                    None
                }),
            };
            if let Some(next) = next {
                return next;
            }
        }
    }
}

fn give(call: Option<(String, String)>, out: &mut Out) -> Next {
    let Some((name, arguments)) = call.filter(|(name, _)| out.tools.has(name)) else { return Next::Broken };
    out.whole_call(None, &name, &arguments);
    Next::Over
}

/// `f {json}`, `f k=v`, `f`.
fn plain(text: &str, out: &Out) -> Option<(String, String)> {
    let text = text.trim();
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Some((name.to_owned(), "{}".into()));
    }
    let arguments = match guess(rest) {
        json if json.starts_with('{') => typed(name, &serde_json::from_str(&json).ok()?, out),
        _ => words(name, rest, out).unwrap_or_else(|| format!("{{\"raw\": {}}}", json::quote(rest))),
    };
    Some((name.to_owned(), arguments))
}

/// A call as a JSON object, in one of the shapes that are seen.
fn named(text: &str, typing: bool, out: &Out) -> Option<(String, String)> {
    let call = match serde_json::from_str(&json::value(text)?).ok()? {
        Value::Object(call) => call,
        Value::Array(calls) => calls.into_iter().next()?.as_object()?.clone(),
        _ => return None,
    };
    let arguments_of = |object: &Map<String, Value>| object.get("arguments").filter(|a| !a.is_null()).cloned();
    let mut arguments = arguments_of(&call);
    let mut name = call.get("name").or_else(|| call.get("function"));
    if let Some(Value::Object(tool)) = call.get("tool").or(name) {
        arguments = arguments.or_else(|| arguments_of(tool));
        name = tool.get("name");
    }
    let name = name?.as_str()?.to_owned();
    let arguments = match arguments {
        Some(Value::String(text)) => serde_json::from_str(&guess(&text)).ok()?,
        Some(arguments) => arguments,
        None => Value::Object(Map::new()),
    };
    let object = arguments.as_object()?;
    let json = if typing { typed(&name, object, out) } else { arguments.to_string() };
    Some((name, json))
}

/// Arguments, of which texts become what they spell unless the schema says `string`, and all becomes text where it does.
fn typed(name: &str, arguments: &Map<String, Value>, out: &Out) -> String {
    let pair = |(key, value): (&String, &Value)| {
        let schema = out.tools.parameter(name, key);
        let value = match value {
            Value::String(text) => Values::Literal.json(text, schema),
            // What should be a string is one that spells it.
            value if !value.is_null() && is_string(schema) => json::quote(&value.to_string()),
            value => value.to_string(),
        };
        format!("{}: {value}", json::quote(key))
    };
    format!("{{{}}}", arguments.iter().map(pair).collect::<Vec<_>>().join(", "))
}

/// Words `k=v`, as a shell splits them.
fn words(name: &str, text: &str, out: &Out) -> Option<String> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            break;
        }
        let (mut word, mut quote) = (String::new(), None);
        while let Some(c) = chars.next_if(|c| quote.is_some() || !c.is_whitespace()) {
            match (quote, c) {
                (Some(q), c) if q == c => quote = None,
                (None, '"' | '\'') => quote = Some(c),
                (None, '\\') => word.push(chars.next()?),
                (Some('"'), '\\') => match chars.next()? {
                    c @ ('"' | '\\') => word.push(c),
                    c => word.extend(['\\', c]),
                },
                _ => word.push(c),
            }
        }
        let (key, value) = word.split_once('=').filter(|_| quote.is_none())?;
        let key = Some(key.trim()).filter(|key| !key.is_empty())?;
        let value = Values::Literal.json(value, out.tools.parameter(name, key));
        pairs.push(format!("{}: {value}", json::quote(key)));
    }
    Some(format!("{{{}}}", pairs.join(", ")))
}
