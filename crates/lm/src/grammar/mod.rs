//! Texts that follow a grammar: JSON schemas, regular expressions, Lark grammars, lists of choices.
//!
//! The grammar compiler and its parser are those of the `llguidance` crate; this module says what it may be given, so
//! that what a grammar accepts is right and what it cannot say is refused by name, and bounds time and memory. It knows
//! tokens and their bytes, and nothing of models.

mod clock;
mod constraint;
mod format;
mod gbnf;
mod pattern;
mod quoted;
mod relax;
mod schema;
mod tokens;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use lapis::{Error, Result};
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::{JsonCompileOptions, TokenParser};
use serde_json::{Value, json};

use crate::sample::Constraint;
use crate::tokenizer::{Thinking, Tokenizer};
use clock::Clock;
use constraint::{Afterwards, Masked};
pub(crate) use format::{ANSWER, Answer};
use schema::Fault;
pub(crate) use tokens::Tokens;

/// Bytes of a grammar's text.
const MAX_BYTES: usize = 256 << 10;
/// Bytes of a regular expression.
const MAX_REGEX: usize = 32 << 10;
/// Brackets inside brackets.
const MAX_NESTING: usize = 64;
/// Of the thread that compiles; what is not touched costs nothing.
const STACK: usize = 128 << 20;
/// What compiling may take of a processor: of the schemas that are small enough, 2000 properties take half of it, and none
/// of the JSON-Schema-Test-Suite 40 ms.
const TIME: Duration = Duration::from_secs(1);
/// What the grammar of all tools together may take, each of which is within the other: 512 of eight parameters
/// take more than a second.
const TOOLS: Duration = Duration::from_secs(5);
/// What it may take by the clock: a machine that is busy with other things does not make a good grammar a bad one.
const WAIT: Duration = Duration::from_secs(60);

/// What a text may be.
///
/// ```no_run
/// # fn main() -> lapis::Result<()> {
/// use lapis_lm::{Grammar, Options, Sequence};
/// let model = lapis_lm::load("mlx_model")?;
/// let grammar = Grammar::regex(&model.tokenizer, "(yes|no)")?;
/// let prompt = model.tokenizer.encode_prompt("Is water wet? ")?;
/// let stream = model.stream(&prompt, &Options::default(), Sequence::new())?;
/// for step in stream.constrain(grammar.constraint(&model.eos)) {
///     print!("{}", step?.text);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Grammar {
    tokens: Arc<Tokens>,
    /// At the beginning of the text.
    parser: Mutex<TokenParser>,
}

impl Grammar {
    /// A JSON text that is valid under a schema (drafts 6 to 2020-12). Properties come in the order in which the schema
    /// names them, the others after them.
    ///
    /// Supported are `type`, `enum`, `const`, `properties`, `patternProperties`, `additionalProperties`, `required`,
    /// `minProperties` and `maxProperties` (some), `items`, `prefixItems`, `additionalItems`, `minItems`, `maxItems`,
    /// `minLength`, `maxLength`, `pattern`, `format` (date-time, date, time, duration, email, ipv4, ipv6, uuid, uri),
    /// numeric bounds, `multipleOf`, `anyOf`, `allOf`, `oneOf` where at most one alternative can hold, and `$ref` inside
    /// the document, recursion included. Keywords that no standard has say nothing.
    ///
    /// # Errors
    /// `Unsupported` with keyword and place for what is not supported; `Value` for what is no schema, has no valid
    /// text, or is too large: 256 KiB, 64 schemas deep, 10,000 schemas and values.
    pub fn json_schema(tokenizer: &Tokenizer, schema: &Value) -> Result<Grammar> {
        let tokens = tokenizer.grammar_tokens()?;
        let schema = schema.clone();
        Grammar::make(tokens, TIME, move |tokens| compile_schema(tokens, &schema).map_err(|fault| fault.error))
    }

    /// A schema as near to `schema` as grammars can say, and what it leaves out: all that is valid under `schema` is valid
    /// under it, unless the compiler cannot say that either. What can be said is given as it is.
    ///
    /// # Errors
    /// `Value` as [`Grammar::json_schema`]; `Unsupported` for what cannot be left out.
    pub fn relax(tokenizer: &Tokenizer, schema: &Value) -> Result<(Value, Vec<String>)> {
        let tokens = tokenizer.grammar_tokens()?;
        let schema = schema.clone();
        Grammar::work(tokens, TIME, move |tokens| relax::relaxed(tokens, schema))
    }

