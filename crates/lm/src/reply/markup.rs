//! Calls whose parameters stand in tags: `<invoke name="f"><parameter name="p">value</parameter></invoke>` and its kin.

use super::input::{Found, Input};
use super::json;
use super::out::Out;
use super::values::Values;
use super::{Calls, Next};
use crate::engine::Finish;

/// The tags of a format.
pub(super) struct Rules {
    /// What ends the calls, where a marker of its own began them.
    pub(super) end: &'static [&'static str],
    /// What a call begins with, up to its name or its attributes.
    pub(super) call: &'static str,
    /// What ends it.
    pub(super) call_end: &'static str,
    /// What a parameter begins with.
    pub(super) parameter: &'static str,
    /// What ends it.
    pub(super) parameter_end: &'static str,
    /// What ends a tag.
    pub(super) tag_end: &'static str,
    /// The attribute with the name of a function; without one the name stands alone, perhaps in quotes.
    pub(super) function: Option<&'static str>,
    /// The same for parameters.
    pub(super) key: Option<&'static str>,
    /// An attribute that says whether a value is a string, and what it says then; where it is not there it is one.
    pub(super) string: Option<(&'static str, &'static str)>,
    /// What surrounds all arguments as one JSON object.
    pub(super) object: Option<(&'static str, &'static str)>,
    /// What surrounds values that hold markup.
    pub(super) literal: Option<(&'static str, &'static str)>,
    /// What is taken away around a value.
    pub(super) trim: Trim,
    /// What a value is.
    pub(super) values: Values,
}

/// What is taken away around a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trim {
    Nothing,
    /// A newline on each side.
    Newline,
    Blanks,
}

impl Trim {
    fn of(self, text: &str) -> &str {
        match self {
            Trim::Nothing => text,
            Trim::Blanks => text.trim(),
            Trim::Newline => {
                let text = text.strip_prefix('\n').unwrap_or(text);
                text.strip_suffix('\n').unwrap_or(text)
            }
        }
    }
}

/// Bytes of the longest tag.
const TAG: usize = 1024;

/// Reads calls in tags.
pub(super) struct Markup {
    rules: &'static Rules,
    state: State,
    any: bool,
    name: String,
    /// Parameters that came.
    count: usize,
    key: String,
    values: Values,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Call,
    Inside,
    Parameter,
    /// At the beginning of a value.
    Begin,
    Value,
    /// A value that holds markup; after it.
    Literal,
    Object,
    /// The call ends with the tag that comes.
    After,
}

impl Markup {
    /// After `marker`.
    pub(super) fn new(rules: &'static Rules, marker: &str) -> Markup {
        let state = if marker == rules.call { State::Call } else { State::Between };
        let (name, key) = (String::new(), String::new());
        Markup { rules, state, any: false, name, count: 0, key, values: rules.values }
    }

    fn between(&mut self, input: &mut Input) -> Option<Next> {
        let over = if self.any { Next::Over } else { Next::Broken };
        let blanks = input.rest().len() - input.rest().trim_start().len();
        input.read(blanks);
        let begun = input.begins(&[self.rules.call]);
        match (input.begins(self.rules.end), begun) {
            _ if input.rest().is_empty() => Some(if input.ends() { over } else { Next::More }),
            (Found::None(1), _) | (_, Found::None(1)) => Some(Next::More),
            (Found::At(_, which), _) => {
                input.read(self.rules.end[which].len());
                Some(over)
            }
            (_, Found::At(..)) => {
                input.read(self.rules.call.len());
                self.state = State::Call;
                None
            }
            _ => Some(Next::Broken),
        }
    }

    /// The tag up to its end.
    fn tag(&self, input: &mut Input) -> Result<String, Next> {
        match input.search(&[self.rules.tag_end]) {
            Found::At(bytes, _) if bytes <= TAG => {
                let tag = input.rest()[..bytes].to_owned();
                input.read(bytes + self.rules.tag_end.len());
                Ok(tag)
            }
            Found::None(bytes) if bytes <= TAG && !input.ends() => Err(Next::More),
            _ => Err(Next::Broken),
        }
    }

    fn call(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let tag = match self.tag(input) {
            Ok(tag) => tag,
            Err(next) => return Some(next),
        };
        let Some(name) = name(&tag, self.rules.function).filter(|name| out.tools.has(name)) else {
            return Some(Next::Broken);
        };
        input.commit();
        out.call(None, &name);
        (self.name, self.count, self.any, self.state) = (name, 0, true, State::Inside);
        None
    }

    /// Between the parameters of a call.
    fn inside(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let rules = self.rules;
        let object = rules.object.map_or("", |object| object.0);
        let mut markers = vec![rules.parameter, rules.call_end];
        markers.extend([object].iter().filter(|m| !m.is_empty()));
        let first = markers.len();
        markers.extend(rules.end);
        match input.search(&markers) {
            Found::None(bytes) => {
                // The model has ended, and has not written the last tag.
                if input.last == Some(Finish::Stop) {
                    input.read(input.rest().len());
                    self.end(out);
                    return Some(Next::Over);
                }
                input.pass(bytes);
                return Some(Next::More);
            }
            Found::At(bytes, which) => {
                let ends = which >= first;
                input.pass(bytes);
                if !ends {
                    input.pass(markers[which].len());
                }
                self.state = match which {
                    0 => State::Parameter,
                    2 if !ends => State::Object,
                    _ => {
                        self.end(out);
                        State::Between
                    }
                };
            }
        }
        None
    }

