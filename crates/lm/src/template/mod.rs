//! Chat templates: messages to the text a model was trained on.
//!
//! A template is Jinja, rendered exactly as transformers renders it, by `minijinja` with Python's values (`value`),
//! operators (`operators`), filters and methods. Templates come with models from anywhere, so a rendering has limits:
//! steps, time, depth, and bytes that it makes. No template reads a file or knows anything that it was not given.

mod clock;
mod filters;
mod json;
mod messages;
mod methods;
mod operators;
mod source;
mod value;

use std::collections::BTreeMap;
use std::io::Write;
use std::time::SystemTime;

use lapis::{Error, Result};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

/// A template may have so many bytes.
const MAX_SOURCE: usize = 1 << 20;
/// A rendering may take so many steps.
const MAX_STEPS: u64 = 10_000_000;
/// A rendering may have so many bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Macros may call each other this deeply.
const MAX_RECURSION: usize = 128;
/// What the engine counts for a call of a macro.
const CALL_COST: usize = 4;

/// Names that keywords cannot have.
pub const RESERVED: [&str; 4] = ["messages", "tools", "add_generation_prompt", "tokenize"];

/// A compiled chat template.
///
/// ```
/// # fn main() -> lapis::Result<()> {
/// use lapis_lm::template::{Chat, Template};
/// use serde_json::json;
/// let template = Template::new("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")?;
/// let messages = json!([{"role": "user", "content": "Hi"}]);
/// assert_eq!(template.render(&Chat { messages: &messages, ..Chat::default() })?, "user: Hi\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Template {
    env: Environment<'static>,
    source: String,
}

/// What a template is given.
#[derive(Clone)]
pub struct Chat<'a> {
    /// An array of messages: objects with `role` and `content`, and what else a model's template knows.
    pub messages: &'a Json,
    /// An array of tools as OpenAI describes them.
    pub tools: Option<&'a Json>,
    /// An array of documents.
    pub documents: Option<&'a Json>,
    /// Whether the text ends where the model's reply begins.
    pub add_generation_prompt: bool,
    /// Whether the text ends in the last message, for the model to write on.
    pub continue_final_message: bool,
    /// Other variables, such as `enable_thinking`.
    pub keywords: Option<&'a Map<String, Json>>,
    /// The special tokens by name, such as `bos_token`: [`crate::tokenizer::Tokenizer::special_tokens`].
    pub special_tokens: Option<&'a Map<String, Json>>,
    /// The time of `strftime_now`, which is written in UTC; now, when none.
    pub now: Option<SystemTime>,
}

impl Default for Chat<'_> {
    /// No messages, and the text ends where they end.
    fn default() -> Self {
        const EMPTY: &Json = &Json::Array(Vec::new());
        Chat {
            messages: EMPTY,
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: false,
            keywords: None,
            special_tokens: None,
            now: None,
        }
    }
}

impl Template {
    /// The template of Jinja source.
    ///
    /// # Errors
    /// `Io`, with line and column, when it does not parse.
    pub fn new(source: &str) -> Result<Template> {
        if source.len() > MAX_SOURCE {
            let size = source.len();
            return Err(Error::io(format!("[template] the template has {size} bytes; {MAX_SOURCE} are taken")));
        }
        let mut env = environment();
        let rewritten = source::rewrite(source).map_err(|e| syntax(&e, ""))?;
        let parsed = env.add_template_owned("chat", rewritten.clone());
        parsed.map_err(|e| syntax(&e, &place(&e, source, &rewritten)))?;
        Ok(Template { env, source: source.to_owned() })
    }

    /// A template of any text, rendered as the public evaluation harness does: lines of blocks stay, so does the last
    /// newline, a name that is not there is an error, and there is a filter `regex_replace(pattern, by)`.
    ///
    /// # Errors
    /// As [`Template::new`].
    pub fn of_text(source: &str) -> Result<Template> {
        let mut template = Template::new("")?;
        let env = &mut template.env;
        env.set_trim_blocks(false);
        env.set_lstrip_blocks(false);
        env.set_keep_trailing_newline(true);
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        filters::register_patterns(env);
        let rewritten = source::rewrite(source).map_err(|e| syntax(&e, ""))?;
        let parsed = env.add_template_owned("chat", rewritten.clone());
        parsed.map_err(|e| syntax(&e, &place(&e, source, &rewritten)))?;
        source.clone_into(&mut template.source);
        Ok(template)
    }

    /// The text with these variables.
    ///
    /// # Errors
    /// As [`Template::render`]; the message is the reason alone.
    pub fn fill(&self, variables: &Map<String, Json>) -> Result<String> {
        let fail = |e: minijinja::Error| Error::value(reason(&e));
        let convert = |(name, value): (&String, &Json)| Ok((name.clone(), value::from_json(value)?));
        let context: BTreeMap<String, Value> =
            variables.iter().map(convert).collect::<std::result::Result<_, _>>().map_err(fail)?;
        self.text(Value::from(context), fail)
    }

    fn text(&self, context: Value, fail: impl Fn(minijinja::Error) -> Error) -> Result<String> {
        let mut out = Output(Vec::new());
        let template = self.env.get_template("chat").map_err(&fail)?;
        template.render_captured_to(context, &mut out).map_err(&fail)?;
        String::from_utf8(out.0).map_err(|e| Error::value(format!("[template] the text is not UTF-8: {e}")))
    }

