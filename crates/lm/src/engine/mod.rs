//! The engine: many requests, one model, one step at a time.
//!
//! A step takes one row of every sequence that writes, with what was guessed to follow, and as many rows of waiting
//! prompts as the step has room for, through the model at once. Rows do not see each other's batch, so what a request gets
//! never depends on the others.

mod again;
pub mod disk;
mod draft;
mod likeliest;
mod pages;
mod parked;
mod prefix;
mod request;
mod rows;
mod score;
mod steady;

pub use disk::{Disk, DiskPrefixes};
pub use draft::Drafter;
pub use prefix::{Prefixes, common};
pub use request::{Event, Finish, Request};
pub use score::{LOGITS, Place};

use likeliest::{Chooser, Likeliest, Spare, is_plain};
use rows::Rows;
use steady::{Steady, Way};

use crate::adapter::Mixed;
use crate::batch::{Batch, KvOptions, Mark, Sequence};
use crate::fit;
use crate::models::Model;
use crate::sample::Constraint;
use lapis::{Array, Dtype, Error, Replay, Result, eval, io, ops};
use std::collections::VecDeque;
use std::sync::Arc;

struct Running {
    id: u64,
    request: Request,
    /// The prompt and what was written.
    tokens: Vec<u32>,
    written: usize,
    sequence: Sequence,
    constraint: Option<Box<dyn Constraint>>,
    guesses: draft::Memory,
    /// It goes before longer prompts.
    short: bool,
    /// How often files were read for it.
    tried: u8,
    /// Rows of its prompt by which scores were told.
    told: usize,
    /// It waits for room.
    paused: bool,
    /// A step with it broke down when it had so many tokens, and it has not written since.
    suspect: Option<usize>,
    /// How often that was.
    chances: u8,
}

impl Running {
    /// Tokens that the model has not read.
    fn pending(&self) -> usize {
        self.tokens.len() - self.sequence.len()
    }

    /// Where what all its prompts begin with ends, and where its prompt does.
    fn marks(&self) -> [usize; 2] {
        let prompt = self.request.prompt.len();
        [Some(self.request.system).filter(|&n| n < prompt).unwrap_or(0), prompt]
    }

    fn room(&self) -> usize {
        self.request.max_tokens - self.written
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Well,
    Badly,
}

/// What a request wrote in a step.
#[derive(Default)]
struct Taken {
    events: Vec<Event>,
    /// How it ended, if it did.
    over: Option<Ended>,
}

impl Running {
    /// Chooses the next token, and those after it as long as the guesses were right.
    fn take(&mut self, chooser: &Chooser, first: usize, guessed: &[u32]) -> Taken {
        let (id, mut taken) = (self.id, Taken::default());
        for i in 0..=guessed.len() {
            let (choice, top) = match chooser.choose_for(first + i, self) {
                Ok(chosen) => chosen,
                Err(error) => {
                    taken.events.push(Event::Failed { id, error });
                    taken.over = Some(Ended::Badly);
                    break;
                }
            };
            self.written += 1;
            let finish = if self.request.eos.contains(&choice.token) {
                Some(Finish::Stop)
            } else if self.written >= self.request.max_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            self.tokens.push(choice.token);
            let drafted = guessed.get(i) == Some(&choice.token);
            taken.events.push(Event::Token { id, choice, top, finish, drafted });
            taken.over = finish.map(|_| Ended::Well);
            if taken.over.is_some() || !drafted {
                break;
            }
        }
        taken
    }

    /// Lets go of what was read for guesses that were wrong; it had so many tokens `before` the step.
    fn settle(&mut self, before: usize, guessed: &[u32], mark: Option<Mark>) {
        let agreed = guessed.iter().zip(&self.tokens[before..]).take_while(|(a, b)| a == b).count();
        self.guesses.settle(before + agreed);
        if let Some(mark) = mark {
            self.sequence.rewind(mark, self.tokens.len() - 1);
        }
    }

