//! The bytes that each token puts into a text.

use std::sync::LazyLock;

use tokenizers::Model as _;

use super::detokenizer::{BYTES, Kind, byte_token};
use super::model::{Inner, size};
use super::{Tokenizer, decode};

/// Bytes of the longest token that counts.
const LONGEST: usize = 250;

/// What tokens write.
pub(crate) struct Spelling {
    /// By id; nothing for special tokens, ids without a token, and tokens whose bytes are not known.
    pub(crate) bytes: Vec<Vec<u8>>,
    /// The names of special tokens, by id.
    pub(crate) special: Vec<(u32, String)>,
    /// A space at the beginning of the text is left out.
    pub(crate) trims: bool,
    /// So it is where it is a token alone, and no other space after it.
    pub(crate) trims_token: bool,
}

impl Tokenizer {
    /// The bytes that a token puts into the middle of a text; its name, for one that is not written there. Nothing for
    /// an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let inner = &*self.inner;
        let Some(token) = inner.id_to_token(id) else { return Vec::new() };
        if self.eos_ids.contains(&id) || inner.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return token.into_bytes();
        }
        match self.kind {
            Kind::Spm { .. } => byte_token(&token).map_or_else(|| token.replace('▁', " ").into(), |b| vec![b]),
            Kind::Bpe => byte_level(&token),
            Kind::Naive => Lines::new(inner, self.clean_up).bytes(inner, id, &token).unwrap_or_else(|| token.into()),
        }
    }

    /// The bytes of all tokens, as [`super::Detokenizer`] writes them.
    pub(crate) fn spelling(&self) -> Spelling {
        let inner = &*self.inner;
        let added = inner.get_added_tokens_decoder();
        let last = added.keys().copied().max().map_or(0, |id| id as usize + 1);
        let count = size(inner).max(last).max(inner.get_model().get_vocab_size());
        let special = |id: &u32| self.eos_ids.contains(id) || added.get(id).is_some_and(|t| t.special);
        let lines = (self.kind == Kind::Naive).then(|| Lines::new(inner, self.clean_up));
        let bytes = (0..count as u32).map(|id| {
            let Some(token) = inner.id_to_token(id).filter(|_| !special(&id)) else { return Vec::new() };
            let bytes = match self.kind {
                Kind::Spm { .. } => byte_token(&token).map_or_else(|| token.replace('▁', " ").into(), |b| vec![b]),
                Kind::Bpe => byte_level(&token),
                Kind::Naive => lines.as_ref().and_then(|l| l.bytes(inner, id, &token)).unwrap_or_default(),
            };
            if bytes.len() > LONGEST { Vec::new() } else { bytes }
        });
        Spelling {
            bytes: bytes.collect(),
            trims_token: self.kind == Kind::Bpe,
            special: (0..count as u32).filter(special).filter_map(|id| Some((id, inner.id_to_token(id)?))).collect(),
            trims: match self.kind {
                Kind::Spm { trim } => trim,
                Kind::Bpe => true,
                Kind::Naive => lines.is_some_and(|l| l.trims(inner)),
            },
        }
    }
}

/// The bytes of the characters of byte-level vocabularies, from U+0000 on. Made once: log-probabilities ask for dozens of tokens a step.
static BYTE_TABLE: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    // As the detokenizer has it, where byte 0 has no character.
    ('\0'..'\u{144}').map(|c| BYTES.get(&c).copied().filter(|b| *b != 0)).collect()
});

fn byte_level(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for c in token.chars() {
        match BYTE_TABLE.get(c as usize) {
            Some(Some(byte)) => bytes.push(*byte),
            _ => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Decoders that look at several tokens: what a token adds to the text of others.
struct Lines {
    before: Vec<u32>,
    text: String,
    clean_up: bool,
    byte_level: bool,
}

impl Lines {
    fn new(inner: &Inner, clean_up: bool) -> Lines {
        let before = inner.encode_fast("a", false).map(|e| e.get_ids().to_vec()).unwrap_or_default();
        let text = decode(inner, &before, false, clean_up).unwrap_or_default();
        let decoder = serde_json::to_string(&inner.get_decoder()).unwrap_or_default();
        Lines { before, text, clean_up, byte_level: decoder.contains("\"ByteLevel\"") }
    }

    fn bytes(&self, inner: &Inner, id: u32, token: &str) -> Option<Vec<u8>> {
        let ids: Vec<u32> = self.before.iter().copied().chain([id]).collect();
        let text = decode(inner, &ids, false, self.clean_up).ok()?;
        let added = text.strip_prefix(&self.text)?;
        if !added.contains('\u{fffd}') {
            return Some(added.as_bytes().to_vec());
        }
        byte_token(token).map(|b| vec![b]).or_else(|| self.byte_level.then(|| byte_level(token)))
    }

    fn trims(&self, inner: &Inner) -> bool {
        let first = inner.encode_fast("a a", false).ok().and_then(|e| e.get_ids().last().copied());
        let text = first.and_then(|id| decode(inner, &[id], false, self.clean_up).ok());
        text.is_some_and(|t| !t.starts_with(' '))
    }
}
