//! Tokens to text as they come: mlx-lm's four streaming detokenizers, each at a cost that is linear in the text.
//!
//! The segments, put together, are what mlx-lm prints, its trims included: bytes are held back until they are whole
//! characters, and a vocabulary that marks the beginning of words loses the space before the first word.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use lapis::{Error, Result};
use serde_json::{Value, json};

use super::decode;
use super::model::{Inner, size};

/// How tokens become bytes; chosen by the tokenizer's decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// SentencePiece: `▁` is a space, `<0xNN>` a byte.
    Spm { trim: bool },
    /// Byte-level pairs: each character of a token is a byte.
    Bpe,
    /// Anything else: the current line is decoded again.
    Naive,
}

impl Kind {
    pub(super) fn of(tokenizer: &Inner) -> Kind {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or(Value::Null);
        let mut spm = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        match decoder.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => Kind::Bpe,
            Some("Sequence") if decoder["decoders"] == json!(spm) => Kind::Spm { trim: false },
            Some("Sequence") => {
                spm.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                if decoder["decoders"] == json!(spm) { Kind::Spm { trim: true } } else { Kind::Naive }
            }
            _ => Kind::Naive,
        }
    }
}

/// Turns one sequence of tokens into text, segment by segment.
pub struct Detokenizer {
    tokenizer: Arc<Inner>,
    kind: Kind,
    /// Bytes that are not yet characters.
    held: Vec<u8>,
    /// Whether any text has come out.
    begun: bool,
    line: Line,
}

impl Detokenizer {
    pub(super) fn new(kind: Kind, tokenizer: Arc<Inner>, clean_up: bool) -> Detokenizer {
        let line = Line { clean_up, ..Line::default() };
        Detokenizer { tokenizer, kind, held: Vec::new(), begun: false, line }
    }

    /// The text goes on after the text of `prompt`: the space of its first word is part of it.
    pub(super) fn after(mut self, prompt: &[u32]) -> Result<Detokenizer> {
        let tail = &prompt[prompt.len().saturating_sub(CONTEXT)..];
        self.begun = !decode(&self.tokenizer, tail, true, false)?.is_empty();
        if self.begun && self.kind == Kind::Naive {
            self.line.tokens = tail.to_vec();
            self.line.out = self.line.text(&self.tokenizer)?.len();
        }
        Ok(self)
    }

