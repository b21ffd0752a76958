//! Replies as they are written: reasoning, text, and calls of tools, told apart while tokens come.
//!
//! [`Reply`] turns tokens into [`Part`]s. What a model writes around its thinking and its calls is markup of the model's
//! own ([`Format`]): it is read, and does not come out. Each format is a row of data for one of a few machines, which
//! read text in one direction and give out what can no longer change:
//!
//! * `objects`: calls whose arguments are JSON; their text comes out while it is written.
//! * `markup`, `pairs`: a parameter comes out when it ends, as JSON of the type that the tool's schema names.
//! * `whole`: a call comes out when it ends.
//! * `harmony`: gpt-oss's channels.
//!
//! Nothing is lost: a call that cannot be read, or of a function that nobody offered, comes out as the text it is. What
//! is held back is what may be the beginning of a marker or a stop text, a call that cannot come out yet, and blanks that
//! may turn out to stand between calls. Newlines just inside and just after the markers of thinking belong to them, and so
//! do blanks around calls that no text follows.
//!
//! Nothing that a model writes is evaluated, values nest 64 deep, and the time is linear in the text.

mod budget;
mod format;
mod grammar;
mod harmony;
mod input;
mod json;
pub(crate) mod literal;
mod markup;
mod objects;
mod out;
mod pairs;
mod reader;
mod values;
mod whole;

use std::fmt;

use lapis::Result;
use serde_json::Value;

use crate::engine::Finish;
use crate::tokenizer::{Detokenizer, Tokenizer};
pub use format::Format;
pub use grammar::{call_grammar, call_or_answer, call_or_text};
use out::Out;
use reader::Reader;

/// A piece of a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// What the model thinks.
    Reasoning(String),
    /// What it says.
    Text(String),
    /// A call begins; its arguments follow.
    Call {
        /// Counts the calls of the reply, from 0.
        index: usize,
        /// The model's own name of the call, where its format has one.
        id: Option<String>,
        /// The function: one of those that were offered.
        name: String,
    },
    /// More of a call's arguments: pieces of JSON text which joined are one valid JSON object once the call has ended.
    Arguments {
        /// Of the call.
        index: usize,
        /// The piece.
        json: String,
    },
}

/// Why a reply is over before the model ends it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stop {
    /// One of the stop texts was found: which.
    Text(String),
    /// The one call that was allowed has ended.
    Call,
}

/// What came out with a token.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// Pieces in their order; no piece is empty.
    pub parts: Vec<Part>,
    /// The reply is over: nothing comes after this.
    pub stopped: Option<Stop>,
}

/// How a reply is read.
#[derive(Clone, Debug, Default)]
pub struct ReplyOptions {
    /// Texts that end the reply. They are looked for in what the model says, not in its reasoning or its calls, and are
    /// not part of the reply. The one that begins first counts; of several that begin there, the longest.
    pub stop: Vec<String>,
    /// The tools that were offered, as OpenAI describes them: `{"type": "function", "function": {"name", "parameters"}}`.
    /// Where there are none, calls are not looked for.
    pub tools: Vec<Value>,
    /// The reply ends after one call.
    pub single_call: bool,
    /// All is text: neither reasoning nor calls are looked for.
    pub raw: bool,
    /// The reply goes on in the middle of a text: the space of its first word is part of it.
    pub goes_on: bool,
}

/// A reply being read.
///
/// ```
/// # fn main() -> lapis::Result<()> {
/// # let json = br#"{"model": {"type": "WordLevel", "unk_token": "?",
/// #   "vocab": {"<think>": 0, "hm": 1, "</think>": 2, "yes": 3, "?": 4}}}"#;
/// # let tokenizer = lapis_lm::tokenizer::Tokenizer::from_json(json, Default::default())?;
/// use lapis_lm::{Part, Reply, ReplyOptions};
/// let mut reply = Reply::new(&tokenizer, &[], ReplyOptions::default());
/// let mut parts = Vec::new();
/// for token in [0, 1, 2, 3] {
///     parts.extend(reply.add(token, None)?.parts);
/// }
/// # let text = |p: &Part| match p { Part::Text(t) | Part::Reasoning(t) => t.trim().to_string(), _ => String::new() };
/// # assert_eq!(parts.iter().map(text).collect::<String>(), "hmyes");
/// # Ok(())
/// # }
/// ```
pub struct Reply {
    detokenizer: Detokenizer,
    reader: Reader,
    reasoning_tokens: usize,
    over: bool,
}

impl Reply {
    /// A reply to `prompt`, which may leave the model's thinking open.
    pub fn new(tokenizer: &Tokenizer, prompt: &[u32], options: ReplyOptions) -> Reply {
        let after = options.goes_on.then(|| tokenizer.detokenizer_after(prompt).ok()).flatten();
        let detokenizer = after.unwrap_or_else(|| tokenizer.detokenizer());
        let reader = Reader::new(tokenizer, prompt, options);
        Reply { detokenizer, reader, reasoning_tokens: 0, over: false }
    }

    /// Takes a token and gives what is certain with it. With `finish` everything held back comes out; a token that ends
    /// the text ([`Finish::Stop`]) is not part of it. After the end, and after a stop, nothing comes.
    ///
    /// # Errors
    /// A token outside the vocabulary, as [`Detokenizer::add`] has it.
    pub fn add(&mut self, token: u32, finish: Option<Finish>) -> Result<Taken> {
        if self.over {
            return Ok(Taken::default());
        }
        let mut text = String::new();
        if finish != Some(Finish::Stop) {
            self.reasoning_tokens += usize::from(self.reader.reasons());
            text = self.detokenizer.add(token)?;
        }
        if finish.is_some() {
            text += &self.detokenizer.finalize();
        }
        let taken = self.reader.add(&text, finish);
        self.over = finish.is_some() || taken.stopped.is_some();
        Ok(taken)
    }

    /// Tokens of reasoning so far, that which ends it included.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    /// Calls begun so far, without those that turned out not to be valid.
    pub fn calls(&self) -> usize {
        self.reader.out().calls()
    }

    /// Calls so far that could not be read, or are of functions that nobody offered: they came out as text.
    pub fn unread_calls(&self) -> usize {
        self.reader.out().unread()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("calls", &self.calls()).field("over", &self.over).finish_non_exhaustive()
    }
}

/// What reads calls of one format, from after the marker that begins them.
trait Calls: Send {
    /// Reads on.
    fn step(&mut self, input: &mut input::Input, out: &mut Out) -> Next;

    /// Whether what comes next is reasoning.
    fn reasons(&self) -> bool {
        false
    }
}

/// What a machine says after a step.
enum Next {
    /// It waits for more text.
    More,
    /// The calls are over.
    Over,
    /// This is no call: what was read since the last commit is text.
    Broken,
}
