//! The tokenizer: pairs of bytes merged by how often they stand together, learned from the same text as the model.

use crate::Result;
use crate::dice::Dice;
use crate::text::{Stage, Text};
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// Ends a message; the model says it when it has answered.
pub(crate) const END_OF_TURN: &str = "<|im_end|>";
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", END_OF_TURN];

/// Text to numbers and back.
pub(crate) struct Tokens(Tokenizer);

impl Tokens {
    /// Learns `size` tokens from `conversations` conversations.
    pub(crate) fn train(text: &Text, seed: u64, size: usize, conversations: u64) -> Result<Tokens> {
        // Text of its own: places that no row of training has.
        let mut dice = Dice::new(seed, u64::MAX);
        let lines: Vec<String> = (0..conversations).map(|_| text.conversation(&mut dice, Stage::at(0))).collect();
        let special = SPECIAL.map(|s| AddedToken::from(s, true)).to_vec();
        let mut trainer = BpeTrainerBuilder::new()
            .show_progress(false)
            .vocab_size(size)
            .min_frequency(3)
            .special_tokens(special)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let bytes = || ByteLevel::default().add_prefix_space(false);
        let mut tokenizer = TokenizerBuilder::new()
            .with_model(BPE::default())
            .with_normalizer(None::<tokenizers::NormalizerWrapper>)
            .with_pre_tokenizer(Some(bytes()))
            .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
            .with_decoder(Some(bytes()))
            .build()?;
        // Special tokens are no text: what is learned must not reach across them.
        let parts = lines.iter().flat_map(|l| l.split("<|im_start|>")).flat_map(|l| l.split(END_OF_TURN));
        tokenizer.train(&mut trainer, parts.filter(|p| !p.is_empty()))?;
        Ok(Tokens(tokenizer.into()))
    }

    /// From a tokenizer.json.
    pub(crate) fn read(path: &Path) -> Result<Tokens> {
        Tokenizer::from_file(path).map(Tokens)
    }

    /// The contents of tokenizer.json.
    pub(crate) fn json(&self) -> Result<String> {
        self.0.to_string(true)
    }

    /// The number of tokens.
    pub(crate) fn size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// The number of a special token.
    pub(crate) fn id(&self, token: &str) -> Result<i32> {
        let id = self.0.token_to_id(token).ok_or_else(|| format!("the tokenizer has no token {token}"))?;
        Ok(id as i32)
    }

    /// The tokens of a text; special ones are found by their names.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<i32>> {
        Ok(self.0.encode_fast(text, false)?.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// The text of tokens, without special ones.
    pub(crate) fn decode(&self, ids: &[i32]) -> Result<String> {
        self.0.decode(&ids.iter().map(|&id| id as u32).collect::<Vec<_>>(), true)
    }
}