    fn is_plain(&self) -> bool {
        is_plain(&self.request.sampling, self.constraint.as_deref(), self.request.top)
    }
}

/// Runs requests on a model.
pub struct Engine {
    model: Arc<dyn Model>,
    vocabulary: usize,
    /// Rows of prompts in a step at most; with 0 they wait while anybody writes.
    pub prefill_step: usize,
    /// Prompts with at most so many unread tokens go before longer ones.
    pub short_prompt: usize,
    /// Tokens that were guessed so far.
    pub guessed: u64,
    /// Rows of the last step, for who plans the next one.
    pub stepped: usize,
    /// Sequences at once at most; others wait.
    pub max_batch: usize,
    /// Prompts that are read at once at most; others wait.
    pub max_prompts: usize,
    /// Keep what requests remember when they end, for [`Engine::cancel`] to take.
    pub keep_ended: bool,
    /// Who guesses what comes next, if anybody.
    pub drafter: Option<Drafter>,
    /// Tokens guessed in a step at most.
    pub draft_tokens: usize,
    /// Tokens between places of a prompt that are kept, where layers cannot come back to any other.
    pub checkpoint_every: usize,
    /// The model with adapters, for requests that have one.
    pub mixed: Option<Mixed>,
    /// What was read before, if that is kept.
    pub prefixes: Option<Prefixes>,
    /// What is kept of that on disk, if anything.
    pub disk: Option<DiskPrefixes>,
    /// How sequences that begin here remember keys and values.
    pub kv: KvOptions,
    running: Vec<Running>,
    ended: Vec<Running>,
    waiting: VecDeque<Running>,
    /// Those that wait for files, in the order in which they came.
    parked: VecDeque<Running>,
    /// Whether sequences forget tokens one by one, once one has seen any.
    free: Option<bool>,
    /// Long prompts had no rows in the last step.
    aside: bool,
    fetch: Option<parked::Fetch>,
    spare: Spare,
    steady: Steady,
    next: u64,
}

impl Engine {
    /// An engine of `model`, whose logits have `vocabulary` columns. Weights that are mapped from files begin to move to
    /// large pages, if there is plenty of memory (see `lapis::io::settle`).
    pub fn new(model: Arc<dyn Model>, vocabulary: usize) -> Engine {
        io::settle(|| fit::available() / 3);
        Engine {
            model,
            vocabulary,
            prefill_step: 2048,
            short_prompt: 0,
            guessed: 0,
            stepped: 0,
            max_batch: 32,
            max_prompts: 32,
            keep_ended: false,
            drafter: None,
            draft_tokens: 2,
            checkpoint_every: 1024,
            mixed: None,
            prefixes: None,
            disk: None,
            kv: KvOptions::default(),
            running: Vec::new(),
            ended: Vec::new(),
            waiting: VecDeque::new(),
            parked: VecDeque::new(),
            free: None,
            aside: false,
            fetch: None,
            spare: Spare::default(),
            steady: Steady::default(),
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
        if request.max_tokens == 0 && request.scores.is_none() {
            return Err(Error::value("[generate] max_tokens is 0: ask for one token at least"));
        }
        if request.adapter > self.mixed.as_ref().map_or(0, Mixed::len) {
            return Err(Error::value(format!("[generate] there is no adapter {}", request.adapter)));
        }
        request.sampling.check(self.vocabulary)?;
        self.kv.check()?;
        let id = self.next;
        self.next += 1;
        let tokens = request.prompt.clone();
        self.waiting.push_back(Running {
            id,
            request,
            tokens,
            written: 0,
            sequence,
            constraint: None,
            guesses: draft::Memory::default(),
            short: false,
            tried: 0,
            told: 0,
            paused: false,
            suspect: None,
            chances: 0,
        });
        Ok(id)
    }

    /// Lets a request that waits say nothing but what `constraint` allows.
    pub fn constrain(&mut self, id: u64, constraint: Box<dyn Constraint>) {
        if let Some(waiting) = self.waiting.iter_mut().find(|r| r.id == id) {
            waiting.constraint = Some(constraint);
        }
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.parked.is_empty()
    }

    /// Whether a step would do anything: not where all that is left was put aside.
    pub fn has_work(&self) -> bool {
        let able = |r: &Running| !r.paused;
        self.running.iter().chain(&self.waiting).chain(&self.parked).any(able)
    }

    /// Requests that run, and those that wait.
    pub fn counts(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len() + self.parked.len())
    }

    /// Ends a request, or takes one that has ended, and gives its tokens with what the model remembers of them.
    pub fn cancel(&mut self, id: u64) -> Option<(Vec<u32>, Sequence)> {
        let parts = |r: Running| (r.tokens, r.sequence);
        self.steady.forget();
        for all in [&mut self.running, &mut self.ended] {
            if let Some(i) = all.iter().position(|r| r.id == id) {
                return Some(parts(all.swap_remove(i)));
            }
        }
        for all in [&mut self.waiting, &mut self.parked] {
            if let Some(i) = all.iter().position(|r| r.id == id) {
                return all.remove(i).map(parts);
            }
        }
        None
    }

