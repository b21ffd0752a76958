//! Text to parts: what is reasoning, what is said, where calls begin.

use super::format::Format;
use super::harmony::Harmony;
use super::input::{Found, Input};
use super::out::{Out, Tools};
use super::{Calls, Next, ReplyOptions, Taken};
use crate::engine::Finish;
use crate::tokenizer::Tokenizer;

/// So many newlines belong to a marker of thinking after them.
const NEWLINES: usize = 64;

/// What a marker in the text begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Thinking,
    Calls,
    /// Nothing: it is dropped.
    Nothing,
}

enum State {
    Text(Gap),
    /// Whether any of it came.
    Reasoning(bool),
    Calls(Box<dyn Calls>),
}

/// What comes before text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// Nothing, it goes on.
    None,
    /// The beginning: a call may stand here, in some formats without a marker, after blanks of so many bytes.
    Begin(usize),
    /// Newlines of a marker of thinking.
    Thinking,
    /// Blanks of so many bytes after calls, which are text if text follows.
    Calls(usize),
}

/// Reads the text of a reply.
pub(super) struct Reader {
    input: Input,
    out: Out,
    state: State,
    format: Option<Format>,
    marks: Vec<Mark>,
    markers: Vec<String>,
    thinking_end: Vec<String>,
}

impl Reader {
    pub(super) fn new(tokenizer: &Tokenizer, prompt: &[u32], options: ReplyOptions) -> Reader {
        let raw = options.raw;
        let thinking = tokenizer.thinking().filter(|_| !raw);
        let tools = Tools::new(&options.tools);
        let format = if raw { None } else { Format::of(tokenizer) };
        let mut reader = Reader {
            input: Input::default(),
            state: State::Text(Gap::None),
            format: format.filter(|_| !tools.is_empty()),
            out: Out::new(tools, options.stop, options.single_call),
            marks: Vec::new(),
            markers: Vec::new(),
            thinking_end: Vec::new(),
        };
        if let Some(thinking) = thinking {
            reader.mark(&thinking.start, Mark::Thinking);
            reader.thinking_end.push(thinking.end.clone());
        }
        for marker in format.into_iter().flat_map(Format::silent) {
            reader.mark(marker, Mark::Nothing);
        }
        for marker in reader.format.into_iter().flat_map(Format::begins) {
            reader.mark(marker, Mark::Calls);
        }
        reader.state = match thinking {
            Some(thinking) if thinking.is_open(prompt) => State::Reasoning(false),
            _ if format == Some(Format::Harmony) => State::Calls(Box::new(Harmony::new(tokenizer, prompt))),
            _ => reader.begin(),
        };
        reader
    }

    fn mark(&mut self, marker: &str, mark: Mark) {
        self.markers.push(marker.to_owned());
        self.marks.push(mark);
    }

    pub(super) fn out(&self) -> &Out {
        &self.out
    }

    /// Whether the next text is reasoning.
    pub(super) fn reasons(&self) -> bool {
        match &self.state {
            State::Text(_) => false,
            State::Reasoning(_) => true,
            State::Calls(calls) => calls.reasons(),
        }
    }

    pub(super) fn add(&mut self, text: &str, finish: Option<Finish>) -> Taken {
        self.input.push(text);
        self.input.last = finish;
        while !self.out.is_over() && self.step() {}
        if finish.is_some() {
            self.out.flush();
        }
        self.out.take()
    }

    /// The state at the beginning of what is said.
    fn begin(&self) -> State {
        State::Text(if self.format.is_some() { Gap::Begin(0) } else { Gap::None })
    }