    /// A JSON object.
    ///
    /// # Errors
    /// The vocabulary cannot be read.
    pub fn json_object(tokenizer: &Tokenizer) -> Result<Grammar> {
        Grammar::json_schema(tokenizer, &json!({"type": "object"}))
    }

    /// A text that is matched from beginning to end by a regular expression in the syntax of the `regex` crate, without
    /// word boundaries.
    ///
    /// # Errors
    /// `Value` for an expression that is malformed, too large (32 KiB, 64 groups deep), or too costly.
    pub fn regex(tokenizer: &Tokenizer, expression: &str) -> Result<Grammar> {
        if expression.len() > MAX_REGEX {
            return Err(Error::value(format!("[regex] it has {} bytes; {MAX_REGEX} are taken", expression.len())));
        }
        check_nesting("regex", expression)?;
        let grammar = TopLevelGrammar::from_regex(expression);
        Grammar::compiled("regex", tokenizer, grammar)
    }

    /// A text of a context-free grammar in Lark's syntax, as the `llguidance` crate has it; it begins with `start`. A
    /// grammar of llama.cpp (GBNF: `root ::= ...`) is taken, too.
    ///
    /// # Errors
    /// `Value` for a grammar that is malformed, too large (256 KiB, 64 brackets deep), or too costly.
    pub fn lark(tokenizer: &Tokenizer, grammar: &str) -> Result<Grammar> {
        if grammar.len() > MAX_BYTES {
            return Err(Error::value(format!("[grammar] it has {} bytes; {MAX_BYTES} are taken", grammar.len())));
        }
        if grammar.trim().is_empty() {
            return Err(Error::value("[grammar] it is empty"));
        }
        check_nesting("grammar", grammar)?;
        Grammar::compiled("grammar", tokenizer, TopLevelGrammar::from_lark(lark(grammar)))
    }

    /// One of several texts.
    ///
    /// # Errors
    /// `Value` for no text at all, or more than 256 KiB of them.
    pub fn choice<S: AsRef<str>>(tokenizer: &Tokenizer, texts: &[S]) -> Result<Grammar> {
        let all: Vec<Value> = texts.iter().map(|t| t.as_ref().into()).collect();
        let bytes: usize = texts.iter().map(|t| t.as_ref().len()).sum();
        if all.is_empty() || bytes > MAX_BYTES || all.len() > 10_000 {
            let n = all.len();
            return Err(Error::value(format!(
                "[choice] there are {n} texts of {bytes} bytes; 1 to 10000 texts of up to {MAX_BYTES} bytes are taken"
            )));
        }
        let quoted: Vec<String> = all.iter().map(Value::to_string).collect();
        let grammar = TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")));
        Grammar::compiled("choice", tokenizer, grammar)
    }

    fn compiled(what: &'static str, tokenizer: &Tokenizer, grammar: TopLevelGrammar) -> Result<Grammar> {
        let tokens = tokenizer.grammar_tokens()?;
        let most = if what == "tools" { TOOLS } else { TIME };
        Grammar::make(tokens, most, move |tokens| {
            tokens
                .factory
                .create_parser(grammar)
                .map_err(|e| Error::value(format!("[{what}] not a usable {what}: {}", short(&e.to_string()))))
        })
    }

    /// As [`Grammar::lark`], of a text that stands inside JSON, too: what may not be in such a grammar is refused.
    ///
    /// # Errors
    /// Those of [`Grammar::lark`]; `Unsupported` for other grammars and special tokens inside of it, `~` before what must
    /// not be, and the flag `x` of expressions.
    pub fn lark_in_json(tokenizer: &Tokenizer, grammar: &str) -> Result<Grammar> {
        let quoted = spelled(grammar)?;
        let plain = Grammar::lark(tokenizer, grammar)?;
        Grammar::compiled("grammar", tokenizer, TopLevelGrammar::from_lark(quoted))?;
        Ok(plain)
    }

    /// A text of a Lark grammar that was made here, and may name the `parts`.
    pub(crate) fn made(
        tokenizer: &Tokenizer,
        grammar: String,
        parts: impl IntoIterator<Item = GrammarWithLexer>,
    ) -> Result<Grammar> {
        let mut grammar = TopLevelGrammar::from_lark(grammar);
        grammar.grammars.extend(parts);
        Grammar::compiled("tools", tokenizer, grammar)
    }