    /// Ends a request; what was read for it is remembered for others, if anything is.
    pub fn end(&mut self, id: u64) {
        if self.running.iter().any(|r| r.id == id) {
            self.part(&[(id, Ended::Well)]);
        }
        self.waiting.retain(|r| r.id != id);
        self.parked.retain(|r| r.id != id);
    }

    /// One step. Events of requests with one adapter come in the order of their numbers; a fault is an event of the request
    /// that it concerns. After a panic, [`Engine::recover`] has the others go on.
    ///
    /// # Errors
    /// The drafter failed: it is let go, and the next step goes on without it.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.stepped = 0;
        self.admit(&mut events);
        let guesses = self.guess()?;
        let mut rows = self.rows(guesses);
        let read = |r: &Rows| (self.running[r.index].sequence.len(), self.running[r.index].request.prompt.len());
        for r in &rows {
            let (seen, prompt) = read(r);
            if seen < prompt {
                events.push(Event::Prefill { id: self.running[r.index].id, done: seen + r.count });
            }
        }
        let (likeliest, scored) = match self.compute(&mut rows) {
            Ok(computed) => computed,
            Err(error) => {
                events.extend(self.recover(&error));
                return Ok(events);
            }
        };
        self.remember(&rows);
        let mut gone = Vec::new();
        for (index, places) in scored {
            let running = &mut self.running[index];
            running.told = running.sequence.len().min(running.request.prompt.len() - 1);
            let over = running.request.max_tokens == 0 && running.pending() == 0;
            events.push(Event::Scored { id: running.id, places, over });
            gone.extend(over.then_some((running.id, Ended::Well)));
        }
        if let Some(likeliest) = &likeliest {
            match self.choose(likeliest, rows, &mut events) {
                Ok(over) => gone.extend(over),
                Err(error) => {
                    events.extend(self.recover(&error));
                    return Ok(events);
                }
            }
        }
        self.part(&gone);
        self.acquit();
        Ok(events)
    }

    /// Requests that wait take their places, with what is known of their prompts.
    fn admit(&mut self, events: &mut Vec<Event>) {
        self.unpark();
        let mut reading = self.running.iter().filter(|r| r.pending() > 1 && !r.short).count();
        while self.running.len() < self.max_batch
            && let Some(mut new) = self.first(reading >= self.max_prompts.max(1))
        {
            if let Some(prefixes) = &mut self.prefixes
                && new.sequence.is_empty()
                && new.request.scores.is_none()
            {
                let (prompt, salt) = (&new.request.prompt, new.request.salt);
                let found = prefixes.find(prompt, salt).unwrap_or_default();
                let adapter = new.request.adapter;
                let shared = |r: &Running| match (r.request.salt, r.request.adapter) == (salt, adapter) {
                    true => prefix::usable(&r.tokens, &r.sequence, prompt),
                    false => 0,
                };
                let beside = self.running.iter().map(|r| (shared(r), r)).max_by_key(|(n, _)| *n);
                new.sequence = match beside {
                    Some((n, other)) if n > found.len() => {
                        let mut sequence = other.sequence.clone();
                        sequence.truncate(n);
                        sequence
                    }
                    _ => found,
                };
                match self.park(new) {
                    Some(back) => new = back,
                    None => continue,
                }
            }
            if new.sequence.is_empty() {
                new.sequence = Sequence::with(self.kv);
            }
            events.push(Event::Started { id: new.id, cached: new.sequence.len() });
            new.short = new.pending() <= self.short_prompt;
            reading += usize::from(new.pending() > 1 && !new.short);
            self.running.push(new);
        }
        // Rows of one adapter are neighbours.
        self.running.sort_by_key(|r| (r.request.adapter, r.id));
    }

    /// The next request that takes its place: where only short prompts have one, the first of them.
    fn first(&mut self, short: bool) -> Option<Running> {
        let fits = |r: &Running| !short || r.pending() <= self.short_prompt;
        self.waiting.remove(self.waiting.iter().position(fits)?)
    }