    /// Reads on; false when there is nothing to do without more text.
    fn step(&mut self) -> bool {
        match &mut self.state {
            State::Text(gap) => {
                let gap = *gap;
                self.text(gap)
            }
            State::Reasoning(begun) => {
                let begun = *begun;
                self.reasoning(begun)
            }
            State::Calls(calls) => {
                let next = calls.step(&mut self.input, &mut self.out);
                match next {
                    Next::More if !self.input.ends() => return false,
                    // A call that is cut off stays as it is.
                    Next::More if self.out.in_call() => {
                        self.input.read(self.input.rest().len());
                        self.input.commit();
                        return false;
                    }
                    Next::Over => {
                        self.input.commit();
                        self.state = State::Text(Gap::Calls(0));
                    }
                    Next::More | Next::Broken => {
                        let text = self.input.pending();
                        let mut marks = self.markers.iter().zip(&self.marks).filter(|(_, k)| **k == Mark::Calls);
                        // What the limit cut off might have become a call.
                        let cut = self.input.ends() && self.input.last == Some(Finish::Length);
                        if !cut && marks.any(|(m, _)| text.trim_start().starts_with(m.as_str())) {
                            self.out.refuse_call();
                        }
                        self.out.text(text);
                        self.input.commit();
                        self.state = State::Text(Gap::None);
                    }
                }
                true
            }
        }
    }

    /// Reads blanks before text.
    fn gap(&mut self, gap: Gap) -> bool {
        match gap {
            Gap::None => return true,
            Gap::Thinking => {
                let rest = self.input.rest();
                self.input.pass(rest.len() - rest.trim_start_matches(['\n', '\r']).len());
                if self.input.rest().is_empty() {
                    return false;
                }
                self.state = self.begin();
            }
            Gap::Begin(known) | Gap::Calls(known) => {
                let rest = self.input.rest();
                let blanks = rest.len() - rest[known..].trim_start().len();
                let wait = match gap {
                    Gap::Begin(_) => Gap::Begin(blanks),
                    _ => Gap::Calls(blanks),
                };
                self.state = State::Text(wait);
                let next = self.input.search(&self.markers);
                let ends = self.input.ends();
                match (next, gap) {
                    // Blanks around calls belong to them.
                    (Found::At(at, which), _) if at == blanks && self.marks[which] == Mark::Calls => {
                        self.input.read(blanks);
                        return self.marker(which);
                    }
                    (Found::At(..), _) => {}
                    (Found::None(_), Gap::Calls(_)) if ends && blanks == self.input.rest().len() => {
                        self.input.pass(blanks);
                    }
                    (Found::None(at), _) if at <= blanks && !ends => return false,
                    (_, Gap::Begin(_)) => {
                        if let Some(format) = self.format
                            && format.bare().is_some_and(|open| self.input.rest()[blanks..].starts_with(open))
                        {
                            self.input.read(blanks);
                            self.state = State::Calls(format.calls(""));
                            return true;
                        }
                    }
                    _ => {}
                }
                self.state = State::Text(Gap::None);
            }
        }
        true
    }

    fn text(&mut self, gap: Gap) -> bool {
        if gap != Gap::None {
            return self.gap(gap);
        }
        let found = self.input.search(&self.markers);
        let (Found::At(bytes, _) | Found::None(bytes)) = found;
        self.out.text(&self.input.rest()[..bytes]);
        self.input.pass(bytes);
        let Found::At(_, which) = found else { return false };
        self.marker(which)
    }

    /// Reads a marker.
    fn marker(&mut self, which: usize) -> bool {
        self.input.read(self.markers[which].len());
        match (self.marks[which], self.format) {
            (Mark::Calls, Some(format)) => self.state = State::Calls(format.calls(&self.markers[which])),
            (Mark::Thinking, _) => {
                self.input.commit();
                self.state = State::Reasoning(false);
            }
            _ => self.input.commit(),
        }
        true
    }

    fn reasoning(&mut self, begun: bool) -> bool {
        let newline = ['\n', '\r'];
        if !begun {
            let rest = self.input.rest();
            self.input.pass(rest.len() - rest.trim_start_matches(newline).len());
            self.state = State::Reasoning(!self.input.rest().is_empty());
            if self.input.rest().is_empty() {
                return false;
            }
        }
        let found = self.input.search(&self.thinking_end);
        let (Found::At(bytes, _) | Found::None(bytes)) = found;
        let text = &self.input.rest()[..bytes];
        let newlines = text.bytes().rev().take(NEWLINES).take_while(|b| newline.contains(&char::from(*b))).count();
        self.out.reasoning(&text[..bytes - newlines]);
        self.input.pass(bytes - newlines);
        let Found::At(_, which) = found else { return false };
        self.input.read(newlines + self.thinking_end[which].len());
        self.input.commit();
        self.state = State::Text(Gap::Thinking);
        true
    }
}
