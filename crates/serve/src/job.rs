//! What goes to the engine and what comes back: a job, and the updates of its replies.

use crate::error::ApiError;
use crate::models::Loaded;
use crate::record::Record;
use lapis_lm::engine::Finish;
use lapis_lm::reply::{Part, ReplyOptions, Stop};
use lapis_lm::{Grammar, Sampling};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;
use tokio::sync::mpsc;

/// Replies to one prompt.
pub struct Job {
    /// The model; counted as in use while the job lives.
    pub model: InUse,
    /// Tokens.
    pub prompt: Vec<u32>,
    /// Those of them that the system is told.
    pub system: usize,
    /// Replies.
    pub n: usize,
    /// Tokens of each at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Likeliest tokens to tell of.
    pub top: usize,
    /// Score the prompt, and tell of so many of the likeliest tokens at each of its places.
    pub scores: Option<usize>,
    /// What replies must be.
    pub grammar: Option<Arc<Grammar>>,
    /// How replies are read.
    pub reply: ReplyOptions,
    /// Tokens of thinking at most.
    pub thinking: Option<usize>,
    /// Whose job it is: prompts of others are not shared with it, and it takes turns with theirs.
    pub owner: u64,
    /// The request that it is of.
    pub record: Arc<Record>,
    /// Beginnings of prompts are shared among jobs with the same number.
    pub salt: u64,
    /// Where updates go.
    pub updates: mpsc::Sender<Update>,
}

/// A model that is not let go for as long as this lives, or until it is over.
pub struct InUse(pub Arc<Loaded>, AtomicBool);

impl InUse {
    /// Uses a model.
    pub fn new(model: Arc<Loaded>) -> InUse {
        model.jobs.fetch_add(1, Relaxed);
        InUse(model, AtomicBool::new(false))
    }

    /// The model may go. To be said before a client hears that its answer is complete: its next request may be for a model
    /// that takes this one's place.
    pub fn over(&self) {
        if !self.1.swap(true, Relaxed) {
            self.0.jobs.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.over();
    }
}

/// A token with its log-probability, and the likeliest ones at its place.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens.
    pub top: Vec<(u32, f32)>,
}

/// Why a reply is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The model ended it.
    Stop,
    /// There was no more room.
    Length,
    /// A stop text was found.
    Text(String),
    /// The one call that was allowed has ended.
    Call,
}

impl Ending {
    /// Of what the engine and the reader say.
    pub(crate) fn of(finish: Option<Finish>, stopped: Option<Stop>) -> Option<Ending> {
        match (stopped, finish) {
            (Some(Stop::Text(text)), _) => Some(Ending::Text(text)),
            (Some(Stop::Call), _) => Some(Ending::Call),
            (None, Some(Finish::Stop)) => Some(Ending::Stop),
            (None, Some(Finish::Length)) => Some(Ending::Length),
            (None, None) => None,
        }
    }
}

/// News of a job.
#[derive(Clone, Debug)]
pub enum Update {
    /// A reply has its place; so many tokens of its prompt were known.
    Started {
        /// Which reply.
        choice: usize,
        /// Tokens that were known.
        cached: usize,
        /// When the step that reads the prompt began.
        began: Instant,
    },
    /// So much of the prompt was read.
    Progress {
        /// Tokens read.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// Tokens of the prompt were scored, in order: all but the first.
    Scored(Vec<Scored>),
    /// A reply goes on.
    Said {
        /// Which reply.
        choice: usize,
        /// What it says.
        parts: Vec<Part>,
        /// The token that did it.
        scored: Scored,
        /// Whether it had been guessed.
        drafted: bool,
    },
    /// A reply is over.
    Ended {
        /// Which reply.
        choice: usize,
        /// Why.
        ending: Ending,
        /// Its tokens.
        tokens: usize,
        /// Those of its thinking.
        reasoning: usize,
        /// Calls in it.
        calls: usize,
        /// Calls that are part of its text, because they could not be read.
        unread: usize,
    },
    /// The job has come to grief.
    Failed(ApiError),
}
