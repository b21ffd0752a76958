//! gpt-oss's channels: `<|channel|>analysis<|message|>` thinks, `final` says, `to=functions.f` calls.

use super::input::{Found, Input};
use super::json::Json;
use super::objects::stream;
use super::out::Out;
use super::{Calls, Next};
use crate::tokenizer::Tokenizer;

/// What ends a message.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>"];
/// Of these, so many are not the beginning of the next.
const LAST: usize = 3;
/// What a header begins with.
const HEADS: [&str; 5] = ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "to="];
/// Bytes of the longest header.
const HEADER: usize = 512;
/// Stands between two messages of a kind.
const GAP: &str = "\n\n";

/// Reads messages.
pub(super) struct Harmony {
    state: State,
    /// What the prompt has of the header.
    begun: String,
    /// What the message before was.
    before: Option<Kind>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Reasoning,
    Text,
}

enum State {
    Header,
    /// A message; whether some of it came.
    Body(Kind, bool),
    /// A call of a function, before its arguments.
    Call(String),
    Arguments(Json),
    /// After arguments.
    After,
}

impl Harmony {
    /// After `prompt`, which may have begun a message.
    pub(super) fn new(tokenizer: &Tokenizer, prompt: &[u32]) -> Harmony {
        let start = tokenizer.token_id("<|start|>");
        let begun = prompt.iter().rposition(|&id| Some(id) == start).map_or(&[][..], |at| &prompt[at + 1..]);
        let begun =
            if begun.len() > HEADER { String::new() } else { tokenizer.decode(begun, false).unwrap_or_default() };
        let state = match begun.split_once("<|message|>") {
            // The prompt has ended a message, or begun one.
            Some((_, body)) if ENDS.iter().any(|end| body.contains(end)) => State::Header,
            Some((header, _)) => match parse(header) {
                (_, Some("analysis")) => State::Body(Kind::Reasoning, false),
                _ => State::Body(Kind::Text, false),
            },
            None => State::Header,
        };
        Harmony { state, begun: begun.split("<|message|>").next().unwrap_or("").to_owned(), before: None }
    }

    fn header(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let rest = input.rest().trim_start();
        let blanks = input.rest().len() - rest.len();
        let known = HEADS.iter().any(|head| rest.starts_with(head));
        let maybe = HEADS.iter().any(|head| head.starts_with(rest));
        match (known, input.ends()) {
            _ if rest.is_empty() && input.ends() => return Some(Next::Over),
            _ if blanks > HEADER => {
                self.state = State::Body(Kind::Text, false);
                return None;
            }
            (false, false) if maybe => return Some(Next::More),
            (false, _) if self.begun.contains("<|channel|>") => {}
            (false, _) => {
                // No header: text.
                self.state = State::Body(Kind::Text, false);
                return None;
            }
            _ => {}
        }
        match input.search(&["<|message|>"]) {
            Found::At(bytes, _) if bytes <= HEADER => {
                let header = std::mem::take(&mut self.begun) + &input.rest()[blanks..bytes];
                input.read(bytes + "<|message|>".len());
                let (recipient, channel) = parse(&header);
                let function = recipient.map(|r| r.strip_prefix("functions.").unwrap_or(r));
                self.state = match (function, channel) {
                    (Some(name), _) if out.tools.has(name) => State::Call(name.to_owned()),
                    (Some("assistant" | "all" | "user") | None, Some("analysis")) => {
                        State::Body(Kind::Reasoning, false)
                    }
                    (Some("assistant" | "all" | "user") | None, _) => State::Body(Kind::Text, false),
                    _ => {
                        self.unknown(input, out);
                        return None;
                    }
                };
                if !matches!(self.state, State::Call(_)) {
                    input.commit();
                }
                None
            }
            Found::None(bytes) if bytes <= HEADER && !input.ends() => Some(Next::More),
            _ => {
                let head = HEADS.iter().find(|head| input.rest()[blanks..].starts_with(*head));
                input.read(blanks + head.map_or(0, |head| head.len()));
                self.unknown(input, out);
                None
            }
        }
    }

