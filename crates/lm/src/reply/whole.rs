//! Calls that are read when they are whole: Gemma's `call:f{k:<|"|>text<|"|>,n:1}`, and Python's `[f(a=1, b="x")]`.

use super::input::{Found, Input};
use super::json;
use super::literal;
use super::out::Out;
use super::{Calls, Next};

/// Values inside values.
const DEPTH: usize = 64;

/// Names of functions, and their arguments as JSON.
type Named = Vec<(String, String)>;

/// What ends the calls, and what they are.
pub(super) struct Rules {
    pub(super) end: &'static str,
    pub(super) parse: fn(&str) -> Option<Named>,
}

/// Reads calls up to their end.
pub(super) struct Whole(pub(super) &'static Rules);

impl Calls for Whole {
    fn step(&mut self, input: &mut Input, out: &mut Out) -> Next {
        let (bytes, end) = match input.search(&[self.0.end]) {
            Found::At(bytes, _) => (bytes, self.0.end.len()),
            Found::None(_) if input.ends() => (input.rest().len(), 0),
            Found::None(_) => return Next::More,
        };
        let calls = (self.0.parse)(&input.rest()[..bytes]);
        input.read(bytes + end);
        match calls.filter(|calls| calls.iter().all(|(name, _)| out.tools.has(name))) {
            Some(calls) if !calls.is_empty() => {
                calls.iter().for_each(|(name, arguments)| out.whole_call(None, name, arguments));
                Next::Over
            }
            _ => Next::Broken,
        }
    }
}

/// Python's calls.
pub(super) fn python(text: &str) -> Option<Named> {
    literal::calls(text)
}

/// Gemma 4's calls.
pub(super) fn gemma4(text: &str) -> Option<Named> {
    gemma(text, "<|\"|>")
}

/// FunctionGemma's calls.
pub(super) fn function_gemma(text: &str) -> Option<Named> {
    gemma(text, "<escape>")
}

fn gemma(text: &str, quote: &'static str) -> Option<Named> {
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("call:") {
        rest = &rest[at + 5..];
        let end = rest.find('{')?;
        let name = rest[..end].trim();
        let mut braces = Braces { rest: &rest[end..], quote };
        calls.push((name.to_owned(), braces.value(DEPTH)?));
        rest = braces.rest;
    }
    Some(calls)
}

/// JSON whose keys stand alone and whose strings have quotes of their own.
struct Braces<'a> {
    rest: &'a str,
    quote: &'static str,
}

impl<'a> Braces<'a> {
    fn split(&mut self, at: usize) -> &'a str {
        let (word, rest) = self.rest.split_at(at);
        self.rest = rest;
        word
    }

    fn take(&mut self, c: char) -> Option<()> {
        self.rest = self.rest.trim_start().strip_prefix(c)?;
        Some(())
    }

    /// A string in quotes of either kind.
    fn string(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix(self.quote) {
            let (text, rest) = rest.split_once(self.quote)?;
            self.rest = rest;
            return Some(json::quote(text));
        }
        let inner = self.rest.strip_prefix('"')?;
        let mut escaped = false;
        let end = inner.bytes().position(|b| {
            let ends = b == b'"' && !escaped;
            escaped = b == b'\\' && !escaped;
            ends
        })?;
        let text = json::value(&self.rest[..end + 2])?;
        self.split(end + 2);
        Some(text)
    }

    fn value(&mut self, depth: usize) -> Option<String> {
        let depth = depth.checked_sub(1)?;
        if let Some(text) = self.string() {
            return Some(text);
        }
        let (end, object) = match self.rest.chars().next()? {
            '{' => ('}', true),
            '[' => (']', false),
            _ => {
                let word = self.rest.find([',', '}', ']', '\n']).unwrap_or(self.rest.len());
                let word = self.split(word).trim();
                return Some(json::value(word).unwrap_or_else(|| json::quote(word)));
            }
        };
        self.split(1);
        let mut items: Vec<String> = Vec::new();
        let mut comma = true;
        while self.take(end).is_none() {
            if !comma {
                return None;
            }
            let key = match object {
                true => {
                    let key = match self.string() {
                        Some(key) => key,
                        None => json::quote(self.rest.find(':').map(|at| self.split(at).trim())?),
                    };
                    self.take(':')?;
                    format!("{key}: ")
                }
                false => String::new(),
            };
            items.push(format!("{key}{}", self.value(depth)?));
            comma = self.take(',').is_some();
        }
        let items = items.join(", ");
        Some(if object { format!("{{{items}}}") } else { format!("[{items}]") })
    }
}
