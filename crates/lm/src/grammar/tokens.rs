//! The vocabulary as the grammar compiler takes it: a tree of the tokens' bytes.

use std::sync::Arc;

use lapis::{Error, Result};
use llguidance::earley::{BiasComputer, SlicedBiasComputer};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser};

use super::limits;
use crate::tokenizer::Spelling;

/// The tree's limit, and room.
const MAX_TOKENS: usize = 1 << 20;

/// A vocabulary in which grammars are looked up.
pub(crate) struct Tokens {
    pub(super) factory: ParserFactory,
    /// The tokens of the model. After them come one that ends the text, and the 256 bytes: the model never says these.
    pub(super) count: usize,
    /// Tokens at the beginning of a text that loses its first space.
    pub(super) first: Option<First>,
}

/// As all tokens, but that a space at their beginning is not there.
pub(super) struct First {
    pub(super) mask: Arc<dyn BiasComputer>,
    /// Bytes of tokens that begin with a space, after it.
    pub(super) rest: Vec<Option<Vec<u8>>>,
    /// Tokens that are that space, and may come.
    pub(super) spaces: Vec<u32>,
}

impl Tokens {
    pub(crate) fn new(spelling: Spelling) -> Result<Tokens> {
        let Spelling { mut bytes, special, trims, trims_token } = spelling;
        let count = bytes.len();
        if count > MAX_TOKENS {
            return Err(Error::unsupported(format!(
                "[grammar] the vocabulary has {count} tokens; grammars take {MAX_TOKENS}"
            )));
        }
        // The byte that marks special tokens is in no text, so tokens of it are never right.
        bytes.iter_mut().filter(|word| word.contains(&TokTrie::SPECIAL_TOKEN_MARKER)).for_each(Vec::clear);
        for (id, name) in special {
            // A grammar can ask for special tokens by name; as text they never come.
            let marker = TokTrie::SPECIAL_TOKEN_MARKER;
            bytes[id as usize] = [marker].into_iter().chain(name.bytes()).take(200).collect();
        }
        bytes.push(vec![TokTrie::SPECIAL_TOKEN_MARKER, b'<', b'e', b'n', b'd', b'>']);
        bytes.extend((0..=255).map(|b| vec![b]));
        // This byte begins no text.
        bytes[count + 256].clear();
        let environment = |bytes: &[Vec<u8>]| -> TokEnv {
            let trie = TokTrie::from(&TokRxInfo::new(bytes.len() as u32, count as u32), bytes);
            Arc::new(ApproximateTokEnv::new(trie))
        };
        let failed = |e| Error::eval(format!("[grammar] the vocabulary: {e}"));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment(&bytes), InferenceCapabilities::default(), &slices).map_err(failed)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let first = if trims {
            let rest = |word: &Vec<u8>| word.strip_prefix(b" ").filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec);
            let rest: Vec<Option<Vec<u8>>> = bytes[..count].iter().map(rest).collect();
            let space = |id: &u32| trims_token && bytes[*id as usize] == b" ";
            let spaces = (0..count as u32).filter(space).collect();
            for (word, rest) in bytes.iter_mut().zip(&rest) {
                if word.first() == Some(&b' ') {
                    *word = rest.clone().unwrap_or_default();
                }
            }
            let mask = SlicedBiasComputer::new(&environment(&bytes), &[]).map_err(failed)?;
            Some(First { mask: Arc::new(mask), rest, spaces })
        } else {
            None
        };
        Ok(Tokens { factory, count, first })
    }

    /// The token that ends the text.
    pub(super) fn end(&self) -> u32 {
        self.count as u32
    }

    /// Lets `parser` take bytes.
    pub(super) fn feed(&self, parser: &mut TokenParser, bytes: &[u8]) -> std::result::Result<(), String> {
        for &byte in bytes {
            parser.consume_token((self.count + 1) as u32 + u32::from(byte)).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}
