//! The engine: many requests, one model, one step at a time.
//!
//! A step takes one row of every sequence that writes, and as many rows of waiting prompts as the step has room for,
//! through the model at once. Rows do not see each other's batch, so what a request gets never depends on the others.

use crate::batch::{Batch, Sequence};
use crate::models::Model;
use crate::sample::{Choice, Sampling};
use lapis::{Array, Dtype, Error, Result, eval, ops};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens, one at least.
    pub prompt: Vec<u32>,
    /// Tokens to write at most.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// Tokens that end a text.
    pub eos: Arc<BTreeSet<u32>>,
    /// Which of several replies to one prompt this is.
    pub choice: u64,
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
    /// This much of the prompt was read.
    Prefill {
        /// The request.
        id: u64,
        /// Tokens read.
        done: usize,
    },
    /// A token was written.
    Token {
        /// The request.
        id: u64,
        /// The token; one that ends the text is not part of it.
        choice: Choice,
        /// Why the text ended, if it did.
        finish: Option<Finish>,
    },
    /// The request came to grief; the others go on.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        error: Error,
    },
}

struct Running {
    id: u64,
    request: Request,
    /// The prompt and what was written.
    tokens: Vec<u32>,
    written: usize,
    sequence: Sequence,
}

impl Running {
    fn pending(&self) -> usize {
        self.tokens.len() - self.sequence.len()
    }
}

/// Logits of some rows, and what the likeliest token of each takes.
struct Likeliest {
    logits: Array,
    token: Array,
    peak: Array,
    norm: Array,
}

impl Likeliest {
    fn new(logits: Array) -> Result<Likeliest> {
        Ok(Likeliest {
            token: ops::astype(&ops::argmax(&logits, Some(-1), false)?, Dtype::Uint32)?,
            peak: ops::max(&logits, -1, false)?,
            norm: ops::logsumexp(&logits, -1, false)?,
            logits,
        })
    }

    fn read(&self) -> Result<(Vec<u32>, Vec<f32>, Vec<f32>)> {
        Ok((self.token.to_vec()?, self.peak.to_vec()?, self.norm.to_vec()?))
    }

    fn row(&self, i: usize) -> Result<Vec<f32>> {
        ops::slice(&self.logits, &[(Some(i as i64), Some(i as i64 + 1), 1)])?.to_vec()
    }
}

/// Runs requests on a model.
pub struct Engine {
    model: Arc<dyn Model>,
    vocabulary: usize,
    /// Rows of prompts in a step at most.
    pub prefill_step: usize,
    /// Sequences at once at most; others wait.
    pub max_batch: usize,
    /// Keep what requests remember when they end, for [`Engine::cancel`] to take.
    pub keep_ended: bool,
    running: Vec<Running>,
    ended: Vec<Running>,
    waiting: std::collections::VecDeque<Running>,
    next: u64,
}

impl Engine {
    /// An engine of `model`, whose logits have `vocabulary` columns.
    pub fn new(model: Arc<dyn Model>, vocabulary: usize) -> Engine {
        Engine {
            model,
            vocabulary,
            prefill_step: 2048,
            max_batch: 32,
            keep_ended: false,
            running: Vec::new(),
            ended: Vec::new(),
            waiting: Default::default(),
            next: 0,
        }
    }

