//! Text to tokens and back, as a checkpoint's `tokenizer.json` says.
//!
//! The algorithms are those of the `tokenizers` crate; this module reads the files around it (which tokens end a reply,
//! which markers surround thinking, which chat template belongs to the model) and turns tokens into text as they come
//! ([`Detokenizer`]). It knows no model.

mod bpe;
mod detokenizer;
mod files;
mod model;
mod spelling;
mod templates;
mod thinking;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lapis::{Error, Result};
use serde_json::{Map, Value};

use crate::gguf;
use crate::grammar::Tokens;
use crate::template::Template;
pub use detokenizer::Detokenizer;
use detokenizer::Kind;
use model::{Inner, size};
pub(crate) use spelling::Spelling;
pub use templates::Templates;
pub use thinking::Thinking;

/// A tokenizer with what its checkpoint says about special tokens, thinking and chat.
///
/// ```no_run
/// # fn main() -> lapis::Result<()> {
/// let tokenizer = lapis_lm::tokenizer::Tokenizer::load("models/llama".as_ref())?;
/// let ids = tokenizer.encode_prompt("Once upon a time")?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Once upon a time");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    kind: Kind,
    special: Map<String, Value>,
    eos_ids: BTreeSet<u32>,
    templates: Templates,
    thinking: Option<Thinking>,
    /// How the model writes calls of tools, where its configuration says so.
    tool_parser: Option<String>,
    /// Newlines are spelled `<n>` (mlx-lm's `NewlineTokenizer`).
    newline: bool,
    clean_up: bool,
    /// What grammars see of the vocabulary, once one asks.
    grammars: Arc<Mutex<Option<Arc<Tokens>>>>,
}

