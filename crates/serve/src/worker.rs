//! The thread that computes: takes jobs, runs the engines of all models in turn, sends updates.
//!
//! Everything here happens between two steps: new jobs join, those whose clients have gone leave. Steps are kept short
//! by the number of prompt rows in them, so that replies keep their pace and short requests do not wait for long ones.
//! Knows nothing of HTTP.

use crate::error::ApiError;
use crate::job::{Ending, Job, Scored, Update};
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::models::Loaded;
use crate::pace::{EARLY, Pace};
use crate::settings::{Log, Settings};
use lapis_lm::engine::{LOGITS, Place};
use lapis_lm::{Engine, Event, Prefixes, Reply, Request, Sequence};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

/// Work for the thread of the engine.
pub enum Command {
    /// Replies to write.
    Run(u64, Box<Job>),
    /// Nobody waits for this job any more.
    Cancel(u64),
    /// Something else to compute, between two steps.
    Compute(Box<dyn FnOnce() + Send>),
    /// The model of this number was let go.
    Forget(u64),
    /// Everything that is remembered of prompts goes; says how many entries there were.
    ClearCache(std::sync::mpsc::Sender<usize>),
    /// All jobs end with an error, and the thread does.
    Stop,
}

/// A prompt of so many tokens goes before longer ones.
const SHORT: usize = 64;
/// Prompts and replies beyond so many tokens are counted as that many where room is planned.
const OPEN: usize = 4096;

/// One reply in an engine.
struct Writing {
    job: u64,
    choice: usize,
    reply: Reply,
    tokens: usize,
    last: Instant,
}

/// A model at work.
struct Desk {
    model: Arc<Loaded>,
    engine: Engine,
    writing: HashMap<u64, Writing>,
    pace: Pace,
    /// Seconds of computing so far, for turns among models.
    spent: f64,
    evicted: u64,
    /// Guesses that the metrics know of.
    guessed: u64,
}

struct Running {
    job: Job,
    /// Replies that are not over.
    left: usize,
    /// Replies that wait for the first to have read the prompt.
    held: usize,
    bytes: u64,
    ledger: Ledger,
}

/// The state of the thread.
pub(crate) struct Worker {
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    commands: Receiver<Command>,
    /// Jobs that wait, by owner, and whose turn it is.
    queue: BTreeMap<u64, VecDeque<(u64, Job)>>,
    turn: u64,
    running: HashMap<u64, Running>,
    desks: BTreeMap<u64, Desk>,
    over: bool,
}

impl Worker {
    /// A worker that takes commands from a channel.
    pub(crate) fn new(settings: Arc<Settings>, metrics: Arc<Metrics>, commands: Receiver<Command>) -> Worker {
        Worker {
            settings,
            metrics,
            commands,
            queue: BTreeMap::new(),
            turn: 0,
            running: HashMap::new(),
            desks: BTreeMap::new(),
            over: false,
        }
    }

    /// Works until it is stopped or nobody can send commands any more.
    pub(crate) fn run(mut self) {
        while !self.over {
            self.listen();
            self.admit();
            self.step();
            self.metrics.beat();
        }
        for (_, running) in self.running.drain() {
            tell(&running.job, Update::Failed(ApiError::later(503, 10, "the server is stopping")));
        }
    }

    /// Takes commands; waits for one if there is nothing else to do.
    fn listen(&mut self) {
        let idle = self.desks.values().all(|d| d.engine.is_idle()) && self.queue.is_empty();
        if idle {
            self.metrics.working.store(false, Relaxed);
            match self.commands.recv_timeout(Duration::from_secs(1)) {
                Ok(command) => self.obey(command),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => self.over = true,
            }
            self.metrics.working.store(true, Relaxed);
        }
        loop {
            match self.commands.try_recv() {
                // One slice of other work, then a step.
                Ok(command @ Command::Compute(_)) => return self.obey(command),
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.over = true;
                    return;
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Run(id, job) => self.queue.entry(job.owner).or_default().push_back((id, *job)),
            Command::Cancel(id) => self.cancel(id, "cancelled"),
            Command::Compute(work) => {
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    self.metrics.faults.fetch_add(1, Relaxed);
                }
            }
            Command::Forget(serial) => drop(self.desks.remove(&serial)),
            Command::ClearCache(done) => {
                let all = self.desks.values_mut().filter_map(|d| d.engine.prefixes.as_mut());
                let count = all.map(|p| {
                    let n = p.len();
                    p.clear();
                    n
                });
                let _ = done.send(count.sum());
            }
            Command::Stop => self.over = true,
        }
    }