    /// A Lark grammar as a part of a larger one, under a name; of texts as JSON spells them, where it is `quoted`.
    ///
    /// # Errors
    /// As [`Grammar::lark_in_json`].
    pub(crate) fn lark_part(name: String, grammar: &str, quoted: bool) -> Result<GrammarWithLexer> {
        let grammar = if quoted { spelled(grammar)? } else { lark(grammar) };
        Ok(GrammarWithLexer { name: Some(name), ..GrammarWithLexer::from_lark(grammar) })
    }

    /// The JSON of a schema as a piece of a Lark grammar.
    ///
    /// # Errors
    /// As [`Grammar::json_schema`].
    pub(crate) fn json_piece(schema: &Value) -> Result<String> {
        let schema = schema::supported(schema, false).map_err(|fault| fault.error)?.schema;
        let schema = spaced(schema).map_err(|why| Error::value(format!("[schema] {why}")))?;
        Ok(format!("%json {schema}"))
    }

    /// A JSON object of a function's `name` and its `parameters`, which are of a schema, as a piece of a Lark grammar.
    ///
    /// # Errors
    /// As [`Grammar::json_schema`].
    pub(crate) fn call_piece(name: &str, schema: &Value) -> Result<String> {
        let schema::Supported { mut schema, defs, .. } =
            schema::supported(schema, false).map_err(|fault| fault.error)?;
        if let Value::Object(object) = &mut schema {
            object.remove("$defs");
        }
        let call = json!({
            "type": "object", "properties": {"name": {"const": name}, "parameters": schema},
            "required": ["name", "parameters"], "additionalProperties": false,
        });
        let call = spaced(schema::with_defs(call, &defs)).map_err(|why| Error::value(format!("[schema] {why}")))?;
        Ok(format!("%json {call}"))
    }

    /// Compiles a grammar, and begins it.
    fn make(
        tokens: Arc<Tokens>,
        most: Duration,
        compile: impl FnOnce(&Tokens) -> Result<TokenParser> + Send + 'static,
    ) -> Result<Grammar> {
        let compile = |tokens: &Tokens| {
            compile(tokens).map(|mut parser| {
                parser.start_without_prompt();
                parser
            })
        };
        let parser = Grammar::work(Arc::clone(&tokens), most, compile)?;
        Ok(Grammar { tokens, parser: Mutex::new(parser) })
    }

    /// Works where there is enough stack, and not for too long.
    fn work<T: Send + 'static>(
        tokens: Arc<Tokens>,
        most: Duration,
        work: impl FnOnce(&Tokens) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (told, clock) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("grammar".into()).stack_size(STACK);
        let begun = thread.spawn(move || {
            // Where nobody waits any more, let it go.
            let _ = told.send(Clock::new());
            let _ = sender.send(work(&tokens));
        });
        begun.map_err(|e| Error::memory(format!("[grammar] no thread to compile it: {e}")))?;
        let never = || Error::value("[grammar] it cannot be compiled");
        let clock = clock.recv().map_err(|_| never())?;
        loop {
            let left = clock.left(most);
            // A thread that has no processor spends nothing: look again after a while, however little is left.
            match receiver.recv_timeout(left.max(Duration::from_millis(5))) {
                Ok(done) => return done,
                Err(mpsc::RecvTimeoutError::Timeout) if left > Duration::ZERO => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(Error::value(format!("[grammar] it takes more than {} s to compile", most.as_secs())));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(never()),
            }
        }
    }

    /// A new text of this grammar, which one of `eos` ends.
    pub fn constraint(&self, eos: &Arc<BTreeSet<u32>>) -> Box<dyn Constraint> {
        Box::new(self.masked(eos))
    }

    /// As [`Grammar::constraint`], for a reply that begins inside the model's thinking where `thinking` and the prompt
    /// say so: the grammar holds from its end on.
    pub fn reply(&self, eos: &Arc<BTreeSet<u32>>, thinking: Option<&Thinking>, prompt: &[u32]) -> Box<dyn Constraint> {
        match thinking.filter(|t| t.is_open(prompt)) {
            None => self.constraint(eos),
            Some(t) => Box::new(Afterwards { end: t.end_ids.clone(), seen: Vec::new(), then: self.masked(eos) }),
        }
    }

    fn masked(&self, eos: &Arc<BTreeSet<u32>>) -> Masked {
        let parser = self.parser.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Masked::new(Arc::clone(&self.tokens), parser, Arc::clone(eos))
    }
}