    fn end(&mut self, out: &mut Out) {
        out.arguments(if self.count == 0 { "{}" } else { "}" });
        out.end_call();
    }

    fn parameter(&mut self, input: &mut Input) -> Option<Next> {
        let tag = match self.tag(input) {
            Ok(tag) => tag,
            Err(next) => return Some(next),
        };
        let Some(key) = name(&tag, self.rules.key) else { return Some(Next::Broken) };
        self.values = self.rules.values;
        self.key = key;
        self.state = State::Begin;
        if let Some((attribute, yes)) = self.rules.string
            && attribute_of(&tag, attribute).is_none_or(|said| said == yes)
        {
            // Text, whatever the schema says.
            self.values = Values::Text;
        }
        input.commit();
        None
    }

    /// Whether a value holds markup.
    fn begin(&mut self, input: &mut Input) -> Option<Next> {
        self.state = State::Value;
        let (open, _) = self.rules.literal?;
        let blanks = input.rest().len() - input.rest().trim_start().len();
        let rest = &input.rest()[blanks..];
        if rest.starts_with(open) {
            input.pass(blanks + open.len());
            self.state = State::Literal;
        } else if open.starts_with(rest) && blanks < TAG && !input.ends() {
            self.state = State::Begin;
            return Some(Next::More);
        }
        None
    }

    fn value(&mut self, input: &mut Input, out: &mut Out, end: &str, trim: Trim) -> Option<Next> {
        let Found::At(bytes, _) = input.search(&[end]) else { return Some(Next::More) };
        let text = trim.of(&input.rest()[..bytes]);
        let value = self.values.json(text, out.tools.parameter(&self.name, &self.key));
        let comma = if self.count == 0 { "{" } else { ", " };
        out.arguments(&format!("{comma}{}: {value}", json::quote(&self.key)));
        self.count += 1;
        input.pass(bytes + end.len());
        self.state = State::Inside;
        None
    }

    /// All arguments as an object.
    fn object(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let end = self.rules.object.map_or("", |object| object.1);
        let Found::At(bytes, _) = input.search(&[end]) else { return Some(Next::More) };
        let text = &input.rest()[..bytes];
        let text = text.find(self.rules.tag_end).map_or("", |at| &text[at + self.rules.tag_end.len()..]);
        let Some(object) = json::object(text).filter(|_| self.count == 0) else { return Some(Next::Broken) };
        out.arguments(&object);
        out.end_call();
        input.pass(bytes + end.len());
        self.state = State::After;
        None
    }

    fn after(&mut self, input: &mut Input) -> Option<Next> {
        match input.search(&[self.rules.call_end]) {
            Found::At(bytes, _) => {
                input.pass(bytes + self.rules.call_end.len());
                self.state = State::Between;
                None
            }
            Found::None(bytes) => {
                input.pass(bytes);
                Some(if input.ends() { Next::Over } else { Next::More })
            }
        }
    }
}

impl Calls for Markup {
    fn step(&mut self, input: &mut Input, out: &mut Out) -> Next {
        loop {
            let next = match self.state {
                State::Between => self.between(input),
                State::Call => self.call(input, out),
                State::Inside => self.inside(input, out),
                State::Parameter => self.parameter(input),
                State::Begin => self.begin(input),
                State::Value => self.value(input, out, self.rules.parameter_end, self.rules.trim),
                State::Literal => self.value(input, out, self.rules.literal.map_or("", |l| l.1), Trim::Nothing),
                State::Object => self.object(input, out),
                State::After => self.after(input),
            };
            match next {
                // A tag that is cut off is like a value that is.
                Some(Next::Broken) if out.in_call() && input.ends() => return Next::More,
                Some(Next::Broken) => {
                    out.break_call();
                    return Next::Broken;
                }
                Some(next) => return next,
                None if out.is_over() => return Next::More,
                None => {}
            }
        }
    }
}

/// The name in a tag.
fn name(tag: &str, attribute: Option<&str>) -> Option<String> {
    let name = match attribute {
        Some(attribute) => attribute_of(tag, attribute)?,
        None => {
            let tag = tag.trim();
            let inner = |q: char| tag.strip_prefix(q)?.strip_suffix(q);
            inner('"').or_else(|| inner('\'')).unwrap_or(tag).to_owned()
        }
    };
    (!name.is_empty()).then_some(name)
}

/// The value of an attribute, in quotes or bare.
fn attribute_of(tag: &str, attribute: &str) -> Option<String> {
    let mut rest = tag;
    loop {
        let (before, after) = rest.split_once('=')?;
        let word = before.trim_end().rsplit(|c: char| c.is_whitespace()).next();
        let after = after.trim_start();
        let (value, next) = match after.chars().next() {
            Some(quote @ ('"' | '\'')) => after[1..].split_once(quote)?,
            _ => after.split_at(after.find(char::is_whitespace).unwrap_or(after.len())),
        };
        if word == Some(attribute) {
            return Some(value.replace("&quot;", "\"").replace("&amp;", "&"));
        }
        rest = next;
    }
}