    /// Ends a job before it is done: its client has gone, or it has come to grief.
    fn cancel(&mut self, id: u64, end: &str) {
        for waiting in self.queue.values_mut() {
            let before = waiting.len();
            waiting.retain(|(i, _)| *i != id);
            if waiting.len() < before {
                self.metrics.queued.fetch_sub(before - waiting.len(), Relaxed);
                self.metrics.cancelled.fetch_add(1, Relaxed);
            }
        }
        self.queue.retain(|_, waiting| !waiting.is_empty());
        let Some(running) = self.running.remove(&id) else { return };
        self.metrics.cancelled.fetch_add(1, Relaxed);
        running.ledger.close(&running.job, end, &self.settings);
        if let Some(desk) = self.desks.get_mut(&running.job.model.0.serial) {
            desk.drop_job(id);
        }
        self.note();
    }

    /// Jobs that wait get their places, owners in turn, as long as there is room for what they will remember.
    fn admit(&mut self) {
        while self.running.len() < 2 * self.settings.decode_concurrency {
            let next = self.queue.range(self.turn + 1..).next().or_else(|| self.queue.iter().next());
            let Some((&owner, waiting)) = next else { return };
            let Some((_, job)) = waiting.front() else { return };
            let bytes = reserve(job);
            let taken = self.running.values().map(|r| r.bytes).sum::<u64>() + self.metrics.embedding.load(Relaxed);
            let weights = crate::models::weights_of(self.desks.values().map(|d| &d.model));
            if !self.running.is_empty() && weights + taken + bytes > self.settings.memory_limit {
                return;
            }
            self.turn = owner;
            let Some((id, job)) = self.queue.get_mut(&owner).and_then(VecDeque::pop_front) else { return };
            if self.queue.get(&owner).is_some_and(VecDeque::is_empty) {
                self.queue.remove(&owner);
            }
            self.metrics.queued.fetch_sub(1, Relaxed);
            self.begin(id, job, bytes);
        }
    }

    fn begin(&mut self, id: u64, job: Job, bytes: u64) {
        let model = Arc::clone(&job.model.0);
        let settings = &self.settings;
        let desk = self.desks.entry(model.serial).or_insert_with(|| Desk::new(model, settings));
        match desk.add(id, &job, 0) {
            Ok(()) => {
                let left = job.n;
                self.running.insert(id, Running { held: job.n - 1, left, job, bytes, ledger: Ledger::default() });
                self.note();
            }
            Err(e) => drop(tell(&job, Update::Failed(e))),
        }
    }

    /// One step of the model that has computed least.
    fn step(&mut self) {
        let busy = self.desks.values_mut().filter(|d| !d.engine.is_idle());
        let Some(desk) = busy.min_by(|a, b| a.spent.total_cmp(&b.spent)) else { return };
        let serial = desk.model.serial;
        let (writing, reading) = desk.engine.work();
        let began = Instant::now();
        let early = desk.engine.is_early(EARLY);
        desk.engine.prefill_step = desk.pace.rows(writing, reading, early, self.settings.prefill_step.max(1));
        let stepped = catch_unwind(AssertUnwindSafe(|| desk.engine.step()));
        let seconds = began.elapsed().as_secs_f64();
        let rows = desk.engine.stepped;
        // A step may have waited for files alone.
        if rows > 0 && stepped.is_ok() {
            let replies = reading == 0 || desk.engine.prefill_step == 0;
            desk.pace.learn(rows, replies, seconds);
        }
        desk.spent += seconds;
        self.metrics.steps.observe(seconds);
        self.metrics.rows.fetch_add(rows as u64, Relaxed);
        match stepped {
            Ok(Ok(events)) => {
                for event in events {
                    self.hear(serial, began, event);
                }
            }
            // A drafter that failed has been let go; requests go on without it.
            Ok(Err(_)) => drop(self.metrics.faults.fetch_add(1, Relaxed)),
            Err(_) => self.rebuild(serial),
        }
        self.level();
        self.note();
    }

    /// Models that come back after a while do not make up for what they did not compute.
    fn level(&mut self) {
        let busy = self.desks.values().filter(|d| !d.engine.is_idle()).map(|d| d.spent);
        let least = busy.fold(f64::INFINITY, f64::min);
        for desk in self.desks.values_mut().filter(|d| d.engine.is_idle()) {
            if least.is_finite() {
                desk.spent = desk.spent.max(least);
            }
        }
    }

