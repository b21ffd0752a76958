//! Calls whose arguments are JSON: objects that name the function, or a head that names it before the arguments.

use serde_json::Value;

use super::input::{Found, Input};
use super::json::{self, Event, Json};
use super::out::Out;
use super::{Calls, Next};

/// How calls of a format stand in the text.
pub(super) struct Rules {
    /// What ends the calls; nothing where only other text does.
    pub(super) end: &'static [&'static str],
    /// What may stand between calls, besides blanks, commas, semicolons and square brackets.
    pub(super) between: &'static [&'static str],
    /// What text before the arguments names, where the format has it; the text is whole, or goes on.
    pub(super) head: Option<fn(&str, bool) -> Heading>,
    /// No marker begins the calls, so an object of other keys is text.
    pub(super) bare: bool,
    /// A call comes out when it is whole: its id may come after the arguments.
    pub(super) holds: bool,
}

/// What stands before arguments.
pub(super) struct Head {
    pub(super) id: Option<String>,
    pub(super) name: String,
}

/// Whether a text names a call.
pub(super) enum Heading {
    Is(Head),
    /// More text must tell.
    MayBe,
    Not,
}

/// Bytes of the longest head.
const HEAD: usize = 1024;

/// Keys that calls have, and what they hold.
const KEYS: [(&str, Key); 9] = [
    ("name", Key::Name),
    ("tool_name", Key::Name),
    ("function", Key::Name),
    ("arguments", Key::Arguments),
    ("parameters", Key::Arguments),
    ("id", Key::Id),
    ("tool_call_id", Key::Id),
    ("type", Key::Other),
    ("tool", Key::Other),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Key {
    Name,
    Arguments,
    Id,
    Other,
}

/// Reads calls with JSON arguments.
pub(super) struct Objects {
    rules: &'static Rules,
    state: State,
    /// A call begins here.
    begins: bool,
    /// A call was read.
    any: bool,
}

enum State {
    Between,
    /// In an object that names the call.
    Object(Box<Object>),
    /// In the arguments of a call that has begun.
    Arguments(Json),
}

impl Objects {
    pub(super) fn new(rules: &'static Rules) -> Objects {
        Objects { rules, state: State::Between, begins: false, any: false }
    }

    fn between(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let over = if self.any { Next::Over } else { Next::Broken };
        loop {
            let waits = match (input.begins(self.rules.end), input.begins(self.rules.between)) {
                (Found::None(1), _) | (_, Found::None(1)) => true,
                (Found::At(_, which), _) => {
                    input.read(self.rules.end[which].len());
                    return Some(over);
                }
                (_, Found::At(_, which)) => {
                    input.read(self.rules.between[which].len());
                    continue;
                }
                _ => false,
            };
            return match input.rest().chars().next() {
                None if input.ends() => Some(over),
                None => Some(Next::More),
                Some(_) if waits => Some(Next::More),
                Some('{') => {
                    self.state = State::Object(Box::new(Object::new()));
                    self.begins = true;
                    None
                }
                Some(c) if c.is_whitespace() || ",;[]".contains(c) => {
                    input.read(c.len_utf8());
                    if c == ']' && self.any {
                        // The end of a list belongs to it, whatever follows.
                        input.commit();
                    }
                    continue;
                }
                Some(_) => match self.rules.head {
                    Some(head) => self.head(head, input, out),
                    None => Some(Next::Broken),
                },
            };
        }
    }

    /// Reads what names a call: all before a brace.
    fn head(&mut self, head: fn(&str, bool) -> Heading, input: &mut Input, out: &mut Out) -> Option<Next> {
        let rest = input.rest();
        let limit = (0..=HEAD.min(rest.len())).rev().find(|&i| rest.is_char_boundary(i)).unwrap_or(0);
        let at = rest[..limit].find('{');
        let Head { id, name } = match head(&rest[..at.unwrap_or(limit)], at.is_some()) {
            Heading::Is(head) if out.tools.has(&head.name) => head,
            Heading::MayBe if !input.ends() && rest.len() < HEAD => {
                let ended = self.rules.end.iter().any(|end| rest.contains(end));
                return Some(if ended { Next::Broken } else { Next::More });
            }
            _ => return Some(Next::Broken),
        };
        input.read(at.unwrap_or(0));
        input.commit();
        out.call(id, &name);
        self.state = State::Arguments(Json::new());
        self.begins = true;
        None
    }
}

impl Calls for Objects {
    fn step(&mut self, input: &mut Input, out: &mut Out) -> Next {
        loop {
            let rules = self.rules;
            let next = match &mut self.state {
                State::Between => self.between(input, out),
                State::Object(object) => object.step(rules, input, out),
                State::Arguments(json) => stream(json, input, out),
            };
            match next {
                Some(next) => return next,
                // A call begins: read it.
                None if !matches!(self.state, State::Between) && !std::mem::take(&mut self.begins) => {
                    // A call is whole: look for the next.
                    out.end_call();
                    input.commit();
                    self.any = true;
                    self.state = State::Between;
                }
                None => {}
            }
            if out.is_over() {
                return Next::More;
            }
        }
    }
}

/// Gives out JSON while it is read; nothing when it is whole.
pub(super) fn stream(json: &mut Json, input: &mut Input, out: &mut Out) -> Option<Next> {
    let mut piece = Vec::new();
    let mut read = 0;
    let mut fault = false;
    for &byte in input.rest().as_bytes() {
        let in_text = json.in_text();
        // Only the first byte of a character can be a fault.
        fault = json.add(byte).is_err();
        if fault {
            break;
        }
        json::put(&mut piece, byte, in_text);
        read += 1;
        if json.is_whole() {
            break;
        }
    }
    input.pass(read);
    out.arguments(&String::from_utf8_lossy(&piece));
    if fault {
        out.break_call();
        return Some(Next::Broken);
    }
    if json.is_whole() { None } else { Some(Next::More) }
}

/// An object that names a function and has its arguments.
struct Object {
    json: Json,
    /// The arguments, where they come out while they are read.
    inner: Option<Json>,
    /// Where what is being read begins, in what is pending.
    from: usize,
    key: Key,
    keys: usize,
    id: Option<String>,
    name: Option<String>,
    /// The arguments, where they wait for the name.
    arguments: Option<String>,
    /// The call has come out.
    came: bool,
}

impl Object {
    fn new() -> Object {
        let (json, key) = (Json::new(), Key::Other);
        Object { json, inner: None, from: 0, key, keys: 0, id: None, name: None, arguments: None, came: false }
    }

    /// Reads on; nothing when the call is whole.
    fn step(&mut self, rules: &Rules, input: &mut Input, out: &mut Out) -> Option<Next> {
        if let Some(inner) = &mut self.inner {
            if let Some(next) = stream(inner, input, out) {
                return Some(next);
            }
            self.inner = None;
            // To the outer object these were braces.
            let braces = self.json.add(b'{').is_ok() && self.json.add(b'}').is_ok();
            debug_assert!(braces, "arguments stand where a value may");
        }
        let base = input.pending().len();
        for i in 0..input.rest().len() {
            let byte = input.rest().as_bytes()[i];
            if byte == b'{'
                && self.key == Key::Arguments
                && self.json.wants_value()
                && !rules.holds
                && !self.came
                && let Some(name) = &self.name
            {
                input.read(i);
                input.commit();
                out.call(self.id.take(), name);
                self.came = true;
                self.inner = Some(Json::new());
                return self.step(rules, input, out);
            }
            let Ok(event) = self.json.add(byte) else {
                input.read(i);
                return self.end(out);
            };
            let end = match event {
                Event::Key | Event::Value => {
                    self.from = base + i;
                    continue;
                }
                Event::KeyEnd => {
                    let text = json::unquote(input.piece(self.from, base + i + 1));
                    let known = KEYS.iter().find(|key| text.as_deref() == Some(key.0));
                    if rules.bare && self.keys == 0 && known.is_none() {
                        input.read(i);
                        return Some(Next::Broken);
                    }
                    self.keys += 1;
                    self.key = known.map_or(Key::Other, |key| key.1);
                    continue;
                }
                Event::ValueEnd => base + i + 1,
                Event::ValueOver | Event::Last => base + i,
                Event::None => continue,
                Event::End => {
                    input.read(i + 1);
                    return self.end(out);
                }
            };
            if !self.value(input.piece(self.from, end), out) {
                input.read(i);
                return Some(Next::Broken);
            }
            if event == Event::Last {
                input.read(i + 1);
                return self.end(out);
            }
        }
        input.read(input.rest().len());
        if input.ends() { self.end(out) } else { Some(Next::More) }
    }

    /// Takes the value of a key; false where it cannot be a call's.
    fn value(&mut self, text: &str, out: &Out) -> bool {
        match (self.key, text.as_bytes()[0]) {
            _ if self.came => {}
            (Key::Name, b'"') => {
                self.name = json::unquote(text).filter(|name| out.tools.has(name));
                return self.name.is_some();
            }
            (Key::Id, b'"') => self.id = json::unquote(text),
            (Key::Arguments, _) => {
                self.arguments = arguments(text);
                return self.arguments.is_some();
            }
            (Key::Name | Key::Other, b'{') => return self.inside(text, out),
            _ => {}
        }
        true
    }

    /// Takes an object with name and arguments inside the object.
    fn inside(&mut self, text: &str, out: &Out) -> bool {
        let Ok(Value::Object(inner)) = serde_json::from_str(&json::value(text).unwrap_or_default()) else {
            return true;
        };
        if let Some(Value::String(name)) = inner.get("name") {
            self.name = Some(name.clone()).filter(|name| out.tools.has(name));
            if self.name.is_none() {
                return false;
            }
        }
        if let Some(given) = inner.get("arguments").or_else(|| inner.get("parameters")) {
            self.arguments = arguments(&given.to_string());
            return self.arguments.is_some();
        }
        true
    }

    /// The object ends here, or what follows is not its.
    fn end(&mut self, out: &mut Out) -> Option<Next> {
        match &self.name {
            _ if self.came => None,
            // An object that breaks off before its arguments is no call.
            Some(_) if self.arguments.is_none() && !self.json.is_whole() => Some(Next::Broken),
            Some(name) => {
                out.call(self.id.take(), name);
                out.arguments(self.arguments.as_deref().unwrap_or("{}"));
                None
            }
            None => Some(Next::Broken),
        }
    }
}

/// Arguments as an object, a JSON text of one, or nothing.
fn arguments(text: &str) -> Option<String> {
    match text.as_bytes()[0] {
        b'{' => json::object(text),
        b'"' => match json::unquote(&json::value(text)?)? {
            text if text.trim().is_empty() => Some("{}".into()),
            text => json::object(&text),
        },
        b'n' => Some("{}".into()),
        _ => None,
    }
}