    /// Takes a token and gives the text that is complete with it, which may be empty.
    ///
    /// # Errors
    /// `Value` for an id outside the vocabulary, unless the vocabulary is byte-level: there it reads `!`, as padded
    /// vocabularies want it.
    pub fn add(&mut self, id: u32) -> Result<String> {
        match self.kind {
            Kind::Spm { .. } => {
                let token = self.token(id)?;
                match byte_token(&token) {
                    Some(byte) => self.held.push(byte),
                    None => self.held.extend_from_slice(token.as_bytes()),
                }
                Ok(if is_whole(&self.held) { self.flush() } else { String::new() })
            }
            Kind::Bpe => {
                let token = match self.token(id) {
                    Ok(token) => token,
                    Err(_) if id as usize >= size(&self.tokenizer) => "!".into(),
                    Err(e) => return Err(e),
                };
                for c in token.chars() {
                    match BYTES.get(&c) {
                        // mlx-lm takes byte 0 for "not in the table".
                        Some(&byte) if byte != 0 => self.held.push(byte),
                        _ => self.held.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                // Whether a space alone belongs to the text is decided with the next token.
                Ok(if token != "Ġ" && is_whole(&self.held) { self.flush() } else { String::new() })
            }
            Kind::Naive => self.line.add(id, &self.tokenizer),
        }
    }

    /// Gives what is still held back; bytes that are no characters become U+FFFD.
    pub fn finalize(&mut self) -> String {
        match self.kind {
            Kind::Naive => self.line.finish(&self.tokenizer),
            _ => self.flush(),
        }
    }

    fn token(&self, id: u32) -> Result<String> {
        self.tokenizer.id_to_token(id).ok_or_else(|| {
            let size = size(&self.tokenizer);
            Error::value(format!("[detokenize] token {id} is not in the vocabulary of {size} tokens"))
        })
    }

    fn flush(&mut self) -> String {
        let held = std::mem::take(&mut self.held);
        let text = String::from_utf8_lossy(&held);
        let spaced = matches!(self.kind, Kind::Spm { .. }).then(|| text.replace('▁', " "));
        let text = spaced.as_deref().unwrap_or(&text);
        let trims = self.kind != Kind::Spm { trim: false } && !self.begun;
        let text = if trims { text.strip_prefix(' ').unwrap_or(text) } else { text };
        self.begun |= !text.is_empty();
        text.to_owned()
    }
}

/// The line that a naive detokenizer is in.
#[derive(Default)]
struct Line {
    clean_up: bool,
    tokens: Vec<u32>,
    /// How many bytes of the text of all tokens are out.
    out: usize,
}

/// A line of more tokens than this is decoded from its last tokens only.
const LONG_LINE: usize = 256;
/// So many tokens of a long line are kept as surroundings.
const CONTEXT: usize = 32;

impl Line {
    fn add(&mut self, id: u32, tokenizer: &Inner) -> Result<String> {
        self.tokens.push(id);
        let text = self.text(tokenizer)?;
        let segment = text.get(self.out..).unwrap_or("").to_owned();
        self.out = text.len();
        if text.ends_with('\n') {
            self.tokens.clear();
            self.out = 0;
        } else if self.tokens.len() > LONG_LINE {
            self.shorten(tokenizer, text.len())?;
        }
        Ok(segment)
    }

    /// The text of the line as far as it is certain.
    fn text(&self, tokenizer: &Inner) -> Result<String> {
        let mut text = decode(tokenizer, &self.tokens, false, self.clean_up)?;
        if text.ends_with('\u{fffd}') {
            text.truncate(text.trim_end_matches('\u{fffd}').len());
        } else if self.clean_up && text.ends_with(' ') {
            text.pop();
        }
        Ok(text)
    }

    /// Forgets the first tokens of a long line where nothing is held back.
    fn shorten(&mut self, tokenizer: &Inner, shown: usize) -> Result<()> {
        let all = decode(tokenizer, &self.tokens, false, self.clean_up)?;
        if all.len() == shown {
            self.tokens.drain(..self.tokens.len() - CONTEXT);
            self.out = decode(tokenizer, &self.tokens, false, self.clean_up)?.len();
        }
        Ok(())
    }

    fn finish(&mut self, tokenizer: &Inner) -> String {
        let text = decode(tokenizer, &self.tokens, false, self.clean_up).unwrap_or_default();
        let segment = text.get(self.out..).unwrap_or("").to_owned();
        self.tokens.clear();
        self.out = 0;
        segment
    }
}

/// The byte of a token such as `<0x0A>`. Other texts that begin so are text.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit())).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Whether `bytes` end with a whole character that is not U+FFFD itself. Only the end is looked at: a character begins
/// with a byte that never continues another.
fn is_whole(bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        return true;
    }
    (1..=bytes.len().min(4)).any(|n| {
        let mut chars = std::str::from_utf8(&bytes[bytes.len() - n..]).unwrap_or("").chars();
        chars.next().is_some_and(|c| c != '\u{fffd}') && chars.next().is_none()
    })
}

/// The character that stands for each byte in byte-level vocabularies: printable ones for themselves, the others from
/// U+0100 on, in order (GPT-2's table).
pub(super) static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let own = (0..=255).filter(printable).map(|b| (b as char, b));
    let others = (0..=255).filter(|b| !printable(b)).zip('\u{100}'..).map(|(b, c)| (c, b));
    own.chain(others).collect()
});