/// A grammar in Lark's syntax, whichever of the two it was in.
fn lark(grammar: &str) -> String {
    gbnf::lark(grammar).unwrap_or_else(|| grammar.to_string())
}

/// The grammar of texts of another as JSON spells them.
fn spelled(grammar: &str) -> Result<String> {
    let unsupported =
        |what| Error::unsupported(format!("[grammar] {what} is not supported in a grammar of a tool's input"));
    quoted::quoted(&lark(grammar)).map_err(unsupported)
}

/// What a grammar may cost.
fn limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 1_000_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Compiles what is supported of a schema.
fn compile_schema(tokens: &Tokens, schema: &Value) -> std::result::Result<TokenParser, Fault> {
    let supported = schema::supported(schema, false)?;
    let why = match json_parser(tokens, supported.schema) {
        Ok(parser) => return Ok(parser),
        Err(why) => why,
    };
    // The smallest schema with the same fault says where it is.
    let clock = Clock::new();
    let again = schema::supported(schema, true)?;
    let place = again.parts.into_iter().find(|(_, part)| {
        clock.left(TIME) > TIME / 4
            && json_parser(tokens, schema::with_defs(part.clone(), &again.defs)).is_err_and(|other| other == why)
    });
    let path = place.map_or(String::new(), |p| p.0);
    let at = schema::shown(&path);
    let refused = |key: &str, what: &str| {
        let error = Error::unsupported(format!("[schema] {what} at {at} is not supported"));
        Err(Fault { error, place: Some((path.clone(), key.to_owned())) })
    };
    match why.as_str() {
        w if w.contains("oneOf") => refused("oneOf", "`oneOf` of which several may hold at once"),
        w if w.contains("not disjoint") || w.contains("are disjoint") => {
            refused("patternProperties", "`patternProperties` with patterns that may match the same name")
        }
        w if w.contains("min/maxProperties") => {
            refused("minProperties", "`minProperties` or `maxProperties` beside optional properties")
        }
        w if w.contains("'multipleOf'") => refused("multipleOf", "`multipleOf` of so many digits"),
        w if w.contains("circular references") => refused("$ref", "a circular `$ref` with keywords beside it"),
        w if w.contains("Unsatisfiable") => Err(Error::value(format!("[schema] nothing is valid under {at}")).into()),
        w => Err(Error::value(format!("[schema] {at} cannot be compiled: {}", short(w))).into()),
    }
}

fn json_parser(tokens: &Tokens, schema: Value) -> std::result::Result<TokenParser, String> {
    let grammar = GrammarWithLexer::from_json_schema(spaced(schema)?);
    tokens.factory.create_parser(TopLevelGrammar::from_grammar(grammar)).map_err(|e| e.to_string())
}

/// A schema with how its texts are spaced.
fn spaced(schema: Value) -> std::result::Result<Value, String> {
    let mut schema = match schema {
        Value::Object(_) => schema,
        Value::Bool(true) => json!({}),
        _ => return Err("Unsatisfiable".into()),
    };
    let options = JsonCompileOptions {
        // A model may not write spaces for ever.
        whitespace_pattern: Some(r"\r?\n[ \t]{0,32}|[ ]".into()),
        // Control characters have one spelling, so that no name has two.
        json_allowed_escapes: Some("nrbtf\\\"".into()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(schema)
}

/// Brackets nest no deeper than the parsers of grammars can follow.
fn check_nesting(what: &str, text: &str) -> Result<()> {
    let (mut depth, mut escaped) = (0usize, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            return Err(Error::value(format!("[{what}] brackets nest more than {MAX_NESTING} deep")));
        }
    }
    Ok(())
}

/// The first line of a message, and what a regular expression's parser says at its end.
fn short(message: &str) -> String {
    let mut lines = message.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.next().unwrap_or("unknown fault");
    let last = lines.rfind(|l| l.starts_with("error: ")).unwrap_or("");
    let cut = |text: &str| text.chars().take(300).collect::<String>();
    format!("{} {}", cut(first), cut(last.trim_start_matches("error: "))).trim_end().to_string()
}
