//! How likely texts are, each after its context: what choices of a question are scored by.
//!
//! A context is read once, and every continuation goes on from a copy of what the model remembers of it, which shares its
//! arrays. Contexts that begin alike (examples before a question) share that beginning, too.

use crate::batch::Sequence;
use crate::engine::{Event, Prefixes, Request};
use crate::generate::{LanguageModel, REMEMBERED};
use lapis::{Error, Result};
use std::collections::HashMap;

/// A context and what may follow it, in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// One token at least.
    pub context: Vec<u32>,
    /// Each is scored by itself.
    pub continuations: Vec<Vec<u32>>,
}

/// How likely a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The sum of the log-probabilities of its tokens, each after all before it; natural logarithm.
    pub sum: f64,
    /// Whether each token was the likeliest.
    pub greedy: bool,
}

/// Nothing yet: the likelihood of no tokens.
const NONE: Likelihood = Likelihood { sum: 0.0, greedy: true };

/// What a request of the engine is for.
#[derive(Clone, Copy)]
enum Job {
    Context(usize),
    Continuation(usize, usize),
}

impl LanguageModel {
    /// The likelihood of each continuation of each question. `batch` questions are worked on at once; `each` hears how many
    /// are done, and says whether to go on.
    ///
    /// # Errors
    /// An empty context, a token beyond the vocabulary, a model that does not write; being told to stop.
    pub fn likelihoods(
        &self,
        questions: &[Question],
        batch: usize,
        mut each: impl FnMut(usize) -> bool,
    ) -> Result<Vec<Vec<Likelihood>>> {
        if !self.writes {
            return Err(Error::unsupported("[evaluate] this model gives embeddings and foresees no text"));
        }
        let batch = batch.max(1);
        let mut engine = self.engine();
        let mut prefixes = Prefixes::new(REMEMBERED);
        prefixes.most = 4 * batch;
        (engine.keep_ended, engine.prefixes) = (true, Some(prefixes));
        let mut all: Vec<Vec<Likelihood>> = questions.iter().map(|q| vec![NONE; q.continuations.len()]).collect();
        let some = |q: &Question| q.continuations.iter().filter(|c| !c.is_empty()).count();
        let mut left: Vec<usize> = questions.iter().map(some).collect();
        let mut jobs: HashMap<u64, Job> = HashMap::new();
        let (mut next, mut open, mut done) = (0, 0, 0);
        loop {
            while open < batch && next < questions.len() {
                let (q, question) = (next, &questions[next]);
                next += 1;
                let Some((_, before)) = question.context.split_last() else {
                    return Err(Error::value("[evaluate] a context is empty: a token is needed to begin from"));
                };
                if left[q] == 0 {
                    done += 1;
                    continue;
                }
                open += 1;
                if before.is_empty() {
                    ask(&mut engine, &mut jobs, (q, question), &Sequence::new())?;
                } else {
                    let request = Request { prompt: before.to_vec(), max_tokens: 1, ..Request::default() };
                    jobs.insert(engine.add(request, Sequence::new())?, Job::Context(q));
                }
            }
            if engine.is_idle() {
                return Ok(all);
            }
            for event in engine.step()? {
                let id = event.id();
                match (event, jobs.get(&id).copied()) {
                    (Event::Failed { error, .. }, _) => return Err(error),
                    (Event::Token { finish: Some(_), .. }, Some(Job::Context(q))) => {
                        let read = engine.cancel(id).map(|(_, sequence)| sequence).unwrap_or_default();
                        ask(&mut engine, &mut jobs, (q, &questions[q]), &read)?;
                    }
                    (Event::Scored { places, over, .. }, Some(Job::Continuation(q, c))) => {
                        for place in places {
                            all[q][c].sum += f64::from(place.logprob);
                            all[q][c].greedy &= place.top.first().is_some_and(|t| t.0 == place.token);
                        }
                        if over {
                            drop(engine.cancel(id));
                            left[q] -= 1;
                            if left[q] == 0 {
                                (open, done) = (open - 1, done + 1);
                            }
                        }
                    }
                    _ => {}
                }
            }
            if !each(done) {
                return Err(Error::eval("[evaluate] stopped"));
            }
        }
    }
}

/// Asks for the continuations of a question that have tokens; `read` remembers its context but the last token.
fn ask(
    engine: &mut crate::Engine,
    jobs: &mut HashMap<u64, Job>,
    (q, question): (usize, &Question),
    read: &Sequence,
) -> Result<()> {
    for (c, continuation) in question.continuations.iter().enumerate() {
        if continuation.is_empty() {
            continue;
        }
        let prompt = [&question.context[..], continuation].concat();
        let request = Request { prompt, scores: Some(1), ..Request::default() };
        jobs.insert(engine.add(request, read.clone())?, Job::Continuation(q, c));
    }
    Ok(())
}