    /// Adds a request and gives its number. `sequence` has seen the beginning of the prompt already, or nothing.
    ///
    /// # Errors
    /// An empty prompt, a token beyond the vocabulary, numbers out of range.
    pub fn add(&mut self, request: Request, sequence: Sequence) -> Result<u64> {
        if request.prompt.len() <= sequence.len() {
            return Err(Error::value("[generate] the prompt is empty: nothing to continue"));
        }
        if let Some(t) = request.prompt.iter().find(|&&t| t as usize >= self.vocabulary) {
            let n = self.vocabulary;
            return Err(Error::index(format!(
                "[generate] token {t} of the prompt is beyond the model's vocabulary of {n}"
            )));
        }
        if request.max_tokens == 0 {
            return Err(Error::value("[generate] max_tokens is 0: ask for one token at least"));
        }
        request.sampling.check(self.vocabulary)?;
        let id = self.next;
        self.next += 1;
        let tokens = request.prompt.clone();
        self.waiting.push_back(Running { id, request, tokens, written: 0, sequence });
        Ok(id)
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Ends a request, or takes one that has ended, and gives its tokens with what the model remembers of them.
    pub fn cancel(&mut self, id: u64) -> Option<(Vec<u32>, Sequence)> {
        let parts = |r: Running| (r.tokens, r.sequence);
        for all in [&mut self.running, &mut self.ended] {
            if let Some(i) = all.iter().position(|r| r.id == id) {
                return Some(parts(all.swap_remove(i)));
            }
        }
        let i = self.waiting.iter().position(|r| r.id == id)?;
        self.waiting.remove(i).map(parts)
    }

    /// One step. Events come in the order of the requests' numbers.
    ///
    /// # Errors
    /// Faults of the whole step: memory, sizes. What concerns one request alone is an event.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        while self.running.len() < self.max_batch
            && let Some(new) = self.waiting.pop_front()
        {
            self.running.push(new);
        }
        self.running.sort_by_key(|r| r.id);
        // Rows of each: what writes has one, prompts share what room there is.
        let mut room = self.prefill_step.max(1);
        let mut tokens: Vec<i32> = Vec::new();
        let mut parts = Vec::new();
        let mut last = Vec::new();
        for running in &mut self.running {
            let pending = running.pending();
            let rows = if pending == 1 { 1 } else { pending.min(room) };
            if rows == 0 {
                continue;
            }
            if pending > 1 {
                room -= rows;
            }
            let from = running.sequence.len();
            tokens.extend(running.tokens[from..from + rows].iter().map(|&t| t as i32));
            if rows == pending {
                last.push((running.id, tokens.len() as i32 - 1));
            }
            parts.push((rows, running));
        }
        let n = tokens.len();
        if n == 0 {
            return Ok(Vec::new());
        }
        let mut events: Vec<Event> = parts
            .iter()
            .filter(|(_, r)| r.sequence.len() < r.request.prompt.len())
            .map(|(rows, r)| Event::Prefill { id: r.id, done: r.sequence.len() + rows })
            .collect();
        let logits = {
            let mut batch = Batch::new(parts.iter_mut().map(|(rows, r)| (*rows, &mut r.sequence)));
            let hidden = self.model.hidden(&Array::from_vec(tokens, &[n]), &mut batch)?;
            batch.finish();
            // Logits of rows that nobody reads are not computed.
            let logits = if last.is_empty() {
                None
            } else {
                let picked = last.len();
                let hidden = if picked == n {
                    hidden
                } else {
                    ops::take(&hidden, &Array::from_vec(last.iter().map(|l| l.1).collect::<Vec<i32>>(), &[picked]), 0)?
                };
                Some(ops::astype(&self.model.logits(&hidden)?, Dtype::Float32)?)
            };
            let row = logits.map(Likeliest::new).transpose()?;
            let memory: Vec<&Array> = parts.iter().flat_map(|(_, r)| r.sequence.arrays()).collect();
            let wanted = row.iter().flat_map(|r| [&r.logits, &r.token, &r.peak, &r.norm]);
            eval(memory.into_iter().chain(wanted))?;
            row
        };
        drop(parts);
        let Some(likeliest) = logits else { return Ok(events) };
        let (tokens, peaks, norms) = likeliest.read()?;
        let mut gone = Vec::new();
        for (i, (id, _)) in last.iter().enumerate() {
            let Some(running) = self.running.iter_mut().find(|r| r.id == *id) else { continue };
            let request = &running.request;
            // The likeliest token needs none of the logits on the host.
            let plain = request.sampling.is_plain() && norms[i].is_finite() && peaks[i].is_finite();
            let chosen = match plain {
                true => Ok(Choice { token: tokens[i], logprob: peaks[i] - norms[i] }),
                false => likeliest
                    .row(i)
                    .and_then(|mut row| request.sampling.choose(&mut row, &running.tokens, request.choice)),
            };
            match chosen {
                Err(error) => {
                    gone.push(*id);
                    events.push(Event::Failed { id: *id, error });
                }
                Ok(choice) => {
                    running.written += 1;
                    let finish = if request.eos.contains(&choice.token) {
                        Some(Finish::Stop)
                    } else if running.written >= request.max_tokens {
                        Some(Finish::Length)
                    } else {
                        None
                    };
                    running.tokens.push(choice.token);
                    gone.extend(finish.map(|_| *id));
                    events.push(Event::Token { id: *id, choice, finish });
                }
            }
        }
        let (gone, running) = std::mem::take(&mut self.running).into_iter().partition(|r| gone.contains(&r.id));
        self.running = running;
        if self.keep_ended {
            self.ended.extend::<Vec<Running>>(gone);
        }
        Ok(events)
    }

    /// As [`Engine::step`] until nothing is left; `each` may end it early by answering false.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn run(&mut self, mut each: impl FnMut(Event) -> bool) -> Result<()> {
        while !self.is_idle() {
            for event in self.step()? {
                if !each(event) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
