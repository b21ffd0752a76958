//! What the log says of a job when it is over: how much was read and written, and how long it took.

use crate::job::Job;
use crate::log;
use crate::settings::{Log, Settings};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Instant;

/// Counts and times of a job.
#[derive(Default)]
pub(crate) struct Ledger {
    /// When the step began that read the first of the prompt.
    pub began: Option<Instant>,
    /// When the first token was written.
    pub first: Option<Instant>,
    /// Tokens of the prompt that were known.
    pub cached: usize,
    /// Tokens written.
    pub tokens: usize,
    /// What it came to grief of.
    pub why: Option<String>,
    /// Those of each reply, where the log has them.
    pub said: BTreeMap<usize, Vec<u32>>,
}

impl Ledger {
    /// Writes a line: how the job ended is `done`, `cancelled` or `failed`.
    pub(crate) fn close(&self, job: &Job, end: &str, settings: &Settings) {
        let since = |at: Option<Instant>| at.map(|at| (at.duration_since(job.came).as_secs_f64() * 1e5).round() / 1e2);
        let (queue, first, all) = (since(self.began), since(self.first), since(Some(Instant::now())));
        let (model, id, key) = (&job.model.0.id, &job.request, &job.key);
        let prompt = job.prompt.len();
        let status = match end {
            "cancelled" => 499,
            "failed" => 500,
            _ => 200,
        };
        if settings.log_content {
            self.content(job, settings.log);
        }
        let why = self.why.as_ref().map(|w| w.chars().take(300).flat_map(char::escape_default).collect::<String>());
        match settings.log {
            // The answer says that the log has more.
            Log::Off if end == "failed" => {
                log::line(&format!("{model} failed 500 · {key} · {id} · {}", why.unwrap_or_default()));
            }
            Log::Off => {}
            Log::Json => log::line(
                &json!({
                    "id": id, "key": key, "model": model, "end": end, "status": status, "prompt_tokens": prompt, "cached_tokens": self.cached,
                    "completion_tokens": self.tokens, "queue_ms": queue, "ttft_ms": first, "ms": all,
                    "error": why,
                })
                .to_string(),
            ),
            Log::Text => {
                let shown = |ms: Option<f64>| ms.map_or("-".to_string(), |ms| format!("{ms:.0} ms"));
                let why = why.map_or(String::new(), |why| format!(" · {why}"));
                log::line(&format!(
                    "{model} {end} {status} · {prompt} tokens read, {} known · {} written · queue {}, first {}, all {} · {key} · {id}{why}",
                    self.cached,
                    self.tokens,
                    shown(queue),
                    shown(first),
                    shown(all)
                ));
            }
        }
    }

    /// Writes what was read and written, each on a line of its own.
    fn content(&self, job: &Job, format: Log) {
        let tokenizer = &job.model.0.model.tokenizer;
        let prompt = std::iter::once(("prompt".to_string(), &job.prompt));
        for (what, tokens) in prompt.chain(self.said.iter().map(|(choice, said)| (format!("reply {choice}"), said))) {
            let text = tokenizer.decode(tokens, false).unwrap_or_default();
            match format {
                Log::Off => {}
                Log::Json => log::line(&json!({"id": job.request, "what": what, "text": text}).to_string()),
                // One line, whatever the text holds.
                Log::Text => log::line(&format!("{} {what}: {text:?}", job.request)),
            }
        }
    }
}