    /// The source as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a chat.
    ///
    /// # Errors
    /// `Value` when the template raises an exception (with its text), when it uses what is not there, when it reaches a
    /// limit, or when a keyword has a reserved name.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String> {
        if !chat.continue_final_message {
            return self.render_as_is(chat);
        }
        if chat.add_generation_prompt {
            return Err(Error::value("[template] either the last message is continued or a reply begins: choose one"));
        }
        let mut messages = chat.messages.clone();
        let content = mark_end(&mut messages)?;
        let text = self.render_as_is(&Chat { messages: &messages, ..chat.clone() })?;
        let marked = text.rfind(MARK.trim()).filter(|_| text.contains(content.trim()));
        let at = marked.ok_or_else(|| {
            Error::value("[template] the last message cannot be continued: the template does not write it as it is")
        })?;
        let kept = text[at..].starts_with(MARK);
        Ok(if kept { text[..at].to_owned() } else { text[..at].trim_end().to_owned() })
    }

    fn render_as_is(&self, chat: &Chat<'_>) -> Result<String> {
        let size = texts(chat.messages);
        if size > MAX_OUTPUT {
            return Err(Error::value(format!(
                "[template] the messages have {size} bytes, a chat template takes {} MiB; shorten them",
                MAX_OUTPUT >> 20
            )));
        }
        let fail = |e: minijinja::Error| failure(&e);
        let mut context: BTreeMap<String, Value> = BTreeMap::new();
        for (name, value) in chat.special_tokens.into_iter().flatten() {
            context.insert(name.clone(), value::from_json(value).map_err(fail)?);
        }
        for (name, value) in chat.keywords.into_iter().flatten() {
            if RESERVED.contains(&name.as_str()) {
                return Err(Error::value(format!("[template] the keyword `{name}` is reserved: use another name")));
            }
            context.insert(name.clone(), value::from_json(value).map_err(fail)?);
        }
        let now = chat.now.unwrap_or_else(SystemTime::now);
        let clock = Value::from_function(move |format: String| clock::strftime(now, &format));
        context.insert("strftime_now".into(), clock);
        context.insert("messages".into(), value::from_json(chat.messages).map_err(fail)?);
        context.insert("add_generation_prompt".into(), chat.add_generation_prompt.into());
        for (name, value) in [("tools", chat.tools), ("documents", chat.documents)] {
            context.insert(name.into(), value::from_json(value.unwrap_or(&Json::Null)).map_err(fail)?);
        }
        self.text(Value::from(context), fail)
    }
}

/// Bytes of all texts in a value, however deep.
fn texts(value: &Json) -> usize {
    let (mut size, mut left) = (0, vec![value]);
    while let Some(value) = left.pop() {
        match value {
            Json::String(text) => size += text.len(),
            Json::Array(all) => left.extend(all),
            Json::Object(all) => left.extend(all.values()),
            _ => {}
        }
    }
    size
}

/// The environment that transformers renders chat templates in.
fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(MAX_STEPS));
    env.set_recursion_limit(MAX_RECURSION * CALL_COST);
    env.set_unknown_method_callback(methods::call);
    env.set_formatter(|out, state, value| {
        let text = value::text(value);
        operators::charge(state, text.len())?;
        Ok(out.write_str(&text)?)
    });
    operators::register(&mut env);
    filters::register(&mut env);
    env
}

/// The text of a rendering, up to its limit.
struct Output(Vec<u8>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(std::io::Error::other(format!("the text is longer than {} MiB", MAX_OUTPUT >> 20)));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What marks the end of a message that is continued. A template that trims its messages takes the space.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Marks the end of the last message's text, and gives that text.
fn mark_end(messages: &mut Json) -> Result<String> {
    let none = || Error::value("[template] there is no last message with text to continue");
    let last = messages.as_array_mut().and_then(|m| m.last_mut()).ok_or_else(none)?;
    let text = match last.get_mut("content").ok_or_else(none)? {
        Json::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")).ok_or_else(none)?,
        content => content,
    };
    let content = text.as_str().ok_or_else(none)?.to_owned();
    *text = Json::String(content.clone() + MARK);
    Ok(content)
}

/// An error of parsing.
fn syntax(error: &minijinja::Error, place: &str) -> Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::io(format!("[template] the chat template is not valid Jinja: {what}{place}"))
}

/// Where an error is: its line, and its column unless the line was rewritten.
fn place(error: &minijinja::Error, source: &str, rewritten: &str) -> String {
    let Some(line) = error.line() else { return String::new() };
    let text = |all: &str| all.lines().nth(line - 1).map(str::to_owned);
    let begin = error.range().and_then(|range| rewritten.get(..range.start));
    match begin.map(|begin| begin.rsplit('\n').next().map_or(0, |part| part.chars().count())) {
        Some(column) if text(&source::normalise(source)) == text(rewritten) => {
            format!(" (line {line}, column {})", column + 1)
        }
        _ => format!(" (line {line})"),
    }
}

/// An error of rendering.
fn failure(error: &minijinja::Error) -> Error {
    Error::value(format!("[template] the chat template says: {}", reason(error)))
}

/// Why a rendering failed, and where.
fn reason(error: &minijinja::Error) -> String {
    let what = match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {MAX_STEPS} steps"),
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    format!("{what}{line}")
}
