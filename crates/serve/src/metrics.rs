//! Counters and times of a server, and their text for Prometheus.
//!
//! Everything is an atomic number: nothing here waits for anything. No label holds what clients chose, but for names of
//! keys that the operator gave.

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
    /// Time of a request from its first byte to its last.
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
    /// Prompt tokens read by the latest slice's request.
    pub prefilled: AtomicU64,
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
    cache_seen: AtomicU64,
    /// Jobs whose clients had gone.
    pub cancelled: AtomicU64,
    /// Faults that were caught.
    pub faults: AtomicU64,
    /// Requests refused because the queue was full.
    pub refused: AtomicU64,
    /// Requests refused because their key had too many.
    pub refused_key: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicUsize,
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
            cache_seen: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refused_key: AtomicU64::new(0),
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

    /// A request was answered.
    pub fn answered(&self, route: &'static str, status: u16, seconds: f64) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry((route, status)).or_default() += 1;
        self.request_time.observe(seconds);
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
        let u = |a: &AtomicU64| a.load(Relaxed) as f64;
        let n = |a: &AtomicUsize| a.load(Relaxed) as f64;
        let counters = [
            ("prompt_tokens_total", "Tokens of prompts.", u(&self.prompt_tokens)),
            ("cached_tokens_total", "Tokens of prompts that were known.", u(&self.cached_tokens)),
            ("output_tokens_total", "Tokens written.", u(&self.output_tokens)),
            ("draft_proposed_tokens_total", "Tokens that were guessed.", u(&self.guessed)),
            ("draft_accepted_tokens_total", "Tokens written that had been guessed.", u(&self.drafted)),
            ("rows_total", "Rows of all steps: tokens read and written.", u(&self.rows)),
            ("prefix_cache_hits_total", "Prompts of which a beginning was known.", u(&self.cache_hits)),
            ("prefix_cache_misses_total", "Prompts of which nothing was known.", u(&self.cache_misses)),
            ("prefix_cache_evictions_total", "Remembered prompts let go for room.", u(&self.cache_evictions)),
            ("cancelled_total", "Jobs whose clients had gone.", u(&self.cancelled)),
            ("refused_total", "Requests refused because the queue was full.", u(&self.refused)),
            ("refused_key_total", "Requests refused because their key had too many.", u(&self.refused_key)),
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
            ("connections", "Open connections.", n(&self.connections)),
        ];
        for (kind, all) in [("counter", &counters[..]), ("counter", more), ("gauge", &own[..]), ("gauge", gauges)] {
            for (name, about, value) in all {
                let _ = writeln!(out, "# HELP lapis_{name} {about}\n# TYPE lapis_{name} {kind}\nlapis_{name} {value}");
            }
        }
        for (times, name, about) in [
            (&self.request_time, "request_seconds", "Time of a request."),
            (&self.queue_time, "queue_seconds", "Time in the queue."),
            (&self.first_token, "time_to_first_token_seconds", "Time to the first token."),
            (&self.between_tokens, "inter_token_seconds", "Time between two tokens of a reply."),
            (&self.steps, "step_seconds", "Time of a step."),
            (&self.grammar_time, "grammar_compile_seconds", "Time to compile a grammar."),
            (&self.load_time, "model_load_seconds", "Time to load a model."),
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