    /// A step broke down: its requests are lost, the model gets a new engine.
    fn rebuild(&mut self, serial: u64) {
        self.metrics.faults.fetch_add(1, Relaxed);
        let Some(desk) = self.desks.remove(&serial) else { return };
        let lost: Vec<u64> =
            self.running.iter().filter(|(_, r)| r.job.model.0.serial == serial).map(|(&id, _)| id).collect();
        for id in lost {
            if let Some(mut running) = self.running.remove(&id) {
                let error = ApiError::new(500, "a step of the model broke down");
                running.ledger.why = Some(error.message.clone());
                running.ledger.close(&running.job, "failed", &self.settings);
                tell(&running.job, Update::Failed(error));
            }
        }
        self.desks.insert(serial, Desk::new(desk.model, &self.settings));
    }

    fn hear(&mut self, serial: u64, began: Instant, event: Event) {
        let Some(desk) = self.desks.get_mut(&serial) else { return };
        let key = event.id();
        let Some(writing) = desk.writing.get_mut(&key) else { return };
        let (id, choice) = (writing.job, writing.choice);
        let Some(running) = self.running.get_mut(&id) else { return };
        let total = running.job.prompt.len();
        let mut gone;
        let mut end = "cancelled";
        match event {
            Event::Started { cached, .. } => {
                self.metrics.cached_tokens.fetch_add(cached as u64, Relaxed);
                self.metrics.prompt_tokens.fetch_add(total as u64, Relaxed);
                let hit = if cached > 0 { &self.metrics.cache_hits } else { &self.metrics.cache_misses };
                hit.fetch_add(1, Relaxed);
                if choice == 0 {
                    (running.ledger.began, running.ledger.cached) = (Some(began), cached);
                    self.metrics.queue_time.observe(began.duration_since(running.job.came).as_secs_f64());
                }
                gone = !tell(&running.job, Update::Started { choice, cached, began });
            }
            Event::Prefill { done, .. } => {
                self.metrics.prefilled.store(done as u64, Relaxed);
                gone = !tell(&running.job, Update::Progress { done, total });
            }
            Event::Scored { places, over, .. } => {
                let scored = |p: Place| Scored { token: p.token, logprob: p.logprob, top: p.top };
                gone = !tell(&running.job, Update::Scored(places.into_iter().map(scored).collect()));
                if over {
                    // Nothing is written, however many replies were asked for.
                    desk.writing.remove(&key);
                    for choice in 0..running.job.n {
                        let ending = Ending::Length;
                        tell(
                            &running.job,
                            Update::Ended { choice, ending, tokens: 0, reasoning: 0, calls: 0, unread: 0 },
                        );
                    }
                    if let Some(done) = self.running.remove(&id) {
                        done.ledger.close(&done.job, "done", &self.settings);
                    }
                }
            }
            Event::Failed { error, .. } => {
                desk.writing.remove(&key);
                running.ledger.why = Some(error.message().to_string());
                tell(&running.job, Update::Failed(error.into()));
                (gone, end) = (true, "failed");
            }
            Event::Token { choice: chosen, top, finish, drafted, .. } => {
                let now = Instant::now();
                if writing.tokens == 0 {
                    self.metrics.first_token.observe(running.job.came.elapsed().as_secs_f64());
                } else {
                    self.metrics.between_tokens.observe(now.duration_since(writing.last).as_secs_f64());
                }
                writing.last = now;
                running.ledger.first.get_or_insert(now);
                running.ledger.tokens += 1;
                if self.settings.log_content {
                    running.ledger.said.entry(choice).or_default().push(chosen.token);
                }
                writing.tokens += 1;
                self.metrics.output_tokens.fetch_add(1, Relaxed);
                self.metrics.drafted.fetch_add(u64::from(drafted), Relaxed);
                let taken = catch_unwind(AssertUnwindSafe(|| writing.reply.add(chosen.token, finish)));
                let taken = match taken {
                    Ok(Ok(taken)) => taken,
                    Ok(Err(e)) => {
                        running.ledger.why = Some(e.message().to_string());
                        tell(&running.job, Update::Failed(e.into()));
                        return self.cancel(id, "failed");
                    }
                    Err(_) => {
                        self.metrics.faults.fetch_add(1, Relaxed);
                        let error = ApiError::new(500, "the reply could not be read");
                        running.ledger.why = Some(error.message.clone());
                        tell(&running.job, Update::Failed(error));
                        return self.cancel(id, "failed");
                    }
                };
                let scored = Scored { token: chosen.token, logprob: chosen.logprob, top };
                gone = !tell(&running.job, Update::Said { choice, parts: taken.parts, scored, drafted });
                if let Some(ending) = Ending::of(finish, taken.stopped) {
                    let unread = writing.reply.unread_calls();
                    if unread > 0 && self.settings.log != Log::Off {
                        let model = &running.job.model.0.id;
                        crate::log::line(&format!("{model}: {}", crate::reply::unread(unread)));
                    }
                    let (tokens, reasoning, calls) =
                        (writing.tokens, writing.reply.reasoning_tokens(), writing.reply.calls());
                    desk.writing.remove(&key);
                    if finish.is_none() {
                        desk.engine.end(key);
                    }
                    gone |= !tell(&running.job, Update::Ended { choice, ending, tokens, reasoning, calls, unread });
                    running.left -= 1;
                }
                // The prompt is read: the other replies need not read it again.
                for other in (0..std::mem::take(&mut running.held)).rev() {
                    let choice = running.job.n - 1 - other;
                    if let Err(e) = desk.add(id, &running.job, choice) {
                        tell(&running.job, Update::Failed(e));
                        gone = true;
                    }
                }
                if running.left == 0 {
                    running.ledger.close(&running.job, "done", &self.settings);
                    self.running.remove(&id);
                }
            }
        }
        if gone && self.running.contains_key(&id) {
            self.cancel(id, end);
        }
    }