    /// What may follow the tokens of each that runs.
    fn guess(&mut self) -> Result<Vec<Vec<u32>>> {
        let Some(drafter) = self.drafter.take() else { return Ok(vec![Vec::new(); self.running.len()]) };
        let (most, step, alone) = (self.draft_tokens, self.prefill_step.max(1), self.trial().is_some());
        let asked = self.running.iter_mut().map(|r| {
            // Only where one step brings the text to its end; the last token has no guess to check.
            let near = r.pending() <= 1 + most && !alone && !r.paused;
            let count = if near { most.min(r.room().saturating_sub(1)) } else { 0 };
            draft::Asked {
                tokens: &r.tokens,
                memory: &mut r.guesses,
                sampling: &r.request.sampling,
                choice: r.request.choice,
                count,
            }
        });
        let guesses = drafter.guess(&mut asked.collect::<Vec<_>>(), step)?;
        self.drafter = Some(drafter);
        Ok(guesses)
    }

    /// Takes rows through the model. Their `first` becomes a row of the logits.
    fn compute(&mut self, rows: &mut [Rows]) -> Result<(Option<Likeliest>, Vec<(usize, Vec<Place>)>)> {
        let mut tokens: Vec<i32> = Vec::new();
        // Of each prompt that is scored: where its rows begin, and the tokens that follow them.
        let mut scored: Vec<(usize, usize, Vec<u32>)> = Vec::new();
        let mut wanted: Vec<i32> = Vec::new();
        // The last rows of each request that are looked at, and where the wanted ones are among them.
        let (mut tails, mut near, mut narrow) = (Vec::with_capacity(rows.len()), Vec::new(), 0);
        for r in rows.iter_mut() {
            let running = &self.running[r.index];
            let (from, start) = (running.sequence.len(), tokens.len());
            let prompt = &running.request.prompt;
            let (told, end) = (from.max(running.told), (from + r.count + 1).min(prompt.len()));
            if running.request.scores.is_some() && from < prompt.len() && told < end {
                scored.push((r.index, start + told - from, prompt[told + 1..end].to_vec()));
            }
            let known = &running.tokens[from..from + r.count - r.guessed.len()];
            tokens.extend(known.iter().chain(&r.guessed).map(|&t| t as i32));
            let tail = 1 + r.guessed.len();
            if let Some(first) = &mut r.first {
                let row = start + *first;
                *first = wanted.len();
                wanted.extend((row..row + tail).map(|i| i as i32));
                near.extend((narrow..narrow + tail).map(|i| i as i32));
            }
            narrow += tail;
            tails.push(tail);
        }
        let n = tokens.len();
        self.stepped = n;
        if n == 0 {
            return Ok((None, Vec::new()));
        }
        let tokens = Array::from_vec(tokens, &[n]);
        let (kind, inputs) = match self.repeat(rows, &tokens)? {
            Way::Repeated(likeliest) => return Ok((Some(likeliest.settle()?), Vec::new())),
            Way::Built { kind, inputs } => (kind, inputs),
        };
        let mut taken = rows.iter().peekable();
        let parts = self.running.iter_mut().enumerate().filter_map(|(i, running)| {
            taken.next_if(|r| r.index == i).map(|r| (r.count, &mut running.sequence, running.request.adapter))
        });
        let (model, mut batch) = match &self.mixed {
            None => (&*self.model, Batch::new(parts.map(|(count, sequence, _)| (count, sequence)))),
            Some(mixed) => (mixed.model(), mixed.batch(parts)),
        };
        let logits = |hidden: &Array, owners: &[(usize, usize)]| match &self.mixed {
            None => self.model.logits(hidden),
            Some(mixed) => mixed.logits(hidden, owners.iter().copied()),
        };
        if scored.is_empty() && !wanted.is_empty() {
            batch.look_at(tails);
        }
        let hidden = model.hidden(&tokens, &mut batch)?;
        let (wanted, n) = if batch.is_narrow() { (near, narrow) } else { (wanted, n) };
        let kind = kind.filter(|_| batch.is_steady());
        batch.finish();
        let all = (!scored.is_empty()).then(|| hidden.clone());
        // Logits of rows that nobody reads are not computed.
        let likeliest = if wanted.is_empty() {
            None
        } else {
            let picked = wanted.len();
            let hidden = if picked == n { hidden } else { ops::take(&hidden, &Array::from_vec(wanted, &[picked]), 0)? };
            let owner = |r: &Rows| (1 + r.guessed.len(), self.running[r.index].request.adapter);
            let owners: Vec<_> = rows.iter().filter(|r| r.first.is_some()).map(owner).collect();
            let plain = rows.iter().any(|r| r.first.is_some() && self.running[r.index].is_plain());
            Some(Likeliest::new(ops::astype(&logits(&hidden, &owners)?, Dtype::Float32)?, plain)?)
        };
        let replay = match (&kind, &likeliest, inputs) {
            (Some(_), Some(likeliest), Some(inputs)) => {
                let lasts = rows.iter().flat_map(|r| self.running[r.index].sequence.lasts());
                Replay::record(&lasts.chain(likeliest.arrays()).collect::<Vec<_>>(), &inputs)?
            }
            _ => None,
        };
        let memory = rows.iter().flat_map(|r| self.running[r.index].sequence.arrays());
        eval(memory.chain(likeliest.iter().flat_map(Likeliest::arrays)).chain(&all))?;
        let mut places = Vec::new();
        if let Some(hidden) = all {
            for (index, start, tokens) in scored {
                let request = &self.running[index].request;
                let (top, adapter) = (request.scores.unwrap_or(0), request.adapter);
                let logits = |rows: &Array| logits(rows, &[(rows.dim(0), adapter)]);
                places.push((index, score::places(&logits, &hidden, start, &tokens, self.vocabulary, top)?));
            }
        }
        self.steady.keep(kind, replay);
        Ok((likeliest.map(Likeliest::settle).transpose()?, places))
    }

