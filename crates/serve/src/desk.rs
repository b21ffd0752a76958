//! A model at work: its engine, the replies that it writes, and the adapters whose rows stand in the same steps.

use crate::error::ApiError;
use crate::job::Job;
use crate::models::Loaded;
use crate::pace::Pace;
use crate::settings::Settings;
use lapis_lm::adapter::Mixed;
use lapis_lm::{Engine, Prefixes, Reply, Request, Sequence};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// A prompt of so many tokens goes before longer ones.
const SHORT: usize = 64;

/// One reply in an engine.
pub(crate) struct Writing {
    pub(crate) job: u64,
    pub(crate) choice: usize,
    pub(crate) reply: Reply,
    pub(crate) tokens: usize,
    /// Tokens of its prompt that were read, by it or before.
    pub(crate) read: usize,
    /// When it was told of last.
    pub(crate) last: Instant,
}

/// A model at work.
pub(crate) struct Desk {
    pub(crate) model: Arc<Loaded>,
    /// The same with adapters, whose rows stand in the same steps; their numbers there count from 1.
    pub(crate) variants: Vec<Option<Arc<Loaded>>>,
    pub(crate) engine: Engine,
    pub(crate) writing: HashMap<u64, Writing>,
    pub(crate) pace: Pace,
    /// Seconds of computing so far, for turns among models.
    pub(crate) spent: f64,
    /// Bytes that prompts may be remembered with.
    pub(crate) remembers: u64,
    pub(crate) evicted: u64,
    /// Guesses that the metrics know of.
    pub(crate) guessed: u64,
}

impl Desk {
    pub(crate) fn new(model: Arc<Loaded>, settings: &Settings) -> Desk {
        let mut engine = model.model.engine();
        engine.max_batch = settings.decode_concurrency.max(1);
        engine.max_prompts = settings.prompt_concurrency.max(1);
        engine.short_prompt = SHORT;
        engine.kv = settings.kv;
        engine.checkpoint_every = settings.checkpoint_every.max(1);
        let free = settings.memory_limit.saturating_sub(model.bytes());
        let bytes = match settings.prompt_cache_bytes {
            0 => free / 4,
            bytes => bytes.min(free),
        };
        let mut prefixes = Prefixes::new(bytes as usize);
        prefixes.most = settings.prompt_cache_size;
        engine.prefixes = Some(prefixes);
        engine.disk = model.prefixes.clone();
        if let Some((drafter, tokens)) = &settings.drafter
            && drafter.check(model.model.vocabulary).is_ok()
        {
            engine.drafter = Some(drafter.clone());
            engine.draft_tokens = *tokens;
        }
        Desk {
            model,
            variants: Vec::new(),
            engine,
            writing: HashMap::new(),
            pace: Pace::default(),
            spent: 0.0,
            remembers: bytes,
            evicted: 0,
            guessed: 0,
        }
    }

    /// The models whose replies it writes.
    pub(crate) fn models(&self) -> impl Iterator<Item = &Arc<Loaded>> {
        std::iter::once(&self.model).chain(self.variants.iter().flatten())
    }

    /// The number of a model among those whose rows stand in the same steps; it takes its place there first.
    pub(crate) fn number(&mut self, model: &Arc<Loaded>) -> Result<usize, ApiError> {
        if model.serial == self.model.serial {
            return Ok(0);
        }
        let is = |v: &Option<Arc<Loaded>>| v.as_ref().is_some_and(|v| v.serial == model.serial);
        if let Some(at) = self.variants.iter().position(is) {
            return Ok(at + 1);
        }
        let at = self.variants.iter().position(Option::is_none).unwrap_or(self.variants.len());
        self.variants.resize(self.variants.len().max(at + 1), None);
        self.variants[at] = Some(Arc::clone(model));
        match self.mix() {
            true => Ok(at + 1),
            false => {
                self.variants[at] = None;
                self.mix();
                Err(ApiError::new(500, format!("{} does not go with others in one step", model.id)))
            }
        }
    }

    /// Has the engine know all variants.
    pub(crate) fn mix(&mut self) -> bool {
        let variants: Vec<_> = self.variants.iter().map(|v| v.as_ref().map(|v| &*v.model.model)).collect();
        self.engine.mixed = Mixed::new(&*self.model.model.model, &variants).filter(|m| !m.is_empty());
        self.engine.mixed.is_some() || variants.is_empty()
    }

    /// A model was let go.
    pub(crate) fn forget(&mut self, serial: u64) {
        let Some(at) = self.variants.iter().position(|v| v.as_ref().is_some_and(|v| v.serial == serial)) else {
            return;
        };
        self.variants[at] = None;
        let kept = self.variants.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        self.variants.truncate(kept);
        self.mix();
    }

    /// Adds one reply of a job to the engine.
    pub(crate) fn add(&mut self, id: u64, job: &Job, choice: usize) -> Result<(), ApiError> {
        let adapter = self.number(&job.model.0)?;
        let model = &self.model.model;
        let request = Request {
            prompt: job.prompt.clone(),
            system: job.system,
            max_tokens: job.max_tokens,
            sampling: job.sampling.clone(),
            eos: Arc::clone(&model.eos),
            choice: choice as u64,
            top: job.top,
            adapter,
            salt: job.salt ^ job.model.0.salt,
            // The others of several replies find the prompt read.
            scores: job.scores.filter(|_| choice == 0),
        };
        let key = self.engine.add(request, Sequence::new())?;
        let marks = if job.reply.raw { None } else { model.tokenizer.thinking() };
        let grammar = job.grammar.as_ref().map(|g| g.reply(&model.eos, marks, &job.prompt));
        let constraint = match (marks, job.thinking) {
            (Some(marks), Some(most)) => Some(marks.budget(&job.prompt, most, grammar)),
            _ => grammar,
        };
        if let Some(constraint) = constraint {
            self.engine.constrain(key, constraint);
        }
        let reply = Reply::new(&model.tokenizer, &job.prompt, job.reply.clone());
        self.writing.insert(key, Writing { job: id, choice, reply, tokens: 0, read: 0, last: Instant::now() });
        Ok(())
    }

    /// The engine's numbers of the replies of a job.
    pub(crate) fn keys(&self, id: u64) -> Vec<u64> {
        self.writing.iter().filter(|(_, w)| w.job == id).map(|(&k, _)| k).collect()
    }

    /// Ends all replies of a job.
    pub(crate) fn drop_job(&mut self, id: u64) {
        for key in self.keys(id) {
            self.writing.remove(&key);
            self.engine.end(key);
        }
    }
}