    /// Puts down what there is to see from outside.
    fn note(&mut self) {
        let metrics = &self.metrics;
        metrics.running.store(self.desks.values().map(|d| d.engine.counts().0).sum(), Relaxed);
        metrics.waiting.store(self.desks.values().map(|d| d.engine.counts().1).sum(), Relaxed);
        metrics.reserved.store(self.running.values().map(|r| r.bytes).sum(), Relaxed);
        for desk in self.desks.values_mut() {
            metrics.guessed.fetch_add(desk.engine.guessed - desk.guessed, Relaxed);
            desk.guessed = desk.engine.guessed;
            if let Some(prefixes) = &desk.engine.prefixes {
                metrics.cache_evictions.fetch_add(prefixes.evicted - desk.evicted, Relaxed);
                desk.evicted = prefixes.evicted;
            }
        }
        // Adding up what entries hold takes a while; once a second is enough.
        if metrics.cache_due() {
            let all = || self.desks.values().filter_map(|d| d.engine.prefixes.as_ref());
            metrics.cache_entries.store(all().map(Prefixes::len).sum(), Relaxed);
            metrics.cache_bytes.store(all().map(|p| p.bytes() as u64).sum(), Relaxed);
            let disk = self.desks.values().find_map(|d| d.engine.disk.as_ref());
            if let Some(trouble) = disk.and_then(|d| d.disk().trouble()) {
                crate::log::line(&trouble);
            }
        }
    }
}

impl Desk {
    fn new(model: Arc<Loaded>, settings: &Settings) -> Desk {
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
        Desk { model, engine, writing: HashMap::new(), pace: Pace::default(), spent: 0.0, evicted: 0, guessed: 0 }
    }

    /// Adds one reply of a job to the engine.
    fn add(&mut self, id: u64, job: &Job, choice: usize) -> Result<(), ApiError> {
        let model = &self.model.model;
        let request = Request {
            prompt: job.prompt.clone(),
            max_tokens: job.max_tokens,
            sampling: job.sampling.clone(),
            eos: Arc::clone(&model.eos),
            choice: choice as u64,
            top: job.top,
            salt: job.salt,
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
        self.writing.insert(key, Writing { job: id, choice, reply, tokens: 0, last: Instant::now() });
        Ok(())
    }

    /// Ends all replies of a job.
    fn drop_job(&mut self, id: u64) {
        let keys: Vec<u64> = self.writing.iter().filter(|(_, w)| w.job == id).map(|(&k, _)| k).collect();
        for key in keys {
            self.writing.remove(&key);
            self.engine.end(key);
        }
    }
}

/// Bytes that the replies of a job may come to need.
fn reserve(job: &Job) -> u64 {
    let fit = &job.model.0.fit;
    let length = job.prompt.len() + job.max_tokens.min(OPEN);
    // Logits of some of the prompt's rows, as they come and as they are sorted.
    let scores = if job.scores.is_some() { 16 * LOGITS as u64 } else { 0 };
    fit.remembered(length.min(job.model.0.context)) * job.n as u64 + fit.working + scores
}

/// Sends an update; `false` if nobody listens, or not fast enough.
fn tell(job: &Job, update: Update) -> bool {
    job.updates.try_send(update).is_ok()
}