    /// Each request whose row is in the logits takes its tokens, several at once. Says who is over.
    fn choose(&mut self, likeliest: &Likeliest, rows: Vec<Rows>, events: &mut Vec<Event>) -> Result<Vec<(u64, Ended)>> {
        let chooser = likeliest.chooser(&self.spare)?;
        let mut rows: Vec<(Rows, usize, Taken)> = rows
            .into_iter()
            .filter(|r| r.first.is_some())
            .map(|r| {
                let before = self.running[r.index].tokens.len();
                (r, before, Taken::default())
            })
            .collect();
        let mut wanted = rows.iter_mut().peekable();
        let takers = self.running.iter_mut().enumerate();
        let takers = takers.filter_map(|(i, running)| Some((running, wanted.next_if(|(r, ..)| r.index == i)?)));
        chooser.each(
            takers.collect(),
            |(running, _)| running.is_plain(),
            |(running, (r, _, taken))| {
                if let Some(first) = r.first {
                    *taken = running.take(&chooser, first, &r.guessed);
                }
            },
        );
        let mut gone = Vec::new();
        for (r, before, taken) in rows {
            let running = &mut self.running[r.index];
            running.settle(before, &r.guessed, r.mark);
            events.extend(taken.events);
            gone.extend(taken.over.map(|why| (running.id, why)));
        }
        Ok(gone)
    }

    /// Keeps places along prompts whose layers cannot come back to them: every [`Engine::checkpoint_every`] tokens, and all but
    /// the last.
    fn remember(&mut self, rows: &[Rows]) {
        let Some(prefixes) = &mut self.prefixes else { return };
        let every = self.checkpoint_every.max(1);
        for r in rows {
            let running = &self.running[r.index];
            let (seen, prompt) = (running.sequence.len(), running.request.prompt.len());
            let place =
                seen + 1 == prompt || seen < prompt && (seen.is_multiple_of(every) || seen == running.request.system);
            let free = running.sequence.is_free();
            self.free = Some(free);
            if place && !free {
                prefixes.insert(&running.tokens, running.request.salt, running.marks(), running.sequence.clone());
            }
            // On disk, what was read is safe before the reply is over.
            if let Some(disk) = &self.disk
                && if free { seen == prompt } else { place }
            {
                disk.offer(&running.tokens, running.request.salt, &running.sequence);
            }
        }
    }

    /// Takes requests that have ended from those that run.
    fn part(&mut self, gone: &[(u64, Ended)]) {
        let why = |r: &Running| gone.iter().find(|g| g.0 == r.id).map(|g| g.1);
        for i in (0..self.running.len()).rev() {
            let Some(why) = why(&self.running[i]) else { continue };
            self.steady.forget();
            let ended = self.running.remove(i);
            if why == Ended::Well
                && let Some(prefixes) = &mut self.prefixes
            {
                prefixes.insert(&ended.tokens, ended.request.salt, ended.marks(), ended.sequence.clone());
                if let Some(disk) = &self.disk {
                    disk.offer(&ended.tokens, ended.request.salt, &ended.sequence);
                }
            }
            if self.keep_ended {
                self.ended.push(ended);
            }
        }
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
