//! What a job's updates add up to: texts, calls, counts, times. The interfaces put it into their own words.

use crate::error::ApiError;
use crate::job::{Ending, Scored, Update};
use crate::service::{Ticket, random};
use lapis_lm::reply::Part;
use serde_json::{Value, json};
use std::time::Instant;

/// A call of a tool.
#[derive(Clone, Debug)]
pub(crate) struct ToolCall {
    /// Its name among calls.
    pub id: String,
    /// The function.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

/// Says that calls came out as text.
pub(crate) fn unread(calls: usize) -> String {
    format!("tools: {calls} calls could not be read, or are of unknown functions; they are part of the text")
}

/// One reply.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spoken {
    /// What it says.
    pub text: String,
    /// What was thought before.
    pub reasoning: String,
    /// Calls.
    pub calls: Vec<ToolCall>,
    /// Tokens of the text, where they are asked for.
    pub scored: Vec<Scored>,
    /// Why it is over.
    pub ending: Option<Ending>,
}

/// The replies of a job as far as they are.
pub(crate) struct Replies {
    /// One each.
    pub all: Vec<Spoken>,
    /// Tokens of the prompt but its first, where they are scored.
    pub prompt: Vec<Scored>,
    /// Tokens of the prompt that were known.
    pub cached: usize,
    /// Tokens written, of all replies.
    pub tokens: usize,
    /// Those of thinking.
    pub reasoning: usize,
    /// Calls that are part of texts, because they could not be read.
    unread: usize,
    drafted: usize,
    keeps_scores: bool,
    began: Option<Instant>,
    first: Option<Instant>,
    last: Instant,
}

impl Replies {
    /// `n` replies of which nothing is known yet.
    pub(crate) fn new(n: usize, keeps_scores: bool) -> Replies {
        Replies {
            all: vec![Spoken::default(); n],
            prompt: Vec::new(),
            cached: 0,
            tokens: 0,
            reasoning: 0,
            unread: 0,
            drafted: 0,
            keeps_scores,
            began: None,
            first: None,
            last: Instant::now(),
        }
    }

    /// Takes an update in.
    pub(crate) fn hear(&mut self, update: &Update) {
        match update {
            Update::Started { choice, cached, began } => {
                if *choice == 0 {
                    self.cached = *cached;
                    self.began = Some(*began);
                }
            }
            Update::Progress { .. } | Update::Failed(_) => {}
            Update::Scored(scored) => {
                self.last = Instant::now();
                self.prompt.extend(scored.iter().cloned());
            }
            Update::Said { choice, parts, scored, drafted } => {
                self.last = Instant::now();
                self.first.get_or_insert(self.last);
                self.drafted += usize::from(*drafted);
                let spoken = &mut self.all[*choice];
                let mut thinking = false;
                for part in parts {
                    match part {
                        Part::Text(text) => spoken.text.push_str(text),
                        Part::Reasoning(text) => {
                            thinking = true;
                            spoken.reasoning.push_str(text);
                        }
                        Part::Call { id, name, .. } => {
                            let id = id.clone().unwrap_or_else(|| format!("call_{:016x}", random()));
                            spoken.calls.push(ToolCall { id, name: name.clone(), arguments: String::new() });
                        }
                        Part::Arguments { json, .. } => {
                            if let Some(call) = spoken.calls.last_mut() {
                                call.arguments.push_str(json);
                            }
                        }
                    }
                }
                if self.keeps_scores && !thinking {
                    spoken.scored.push(scored.clone());
                }
            }
            Update::Ended { choice, ending, tokens, reasoning, unread, .. } => {
                self.unread += unread;
                self.tokens += tokens;
                self.reasoning += reasoning;
                self.all[*choice].ending = Some(ending.clone());
            }
        }
    }

    /// What a client should know beside the replies.
    pub(crate) fn warnings(&self) -> Option<String> {
        (self.unread > 0).then(|| unread(self.unread))
    }

    /// Whether all have ended.
    pub(crate) fn are_over(&self) -> bool {
        self.all.iter().all(|s| s.ending.is_some())
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// What the job came to grief of.
    pub(crate) async fn collect(&mut self, ticket: &mut Ticket) -> Result<(), ApiError> {
        while !self.are_over() {
            let update = ticket.next().await?;
            self.hear(&update);
        }
        ticket.finished();
        Ok(())
    }

    /// OpenAI's `usage`.
    pub(crate) fn usage(&self, prompt: usize) -> Value {
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }

    /// How long everything took.
    pub(crate) fn timings(&self, ticket: &Ticket) -> Value {
        let between = |a: Instant, b: Option<Instant>| b.map_or(0.0, |b| b.duration_since(a).as_secs_f64());
        let queue = between(ticket.came, self.began);
        let first = between(ticket.came, self.first);
        // A prompt that is only scored has no first token.
        let read = self.first.or(self.began.map(|_| self.last));
        let prefill = (between(ticket.came, read) - queue).max(0.0);
        let decode = self.first.map_or(0.0, |f| between(f, Some(self.last)));
        let rate = |n: usize, seconds: f64| if n > 0 && seconds > 0.0 { n as f64 / seconds } else { 0.0 };
        let round = |x: f64| (x * 100.0).round() / 100.0;
        json!({
            "queue_ms": round(queue * 1e3),
            "prefill_ms": round(prefill * 1e3),
            "ttft_ms": round(first * 1e3),
            "prompt_tps": round(rate(ticket.prompt.len().saturating_sub(self.cached), prefill)),
            "decode_tps": round(rate(self.tokens.saturating_sub(self.all.len()), decode)),
            "draft_accepted": self.drafted,
            "seed": ticket.seed,
        })
    }
}