    /// What was read is no message that anybody understands: it is text, and so is what follows.
    fn unknown(&mut self, input: &mut Input, out: &mut Out) {
        if input.pending().contains(" to=") {
            out.refuse_call();
        }
        self.say(Kind::Text, true, input.pending(), out);
        input.commit();
        self.state = State::Body(Kind::Text, true);
    }

    fn say(&mut self, kind: Kind, begun: bool, text: &str, out: &mut Out) {
        if text.is_empty() {
            return;
        }
        let gap = if !begun && self.before == Some(kind) { GAP } else { "" };
        self.before = Some(kind);
        match kind {
            Kind::Reasoning => {
                out.reasoning(gap);
                out.reasoning(text);
            }
            Kind::Text => {
                out.text(gap);
                out.text(text);
            }
        }
    }

    fn body(&mut self, kind: Kind, begun: bool, input: &mut Input, out: &mut Out) -> Option<Next> {
        let found = input.search(&ENDS);
        let (Found::At(bytes, _) | Found::None(bytes)) = found;
        self.say(kind, begun, &input.rest()[..bytes], out);
        input.pass(bytes);
        self.state = State::Body(kind, begun || bytes > 0);
        let Found::At(_, which) = found else {
            return Some(if input.ends() { Next::Over } else { Next::More });
        };
        self.end(which, input);
        None
    }

    /// A message ends with a marker.
    fn end(&mut self, which: usize, input: &mut Input) {
        if which < LAST {
            input.pass(ENDS[which].len());
        }
        input.commit();
        self.state = State::Header;
    }

    fn call(&mut self, input: &mut Input, out: &mut Out) -> Option<Next> {
        let blanks = input.rest().len() - input.rest().trim_start().len();
        input.read(blanks);
        match input.rest().chars().next() {
            None if !input.ends() => return Some(Next::More),
            Some('{') => {
                let State::Call(name) = std::mem::replace(&mut self.state, State::Arguments(Json::new())) else {
                    return None;
                };
                input.commit();
                self.before = None;
                out.call(None, &name);
            }
            _ => self.unknown(input, out),
        }
        None
    }

    fn after(&mut self, input: &mut Input) -> Option<Next> {
        let blanks = input.rest().len() - input.rest().trim_start().len();
        input.pass(blanks);
        match input.begins(&ENDS) {
            _ if input.rest().is_empty() => return Some(if input.ends() { Next::Over } else { Next::More }),
            Found::At(_, which) => self.end(which, input),
            Found::None(1) => return Some(Next::More),
            Found::None(_) => self.state = State::Body(Kind::Text, false),
        }
        None
    }
}

impl Calls for Harmony {
    fn step(&mut self, input: &mut Input, out: &mut Out) -> Next {
        loop {
            let next = match &mut self.state {
                State::Header => self.header(input, out),
                State::Body(kind, begun) => {
                    let (kind, begun) = (*kind, *begun);
                    self.body(kind, begun, input, out)
                }
                State::Call(_) => self.call(input, out),
                State::Arguments(json) => match stream(json, input, out) {
                    None => {
                        out.end_call();
                        self.state = State::After;
                        None
                    }
                    Some(Next::Broken) => {
                        self.state = State::Body(Kind::Text, true);
                        None
                    }
                    more => more,
                },
                State::After => self.after(input),
            };
            match next {
                Some(next) => return next,
                None if out.is_over() => return Next::More,
                None => {}
            }
        }
    }

    fn reasons(&self) -> bool {
        matches!(self.state, State::Body(Kind::Reasoning, _))
    }
}

/// The recipient and the channel of a header.
fn parse(header: &str) -> (Option<&str>, Option<&str>) {
    let word = |text: &'_ str| text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
    let after = |mark: &str| {
        let (_, text) = header.split_once(mark)?;
        let text = text.trim_start();
        Some(&text[..word(text)])
    };
    (after("to="), after("<|channel|>"))
}
