//! What an engine is asked for, and what it tells.

use super::Place;
use crate::sample::{Choice, Sampling};
use lapis::Error;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens, one at least.
    pub prompt: Vec<u32>,
    /// Tokens of the prompt that other prompts begin with, too, such as what a system is told: their end is a place that is
    /// kept, and they are remembered for longest. 0 if there are none.
    pub system: usize,
    /// Tokens to write at most; 0 only reads the prompt, for its scores.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Tokens that end a text.
    pub eos: Arc<BTreeSet<u32>>,
    /// Which of several replies to one prompt this is.
    pub choice: u64,
    /// How many of the likeliest tokens are told of at each place.
    pub top: usize,
    /// The number of the adapter in [`Engine::mixed`](super::Engine::mixed); 0 is the model as it is.
    pub adapter: usize,
    /// Beginnings of prompts are shared among requests with the same number: not those with different adapters.
    pub salt: u64,
    /// Tell how likely the tokens of the prompt are, and of so many of the likeliest at each place. Nothing of such a
    /// prompt is taken from others.
    pub scores: Option<usize>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends texts.
    Stop,
    /// As many tokens as were asked for.
    Length,
}

/// What a step did for a request.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request has its place in the batch.
    Started {
        /// The request.
        id: u64,
        /// Tokens of its prompt that were read before, for another.
        cached: usize,
    },
    /// This much of the prompt was read.
    Prefill {
        /// The request.
        id: u64,
        /// Tokens read.
        done: usize,
    },
    /// Tokens of the prompt were scored; in order, all but the first, or but those that a given sequence had seen.
    Scored {
        /// The request.
        id: u64,
        /// The tokens.
        places: Vec<Place>,
        /// Whether the request is over, because it asked for nothing else.
        over: bool,
    },
    /// A token was written.
    Token {
        /// The request.
        id: u64,
        /// The token; one that ends the text is not part of it.
        choice: Choice,
        /// The likeliest tokens with their log-probabilities, as many as were asked for.
        top: Vec<(u32, f32)>,
        /// Why the text ended, if it did.
        finish: Option<Finish>,
        /// Whether it had been guessed.
        drafted: bool,
    },
    /// The request came to grief; the others go on.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        error: Error,
    },
}

impl Event {
    /// The request that it is about.
    pub fn id(&self) -> u64 {
        match self {
            Event::Started { id, .. }
            | Event::Prefill { id, .. }
            | Event::Scored { id, .. }
            | Event::Token { id, .. }
            | Event::Failed { id, .. } => *id,
        }
    }
}