impl Tokenizer {
    /// The tokenizer of a checkpoint's folder: `tokenizer.json`, and where they are there `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `chat_template.json`; or that of a GGUF file.
    ///
    /// # Errors
    /// `Io` when a file is missing, unreadable or malformed. A chat template that does not parse is an error only when
    /// it is used: see [`Tokenizer::chat_template`].
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        if gguf::is_gguf(dir) {
            return Tokenizer::of_gguf(&gguf::Meta::open(dir)?);
        }
        let (json, config) = files::read(dir)?;
        Tokenizer::build(&json, config, &dir.join("tokenizer.json").display().to_string())
    }

    pub(crate) fn of_gguf(meta: &gguf::Meta) -> Result<Tokenizer> {
        let (json, config) = gguf::tokenizer(meta)?;
        Tokenizer::build(&json, config, meta.name())
    }

    /// The tokenizer of the bytes of a `tokenizer.json` and the object of a `tokenizer_config.json` (or null), for a
    /// model inside a program.
    pub fn from_json(tokenizer_json: &[u8], config: Value) -> Result<Tokenizer> {
        let config = match config {
            Value::Object(config) => config,
            Value::Null => Map::new(),
            _ => return Err(Error::io("[tokenizer] tokenizer_config.json must hold an object")),
        };
        Tokenizer::build(tokenizer_json, config, "tokenizer.json")
    }

    fn build(json: &[u8], config: Map<String, Value>, origin: &str) -> Result<Tokenizer> {
        let inner = files::parse(json, &config, origin)?;
        let special = files::special_tokens(&config);
        let eos = special.get("eos_token").and_then(Value::as_str).and_then(|t| inner.token_to_id(t));
        let mut tokenizer = Tokenizer {
            kind: Kind::of(&inner),
            clean_up: files::cleans_up(&inner, &config),
            inner: Arc::new(inner),
            special,
            eos_ids: eos.into_iter().collect(),
            templates: Templates::in_config(&config),
            thinking: None,
            tool_parser: config.get("tool_parser_type").and_then(Value::as_str).map(str::to_owned),
            newline: config.get("tokenizer_class").and_then(Value::as_str) == Some("NewlineTokenizer"),
            grammars: Arc::default(),
        };
        tokenizer.thinking = Thinking::of(&tokenizer)?;
        Ok(tokenizer)
    }

    /// The ids of `text`; `special` adds what the tokenizer puts around a text (such as BOS).
    ///
    /// Text that spells a special token becomes that token.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let spelled;
        let text = match self.newline {
            true => {
                spelled = text.replace('\n', "<n>");
                &spelled
            }
            false => text,
        };
        match files::guarded(|| self.inner.encode_fast(text, special)) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(Error::value(format!("[tokenizer] cannot encode a text of {} bytes: {e}", text.len()))),
        }
    }

    /// The ids of a plain prompt: with special tokens unless it already begins with the text of BOS.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, self.bos().is_none_or(|bos| !text.starts_with(bos)))
    }

    /// The text of `ids`, without special tokens when `skip_special`. Ids outside the vocabulary have no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = decode(&self.inner, ids, skip_special, self.clean_up)?;
        Ok(if self.newline { text.replace("<n>", "\n") } else { text })
    }

    /// The id of the token that is spelled `text` in the vocabulary.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// How the vocabulary spells a token: byte-level vocabularies write a space as `Ġ`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        size(&self.inner)
    }

    /// The text of the token that begins a text, if there is one.
    pub fn bos(&self) -> Option<&str> {
        self.special.get("bos_token").and_then(Value::as_str)
    }

    /// The named special tokens (`bos_token`, `eos_token`, `pad_token`, ...), as chat templates see them.
    pub fn special_tokens(&self) -> &Map<String, Value> {
        &self.special
    }

    /// The tokens that end a reply.
    pub fn eos_ids(&self) -> &BTreeSet<u32> {
        &self.eos_ids
    }

    /// Adds a token that ends a reply.
    pub fn add_eos(&mut self, id: u32) {
        self.eos_ids.insert(id);
    }

    /// The vocabulary as grammars take it. The first call makes it, which takes tens to hundreds of milliseconds; others
    /// that come meanwhile wait, as eight at once would each take as long as all together.
    pub(crate) fn grammar_tokens(&self) -> Result<Arc<Tokens>> {
        let mut kept = self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = &*kept {
            return Ok(Arc::clone(tokens));
        }
        let tokens = Arc::new(Tokens::new(self.spelling())?);
        *kept = Some(Arc::clone(&tokens));
        Ok(tokens)
    }

    /// A detokenizer at the beginning of a text.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.kind, Arc::clone(&self.inner), self.clean_up)
    }

    /// A detokenizer of a text that goes on after `prompt`. Unlike one at the beginning of a text, it keeps the space
    /// before the first word.
    ///
    /// # Errors
    /// `Value` for an id outside the vocabulary.
    pub fn detokenizer_after(&self, prompt: &[u32]) -> Result<Detokenizer> {
        self.detokenizer().after(prompt)
    }

    /// Has all conversations use this template in place of the checkpoint's.
    pub fn set_chat_template(&mut self, template: Template) {
        self.templates = Templates::one(template);
    }

    /// The default chat template, if the checkpoint has one that parses.
    pub fn template(&self) -> Option<&Template> {
        self.chat_template(false).ok()
    }

    /// Whether there is a default chat template, though it may not parse.
    pub fn has_template(&self) -> bool {
        self.templates.has_default()
    }

    /// The chat template for a conversation with or without tools: `tool_use` where there are tools and the checkpoint
    /// has a template of that name, else `default`.
    ///
    /// # Errors
    /// `Io` with line and column when the template does not parse, `Unsupported` when there is none.
    pub fn chat_template(&self, tools: bool) -> Result<&Template> {
        self.templates.get(tools)
    }

    /// Special tokens, which no text spells: their ids and texts.
    pub(crate) fn special_words(&self) -> Vec<(u32, String)> {
        let added = self
            .inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(id, token)| token.special || self.eos_ids.contains(id));
        added.map(|(id, token)| (id, token.content)).collect()
    }

    /// The sources of all chat templates that parse.
    pub(crate) fn template_sources(&self) -> Vec<&str> {
        self.templates.sources()
    }

    /// `tool_parser_type` of tokenizer_config.json.
    pub(crate) fn tool_parser(&self) -> Option<&str> {
        self.tool_parser.as_deref()
    }

    /// The markers around the model's thinking, if it thinks.
    pub fn thinking(&self) -> Option<&Thinking> {
        self.thinking.as_ref()
    }
}

/// The text of ids, with the spaces before punctuation removed where the tokenizer's configuration asks for it.
fn decode(inner: &Inner, ids: &[u32], skip_special: bool, clean_up: bool) -> Result<String> {
    let text = files::guarded(|| inner.decode(ids, skip_special))
        .map_err(|e| Error::value(format!("[tokenizer] cannot decode {} tokens: {e}", ids.len())))?;
    if !clean_up {
        return Ok(text);
    }
    let rules = [" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"];
    Ok(rules.iter().fold(text, |text, rule| text.replace(rule, rule.trim())))
}
