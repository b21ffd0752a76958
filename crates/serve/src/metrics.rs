//! Counters and times of a server, and their text for Prometheus.
//!
//! Everything is an atomic number: nothing here waits for anything. No label holds what clients chose, but for names of
//! keys that the operator gave.

use crate::error::ApiError;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Upper bounds of the buckets of times, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// How often something took how long.
#[derive(Default)]
pub struct Times {
    buckets: [AtomicU64; 14],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Times {
    /// It took so many seconds this time.
    pub fn observe(&self, seconds: f64) {
        if let Some(bucket) = BUCKETS.iter().position(|&b| seconds <= b) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.micros.fetch_add((seconds * 1e6) as u64, Relaxed);
    }

    /// How often, and how many seconds in all.
    pub fn total(&self) -> (u64, f64) {
        (self.count.load(Relaxed), self.micros.load(Relaxed) as f64 / 1e6)
    }

    fn write(&self, out: &mut String, name: &str, about: &str) {
        let _ = writeln!(out, "# HELP lapis_{name} {about}\n# TYPE lapis_{name} histogram");
        let mut sum = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            sum += bucket.load(Relaxed);
            let _ = writeln!(out, "lapis_{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let (count, seconds) = self.total();
        let _ = writeln!(out, "lapis_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "lapis_{name}_sum {seconds}\nlapis_{name}_count {count}");
    }
}

/// What a server counts.
pub struct Metrics {
    began: Instant,
    /// When the engine last ended a turn, in milliseconds since the start.
    beat: AtomicU64,
    /// Whether the engine computes.
    pub working: AtomicBool,
    /// Answers by route and status.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Errors by what programs call them.
    errors: Mutex<BTreeMap<&'static str, u64>>,
    /// Requests refused before any work, by the same.
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    /// Requests by the names of their keys.
    keys: Mutex<BTreeMap<String, u64>>,
    /// Time of a request from its first byte to the last of its answer.
    pub request_time: Times,
    /// Time in the queue.
    pub queue_time: Times,
    /// Time to the first token.
    pub first_token: Times,
    /// Time between two tokens of a reply.
    pub between_tokens: Times,
    /// Time of a step.
    pub steps: Times,
    /// Time to compile a grammar.
    pub grammar_time: Times,
    /// Time to load a model.
    pub load_time: Times,
    /// Time to load an adapter.
    pub adapter_time: Times,
    /// Tokens of prompts.
    pub prompt_tokens: AtomicU64,
    /// Tokens of prompts that were known.
    pub cached_tokens: AtomicU64,
    /// Tokens written.
    pub output_tokens: AtomicU64,
    /// Tokens that were guessed.
    pub guessed: AtomicU64,
    /// Tokens written that had been guessed.
    pub drafted: AtomicU64,
    /// Rows of all steps.
    pub rows: AtomicU64,
    /// Tokens of prompts that were computed.
    pub prefilled: AtomicU64,
    /// Steps in which replies were written, and how many replies that was in all.
    pub decoding: (AtomicU64, AtomicU64),
    /// Replies that are computed now.
    pub running: AtomicUsize,
    /// Replies that wait in the engine.
    pub waiting: AtomicUsize,
    /// Jobs in the queue.
    pub queued: AtomicUsize,
    /// Bytes that running jobs may come to need.
    pub reserved: AtomicU64,
    /// Bytes that embeddings may come to need.
    pub embedding: AtomicU64,
    /// Prompts of which a beginning was known, and of which none was.
    pub cache_hits: AtomicU64,
    /// As [`Metrics::cache_hits`], none.
    pub cache_misses: AtomicU64,
    /// Remembered prompts that were let go.
    pub cache_evictions: AtomicU64,
    /// Remembered prompts.
    pub cache_entries: AtomicUsize,
    /// Their bytes.
    pub cache_bytes: AtomicU64,
    /// Blocks of keys that are held.
    pub pages: AtomicUsize,
    cache_seen: AtomicU64,
    /// Jobs whose clients had gone.
    pub cancelled: AtomicU64,
    /// Jobs that had to wait for room in the middle of their replies.
    pub paused: AtomicU64,
    /// Time of the step that a model takes before it is ready.
    pub warm_up: Times,
    /// Faults that were caught.
    pub faults: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicUsize,
}

/// Counts one more.
fn count<K: Ord>(counts: &Mutex<BTreeMap<K, u64>>, key: K) {
    *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
}

/// A counter with a label.
fn labelled<K: AsRef<str>>(out: &mut String, name: &str, about: &str, label: &str, counts: &Mutex<BTreeMap<K, u64>>) {
    let _ = writeln!(out, "# HELP lapis_{name} {about}\n# TYPE lapis_{name} counter");
    for (value, n) in counts.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let value = value.as_ref().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = writeln!(out, "lapis_{name}{{{label}=\"{value}\"}} {n}");
    }
}

/// No turn of the engine takes so long.
const STUCK: Duration = Duration::from_secs(10);

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        Metrics {
            began: Instant::now(),
            beat: AtomicU64::new(0),
            working: AtomicBool::new(false),
            answers: Mutex::default(),
            errors: Mutex::default(),
            rejected: Mutex::default(),
            keys: Mutex::default(),
            request_time: Times::default(),
            queue_time: Times::default(),
            first_token: Times::default(),
            between_tokens: Times::default(),
            steps: Times::default(),
            grammar_time: Times::default(),
            load_time: Times::default(),
            adapter_time: Times::default(),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            output_tokens: AtomicU64::new(0),
            guessed: AtomicU64::new(0),
            drafted: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            prefilled: AtomicU64::new(0),
            decoding: Default::default(),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            reserved: AtomicU64::new(0),
            embedding: AtomicU64::new(0),
            cache_hits: AtomicU64::new(0),
            cache_misses: AtomicU64::new(0),
            cache_evictions: AtomicU64::new(0),
            cache_entries: AtomicUsize::new(0),
            cache_bytes: AtomicU64::new(0),
            pages: AtomicUsize::new(0),
            cache_seen: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            paused: AtomicU64::new(0),
            warm_up: Times::default(),
            faults: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Seconds since the start.
    pub fn uptime(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// The engine ended a turn.
    pub fn beat(&self) {
        self.beat.store(self.now(), Relaxed);
    }

    /// Whether the engine computes and has not ended a turn for long.
    pub fn is_stuck(&self) -> bool {
        let since = self.now().saturating_sub(self.beat.load(Relaxed));
        self.working.load(Relaxed) && since > STUCK.as_millis() as u64
    }

    /// Whether a second has passed since this was last true.
    pub fn cache_due(&self) -> bool {
        let (seen, now) = (self.cache_seen.load(Relaxed), self.now());
        let due = now >= seen + 1000 || seen == 0;
        if due {
            self.cache_seen.store(now.max(1), Relaxed);
        }
        due
    }

    /// A request is over: its answer was sent, or nobody waits for it any more.
    pub fn answered(&self, route: &'static str, status: u16, seconds: f64) {
        count(&self.answers, (route, status));
        self.request_time.observe(seconds);
    }

    /// A request of a key of some name.
    pub fn asked(&self, key: &str) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        match keys.get_mut(key) {
            Some(n) => *n += 1,
            None => drop(keys.insert(key.to_string(), 1)),
        }
    }

    /// A request came to grief.
    pub fn erred(&self, error: &ApiError) {
        count(&self.errors, error.name());
        if error.is_refusal() {
            count(&self.rejected, error.name());
        }
    }

    /// Requests refused for some reason.
    pub fn rejected(&self, reason: &str) -> u64 {
        self.rejected.lock().unwrap_or_else(PoisonError::into_inner).get(reason).copied().unwrap_or(0)
    }

    /// Answers so far.
    pub fn answers(&self) -> Vec<(&'static str, u16, u64)> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().map(|(&(route, status), &n)| (route, status, n)).collect()
    }

    /// All of it as Prometheus reads it. `more` and `gauges` are further counters and numbers: name, what it is, value.
    pub fn text(&self, more: &[(&str, &str, f64)], gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "# HELP lapis_build_info The program.\n# TYPE lapis_build_info gauge\nlapis_build_info{{version=\"{}\"}} 1",
            env!("CARGO_PKG_VERSION")
        );
        let _ = writeln!(
            out,
            "# HELP lapis_requests_total Answers by route and status.\n# TYPE lapis_requests_total counter"
        );
        for (route, status, n) in self.answers() {
            let _ = writeln!(out, "lapis_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        labelled(&mut out, "errors_total", "Errors by code.", "code", &self.errors);
        labelled(&mut out, "rejected_total", "Requests refused before any work.", "reason", &self.rejected);
        labelled(&mut out, "key_requests_total", "Requests by the name of their key.", "key", &self.keys);
        let u = |a: &AtomicU64| a.load(Relaxed) as f64;
        let n = |a: &AtomicUsize| a.load(Relaxed) as f64;
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts.", u(&self.prompt_tokens)),
            ("cached_tokens_total", "Tokens of prompts that were known.", u(&self.cached_tokens)),
            ("prefill_tokens_total", "Tokens of prompts that were computed.", u(&self.prefilled)),
            ("output_tokens_total", "Tokens written.", u(&self.output_tokens)),
            ("draft_proposed_tokens_total", "Tokens that were guessed.", u(&self.guessed)),
            ("draft_accepted_tokens_total", "Tokens written that had been guessed.", u(&self.drafted)),
            ("rows_total", "Rows of all steps: tokens read and written.", u(&self.rows)),
            ("decode_steps_total", "Steps in which replies were written.", u(&self.decoding.0)),
            ("decode_rows_total", "Replies written in them.", u(&self.decoding.1)),
            ("prefix_cache_hits_total", "Prompts of which a beginning was known.", u(&self.cache_hits)),
            ("prefix_cache_misses_total", "Prompts of which nothing was known.", u(&self.cache_misses)),
            ("prefix_cache_evictions_total", "Remembered prompts let go for room.", u(&self.cache_evictions)),
            ("cancelled_total", "Jobs whose clients had gone.", u(&self.cancelled)),
            ("paused_total", "Jobs that waited for room in the middle of their replies.", u(&self.paused)),
            ("faults_total", "Faults that were caught.", u(&self.faults)),
        ];
        let own = [
            ("uptime_seconds", "Since the start.", self.uptime()),
            ("running", "Replies that are computed now.", n(&self.running)),
            ("waiting", "Replies that wait for a place in the batch.", n(&self.waiting)),
            ("queue_length", "Jobs that wait for room.", n(&self.queued)),
            ("reserved_bytes", "What running jobs may come to need.", u(&self.reserved)),
            ("embedding_bytes", "What embeddings may come to need.", u(&self.embedding)),
            ("prefix_cache_entries", "Remembered prompts.", n(&self.cache_entries)),
            ("prefix_cache_bytes", "Their bytes.", u(&self.cache_bytes)),
            ("kv_pages_used", "Blocks of 512 positions that replies and remembered prompts hold.", n(&self.pages)),
            ("connections", "Open connections.", n(&self.connections)),
        ];
        for (kind, all) in [("counter", &counters[..]), ("counter", more), ("gauge", &own[..]), ("gauge", gauges)] {
            for (name, about, value) in all {
                let _ = writeln!(out, "# HELP lapis_{name} {about}\n# TYPE lapis_{name} {kind}\nlapis_{name} {value}");
            }
        }
        for (times, name, about) in [
            (&self.request_time, "request_seconds", "Time of a request, to the end of its answer."),
            (&self.queue_time, "queue_seconds", "Time in the queue."),
            (&self.first_token, "time_to_first_token_seconds", "Time to the first token."),
            (&self.between_tokens, "inter_token_seconds", "Time between two tokens of a reply."),
            (&self.steps, "step_seconds", "Time of a step."),
            (&self.grammar_time, "grammar_compile_seconds", "Time to compile a grammar."),
            (&self.load_time, "model_load_seconds", "Time to load a model."),
            (&self.warm_up, "model_warm_up_seconds", "Time of the step that a model takes before it is ready."),
            (&self.adapter_time, "adapter_load_seconds", "Time to put an adapter on a model."),
        ] {
            times.write(&mut out, name, about);
        }
        out
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}
