//! What is known of a request: a line of the log and numbers for the metrics, once nobody has to do with it any more.
//!
//! Whoever works for a request holds its record, the engine too; the last of them that lets go has it written, so that
//! there is one line whichever way the request ends. Knows no interface.

use crate::error::ApiError;
use crate::job::Job;
use crate::log;
use crate::metrics::Metrics;
use crate::settings::{Log, Settings};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// The status of a request whose client went before its answer was whole.
const GONE: u16 = 499;

/// A request.
pub struct Record {
    /// Its number.
    pub id: String,
    /// When it came.
    pub came: Instant,
    /// Method, and path as the log shows it.
    line: [String; 2],
    /// The route's path, `other` where there is none.
    route: &'static str,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    /// The name of its key.
    key: OnceLock<String>,
    /// The model that it uses.
    model: OnceLock<String>,
    /// Tokens of prompts, those of them that were known, and tokens written.
    tokens: [AtomicUsize; 3],
    /// Microseconds to the step that began with the prompt, and to the first token; 0 before that.
    times: [AtomicU64; 2],
    /// What was answered; 0 before that.
    status: AtomicU16,
    /// Its client went.
    gone: AtomicBool,
    /// What it came to grief of.
    error: OnceLock<ApiError>,
}

impl Record {
    /// Of a request that has just come.
    pub(crate) fn new(
        id: &str,
        [method, path]: [&str; 2],
        route: &'static str,
        settings: &Arc<Settings>,
        metrics: &Arc<Metrics>,
    ) -> Arc<Record> {
        Arc::new(Record {
            id: id.to_string(),
            came: Instant::now(),
            line: [method.to_string(), path.chars().take(200).flat_map(char::escape_default).collect()],
            route,
            settings: Arc::clone(settings),
            metrics: Arc::clone(metrics),
            key: OnceLock::new(),
            model: OnceLock::new(),
            tokens: Default::default(),
            times: Default::default(),
            status: AtomicU16::new(0),
            gone: AtomicBool::new(false),
            error: OnceLock::new(),
        })
    }

    /// Whose it is.
    pub(crate) fn of(&self, key: &str) {
        if self.key.set(key.to_string()).is_ok() && key != "-" {
            self.metrics.asked(key);
        }
    }

    /// The name of its key.
    pub(crate) fn key(&self) -> &str {
        self.key.get().map_or("-", String::as_str)
    }

    /// It has a model read a prompt of so many tokens.
    pub(crate) fn asks(&self, model: &str, tokens: usize) {
        let _ = self.model.set(model.to_string());
        self.tokens[0].fetch_add(tokens, Relaxed);
    }

    /// A step that began then reads its prompt, of which so many tokens were known.
    pub(crate) fn began(&self, at: Instant, known: usize) {
        self.tokens[1].fetch_add(known, Relaxed);
        self.note(0, at);
    }

    /// A token was written.
    pub(crate) fn wrote(&self, at: Instant) {
        self.tokens[2].fetch_add(1, Relaxed);
        self.note(1, at);
    }

    fn note(&self, which: usize, at: Instant) {
        let micros = (at.saturating_duration_since(self.came).as_micros() as u64).max(1);
        let _ = self.times[which].compare_exchange(0, micros, Relaxed, Relaxed);
    }

    /// An answer of this status begins.
    pub(crate) fn answered(&self, status: u16) {
        self.status.store(status, Relaxed);
    }

    /// Its client went.
    pub(crate) fn left(&self) {
        self.gone.store(true, Relaxed);
    }

    /// It came to grief, though an answer may have begun.
    pub(crate) fn failed(&self, error: &ApiError) {
        let _ = self.error.set(error.clone());
    }

    /// Whether it came to grief.
    pub(crate) fn has_failed(&self) -> bool {
        self.error.get().is_some()
    }

    /// How it ended.
    fn end(&self) -> u16 {
        match (self.error.get(), self.status.load(Relaxed)) {
            (Some(error), _) => error.status,
            (None, 0) => GONE,
            (None, _) if self.gone.load(Relaxed) => GONE,
            (None, status) => status,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let (status, all) = (self.end(), self.came.elapsed().as_secs_f64());
        self.metrics.answered(self.route, status, all);
        let why = self.error.get().map(|error| {
            self.metrics.erred(error);
            error.message.chars().take(300).flat_map(char::escape_default).collect::<String>()
        });
        let ms = |which: usize| match self.times[which].load(Relaxed) {
            0 => None,
            micros => Some(micros as f64 / 1e3),
        };
        let [read, known, written] = [0, 1, 2].map(|i| self.tokens[i].load(Relaxed));
        let ([method, path], key, id) = (&self.line, self.key(), &self.id);
        match self.settings.log {
            // The answer says that the log has more.
            Log::Off if status == 500 => {
                log::line(&format!("{method} {path} 500 · {key} · {id} · {}", why.unwrap_or_default()));
            }
            Log::Off => {}
            Log::Json => log::line(
                &json!({
                    "id": id, "key": key, "method": method, "path": path, "route": self.route, "status": status,
                    "model": self.model.get(), "prompt_tokens": read, "cached_tokens": known,
                    "completion_tokens": written, "queue_ms": ms(0), "ttft_ms": ms(1),
                    "ms": (all * 1e5).round() / 1e2, "error": why,
                })
                .to_string(),
            ),
            Log::Text => {
                let shown = |ms: Option<f64>| ms.map_or("-".to_string(), |ms| format!("{ms:.0} ms"));
                let work = self.model.get().map_or(String::new(), |model| {
                    let (queue, first) = (shown(ms(0)), shown(ms(1)));
                    format!(" · {model}: {read} read, {known} known, {written} written, queue {queue}, first {first}")
                });
                let why = why.map_or(String::new(), |why| format!(" · {why}"));
                log::line(&format!("{method} {path} {status} · {:.0} ms{work} · {key} · {id}{why}", all * 1e3));
            }
        }
    }
}

/// Writes what was read and written, each on a line of its own: `said` has the tokens of each reply.
pub(crate) fn content(job: &Job, said: &BTreeMap<usize, Vec<u32>>, format: Log) {
    let (tokenizer, id) = (&job.model.0.model.tokenizer, &job.record.id);
    let prompt = std::iter::once(("prompt".to_string(), &job.prompt));
    for (what, tokens) in prompt.chain(said.iter().map(|(choice, said)| (format!("reply {choice}"), said))) {
        let text = tokenizer.decode(tokens, false).unwrap_or_default();
        match format {
            Log::Off => {}
            Log::Json => log::line(&json!({"id": id, "what": what, "text": text}).to_string()),
            // One line, whatever the text holds.
            Log::Text => log::line(&format!("{id} {what}: {text:?}")),
        }
    }
}
