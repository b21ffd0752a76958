//! The thread that computes: takes jobs, runs the engines of all models in turn, sends updates.
//!
//! Everything here happens between two steps: new jobs join, those whose clients have gone leave. Steps are kept short
//! by the number of prompt rows in them, so that replies keep their pace and short requests do not wait for long ones.
//! Knows nothing of HTTP.

use crate::desk::Desk;
use crate::error::ApiError;
use crate::job::{Ending, Job, Scored, Update};
use crate::metrics::Metrics;
use crate::pace::EARLY;
use crate::record;
use crate::settings::{Log, Settings};
use lapis::Error;
use lapis_lm::engine::{LOGITS, Place};
use lapis_lm::{Event, Prefixes};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
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

struct Running {
    job: Job,
    /// Replies that are not over.
    left: usize,
    /// Replies that wait for the first to have read the prompt.
    held: usize,
    bytes: u64,
    /// Tokens of each reply for which there is room.
    reach: usize,
    /// Bytes that it needs to go on, while it waits for them.
    waits: Option<u64>,
    /// The tokens of each reply, where the log has them.
    said: BTreeMap<usize, Vec<u32>>,
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
        // What was computed is told at once, not when a thread that computes the next has had its time.
        lapis::give_way();
        while !self.over {
            self.listen();
            self.go_on();
            self.admit();
            self.step();
            // Who is to send what the step wrote may wait for this very processor, and would until the system's next tick.
            std::thread::yield_now();
            self.metrics.beat();
        }
        for (_, running) in self.running.drain() {
            tell(&running.job, Update::Failed(ApiError::stopping()));
        }
    }

    /// Takes commands; waits for one if there is nothing else to do.
    fn listen(&mut self) {
        let idle = self.desks.values().all(|d| d.engine.is_idle()) && self.queue.is_empty();
        if idle {
            self.metrics.working.store(false, Relaxed);
            match self.commands.recv_timeout(Duration::from_secs(1)) {
                Ok(command) => self.obey(command),
                // What is seen from outside is of now.
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => self.note(),
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
            Command::Cancel(id) => self.cancel(id),
            Command::Compute(work) => {
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    self.metrics.faults.fetch_add(1, Relaxed);
                }
            }
            Command::Forget(serial) => {
                self.desks.remove(&serial);
                self.desks.values_mut().for_each(|desk| desk.forget(serial));
            }
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
    fn cancel(&mut self, id: u64) {
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
        self.metrics.cancelled.fetch_add(u64::from(!running.job.record.has_failed()), Relaxed);
        self.close(&running);
        if let Some(desk) = self.desks.get_mut(&running.job.model.0.home().serial) {
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
            let bytes = remembered(job, self.settings.open_tokens);
            let paused = self.running.values().any(|r| r.waits.is_some());
            if !self.running.is_empty() && (paused || bytes > self.left()) {
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

    /// Bytes that nobody has set aside; what prompts are remembered with makes room.
    fn left(&self) -> u64 {
        let taken = self.running.values().map(|r| r.bytes).sum::<u64>() + self.metrics.embedding.load(Relaxed);
        let weights = crate::models::weights_of(self.desks.values().flat_map(Desk::models));
        self.settings.memory_limit.saturating_sub(weights + taken)
    }

    /// Prompts are remembered in what is left, and in no more than they may have.
    fn level_caches(&mut self) {
        let each = self.left() / self.desks.len().max(1) as u64;
        for desk in self.desks.values_mut() {
            let limit = desk.remembers.min(each) as usize;
            if let Some(prefixes) = &mut desk.engine.prefixes {
                prefixes.set_limit(limit);
            }
        }
    }

    /// Jobs that wait in the middle of their replies go on, the oldest first, as there is room for them.
    fn go_on(&mut self) {
        loop {
            let waiting = self.running.iter().filter_map(|(&id, r)| Some((id, r.waits?))).min();
            let Some((id, bytes)) = waiting else { return };
            let others = self.running.values().any(|r| r.waits.is_none());
            if others && bytes > self.left() {
                return;
            }
            let Some(running) = self.running.get_mut(&id) else { return };
            (running.bytes, running.waits) = (bytes, None);
            running.reach += self.settings.open_tokens;
            if let Some(desk) = self.desks.get_mut(&running.job.model.0.home().serial) {
                desk.keys(id).into_iter().for_each(|key| desk.engine.resume(key));
            }
            self.level_caches();
        }
    }

    /// A reply has come to the end of the room that was set aside for it: there is more, or it waits.
    fn outgrown(&mut self, id: u64) {
        let left = self.left();
        let others = self.running.iter().any(|(&i, r)| i != id && r.waits.is_none());
        let Some(running) = self.running.get_mut(&id).filter(|r| r.waits.is_none()) else { return };
        let (job, open) = (&running.job, self.settings.open_tokens);
        let bytes = remembered(job, running.reach + open).max(running.bytes);
        if bytes - running.bytes <= left || !others {
            running.bytes = bytes;
            running.reach += open;
            return self.level_caches();
        }
        (running.bytes, running.waits) = (0, Some(bytes));
        self.metrics.paused.fetch_add(1, Relaxed);
        if let Some(desk) = self.desks.get_mut(&job.model.0.home().serial) {
            desk.keys(id).into_iter().for_each(|key| desk.engine.pause(key));
        }
    }

    fn begin(&mut self, id: u64, job: Job, bytes: u64) {
        let model = Arc::clone(job.model.0.home());
        let settings = &self.settings;
        let desk = self.desks.entry(model.serial).or_insert_with(|| Desk::new(model, settings));
        match desk.add(id, &job, 0) {
            Ok(()) => {
                let left = job.n;
                let (held, reach) = (job.n - 1, self.settings.open_tokens);
                let new = Running { held, left, job, bytes, reach, waits: None, said: BTreeMap::new() };
                self.running.insert(id, new);
                self.level_caches();
                self.note();
            }
            Err(e) => drop(tell(&job, Update::Failed(e))),
        }
    }

    /// One step of the model that has computed least.
    fn step(&mut self) {
        let busy = self.desks.values_mut().filter(|d| d.engine.has_work());
        let Some(desk) = busy.min_by(|a, b| a.spent.total_cmp(&b.spent)) else { return };
        let serial = desk.model.serial;
        let (writing, reading) = desk.engine.work();
        let began = Instant::now();
        // A short prompt is soon over; in smaller slices it costs those who write more in all.
        let early = desk.engine.is_early(EARLY) && !desk.engine.reads_short();
        // A short prompt that comes in between gives a long one no more rows.
        let prompts = desk.engine.reads();
        desk.engine.prefill_step = desk.pace.rows(writing, prompts, early, self.settings.prefill_step.max(1));
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
        self.metrics.decoding.0.fetch_add(u64::from(writing > 0), Relaxed);
        self.metrics.decoding.1.fetch_add(writing as u64, Relaxed);
        match stepped {
            Ok(Ok(events)) => {
                for event in events {
                    self.hear(serial, began, event);
                }
            }
            // A drafter that failed has been let go; requests go on without it.
            Ok(Err(_)) => drop(self.metrics.faults.fetch_add(1, Relaxed)),
            Err(_) => self.recover(serial, began),
        }
        let room = |r: &Running| r.reach < r.job.max_tokens;
        let grown = self.desks.get(&serial).map(|desk| desk.writing.values()).into_iter().flatten();
        let grown = grown.filter(|w| self.running.get(&w.job).is_some_and(|r| room(r) && w.tokens >= r.reach));
        for id in grown.map(|w| w.job).collect::<BTreeSet<_>>() {
            self.outgrown(id);
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

    /// A step broke down: whose fault it was is found by trying each request by itself; the others go on.
    fn recover(&mut self, serial: u64, began: Instant) {
        let Some(desk) = self.desks.get_mut(&serial) else { return };
        let error = Error::io("a step of the model broke down");
        let recovered = catch_unwind(AssertUnwindSafe(|| desk.engine.recover(&error)));
        match recovered {
            Ok(events) => {
                self.metrics.faults.fetch_add(1, Relaxed);
                for event in events {
                    self.hear(serial, began, event);
                }
            }
            Err(_) => self.rebuild(serial),
        }
    }

    /// What a step broke down over is in the engine itself: its requests are lost, the model gets a new one.
    fn rebuild(&mut self, serial: u64) {
        self.metrics.faults.fetch_add(1, Relaxed);
        let Some(desk) = self.desks.remove(&serial) else { return };
        let lost: Vec<u64> =
            self.running.iter().filter(|(_, r)| r.job.model.0.home().serial == serial).map(|(&id, _)| id).collect();
        for id in lost {
            if let Some(running) = self.running.remove(&id) {
                let error = ApiError::new(500, "a step of the model broke down");
                running.job.record.failed(&error);
                self.close(&running);
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
        match event {
            Event::Started { cached, .. } => {
                self.metrics.cached_tokens.fetch_add(cached as u64, Relaxed);
                self.metrics.prompt_tokens.fetch_add(total as u64, Relaxed);
                let hit = if cached > 0 { &self.metrics.cache_hits } else { &self.metrics.cache_misses };
                hit.fetch_add(1, Relaxed);
                writing.read = cached;
                if choice == 0 {
                    let record = &running.job.record;
                    record.began(began, cached);
                    self.metrics.queue_time.observe(began.saturating_duration_since(record.came).as_secs_f64());
                }
                gone = !tell(&running.job, Update::Started { choice, cached, began });
            }
            Event::Prefill { done, .. } => {
                let read = std::mem::replace(&mut writing.read, done.min(total));
                self.metrics.prefilled.fetch_add(writing.read.saturating_sub(read) as u64, Relaxed);
                gone = !tell(&running.job, Update::Progress { done, total });
            }
            Event::Scored { places, over, .. } => {
                let scored = |p: Place| Scored { token: p.token, logprob: p.logprob, top: p.top };
                gone = !tell(&running.job, Update::Scored(places.into_iter().map(scored).collect()));
                if over {
                    // Nothing is written, however many replies were asked for.
                    desk.writing.remove(&key);
                    running.job.model.over();
                    for choice in 0..running.job.n {
                        let ending = Ending::Length;
                        tell(
                            &running.job,
                            Update::Ended { choice, ending, tokens: 0, reasoning: 0, calls: 0, unread: 0 },
                        );
                    }
                    if let Some(done) = self.running.remove(&id) {
                        self.close(&done);
                    }
                }
            }
            Event::Failed { error, .. } => {
                desk.writing.remove(&key);
                let error = ApiError::from(error);
                running.job.record.failed(&error);
                tell(&running.job, Update::Failed(error));
                gone = true;
            }
            Event::Token { choice: chosen, top, finish, drafted, .. } => {
                let now = Instant::now();
                if writing.tokens == 0 {
                    self.metrics.first_token.observe(running.job.record.came.elapsed().as_secs_f64());
                } else {
                    self.metrics.between_tokens.observe(now.duration_since(writing.last).as_secs_f64());
                }
                writing.last = now;
                running.job.record.wrote(now);
                if self.settings.log_content {
                    running.said.entry(choice).or_default().push(chosen.token);
                }
                writing.tokens += 1;
                self.metrics.output_tokens.fetch_add(1, Relaxed);
                self.metrics.drafted.fetch_add(u64::from(drafted), Relaxed);
                let taken = catch_unwind(AssertUnwindSafe(|| writing.reply.add(chosen.token, finish)));
                let taken = match taken {
                    Ok(Ok(taken)) => taken,
                    Ok(Err(e)) => {
                        let error = ApiError::from(e);
                        running.job.record.failed(&error);
                        tell(&running.job, Update::Failed(error));
                        return self.cancel(id);
                    }
                    Err(_) => {
                        self.metrics.faults.fetch_add(1, Relaxed);
                        let error = ApiError::new(500, "the reply could not be read");
                        running.job.record.failed(&error);
                        tell(&running.job, Update::Failed(error));
                        return self.cancel(id);
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
                    running.left -= 1;
                    if running.left == 0 {
                        running.job.model.over();
                    }
                    gone |= !tell(&running.job, Update::Ended { choice, ending, tokens, reasoning, calls, unread });
                }
                // The prompt is read: the other replies need not read it again.
                for other in (0..std::mem::take(&mut running.held)).rev() {
                    let choice = running.job.n - 1 - other;
                    if let Err(e) = desk.add(id, &running.job, choice) {
                        tell(&running.job, Update::Failed(e));
                        gone = true;
                    }
                }
                if running.left == 0
                    && let Some(done) = self.running.remove(&id)
                {
                    self.close(&done);
                }
            }
        }
        if gone && self.running.contains_key(&id) {
            self.cancel(id);
        }
    }

    /// A job is over.
    fn close(&self, running: &Running) {
        if self.settings.log_content {
            record::content(&running.job, &running.said, self.settings.log);
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
        if self.metrics.cache_due() {
            self.level_caches();
            let metrics = &self.metrics;
            let all = || self.desks.values().filter_map(|d| d.engine.prefixes.as_ref());
            metrics.cache_entries.store(all().map(Prefixes::len).sum(), Relaxed);
            metrics.cache_bytes.store(all().map(|p| p.bytes() as u64).sum(), Relaxed);
            metrics.pages.store(self.desks.values().map(|d| d.engine.pages()).sum(), Relaxed);
            let disk = self.desks.values().find_map(|d| d.engine.disk.as_ref());
            if let Some(trouble) = disk.and_then(|d| d.disk().trouble()) {
                crate::log::line(&trouble);
            }
        }
    }
}

/// Bytes that the replies of a job come to need by the time that each has so many tokens.
fn remembered(job: &Job, tokens: usize) -> u64 {
    let fit = &job.model.0.fit;
    let length = job.prompt.len() + job.max_tokens.min(tokens);
    // Logits of some of the prompt's rows, as they come and as they are sorted.
    let scores = if job.scores.is_some() { 16 * LOGITS as u64 } else { 0 };
    fit.remembered(length.min(job.model.0.context)) * job.n as u64 + fit.working + scores
}

/// Sends an update; `false` if nobody listens, or not fast enough.
fn tell(job: &Job, update: Update) -> bool {
    job.updates.try_send(update).is_ok()
}
