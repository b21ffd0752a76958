//! A reply while it is written: its steps one by one, and its text up to what ends it.

use super::Response;
use crate::batch::Sequence;
use crate::engine::{Engine, Event, Finish};
use crate::sample::{Choice, Constraint};
use crate::tokenizer::Detokenizer;
use lapis::{Result, memory};
use std::collections::VecDeque;
use std::time::Instant;

/// A reply being written: an iterator over its steps.
pub struct Stream<'a> {
    pub(super) engine: Engine,
    pub(super) id: u64,
    pub(super) text: StopText,
    pub(super) prompt_tokens: usize,
    pub(super) cached_tokens: usize,
    pub(super) written: usize,
    pub(super) began: Instant,
    pub(super) first: Option<f64>,
    pub(super) events: VecDeque<Event>,
    pub(super) over: bool,
    pub(super) remembered: Option<(Vec<u32>, Sequence)>,
    pub(super) progress: Option<Box<dyn FnMut(usize, usize) -> bool + 'a>>,
}

impl<'a> Stream<'a> {
    /// Calls `f` with how many tokens of the prompt were read, and how many it has; the reply ends where it says no.
    pub fn on_prefill(mut self, f: impl FnMut(usize, usize) -> bool + 'a) -> Stream<'a> {
        self.progress = Some(Box::new(f));
        self
    }

    /// Lets the reply be nothing but what `constraint` allows. Before the first step.
    pub fn constrain(mut self, constraint: Box<dyn Constraint>) -> Stream<'a> {
        self.engine.constrain(self.id, constraint);
        self
    }

    /// Ends the reply and gives all tokens seen, the prompt's included, with what the model remembers of them.
    pub fn into_memory(mut self) -> Option<(Vec<u32>, Sequence)> {
        self.remembered.take().or_else(|| self.engine.cancel(self.id))
    }

    fn end(&mut self) {
        self.over = true;
        self.remembered = self.remembered.take().or_else(|| self.engine.cancel(self.id));
    }

    fn response(
        &mut self,
        text: String,
        (choice, top): (Choice, Vec<(u32, f32)>),
        from_draft: bool,
        finish_reason: Option<Finish>,
    ) -> Response {
        let now = self.began.elapsed().as_secs_f64();
        let first = *self.first.get_or_insert(now);
        Response {
            text,
            token: choice.token,
            logprob: choice.logprob,
            top,
            from_draft,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            prompt_tps: (self.prompt_tokens - self.cached_tokens) as f64 / first,
            first_token: first,
            generation_tokens: self.written,
            generation_tps: if self.written > 1 { (self.written - 1) as f64 / (now - first).max(1e-9) } else { 0.0 },
            peak_memory: (memory::peak() + memory::mapped()) as f64 / 1e9,
            finish_reason,
        }
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Response>;

    fn next(&mut self) -> Option<Result<Response>> {
        loop {
            if self.over {
                return None;
            }
            let Some(event) = self.events.pop_front() else {
                match self.engine.step() {
                    Ok(events) => self.events.extend(events),
                    Err(e) => {
                        self.over = true;
                        return Some(Err(e));
                    }
                }
                continue;
            };
            match event {
                Event::Started { cached, .. } => self.cached_tokens = cached,
                Event::Scored { .. } => {}
                Event::Prefill { done, .. } => {
                    if let Some(progress) = &mut self.progress
                        && !progress(done, self.prompt_tokens)
                    {
                        self.end();
                        return None;
                    }
                }
                Event::Failed { error, .. } => {
                    self.end();
                    return Some(Err(error));
                }
                Event::Token { choice, top, finish, drafted, .. } => {
                    self.written += 1;
                    let (text, stopped) = match self.text.add(choice.token, finish) {
                        Ok(done) => done,
                        Err(e) => {
                            self.end();
                            return Some(Err(e));
                        }
                    };
                    let finish = if stopped { Some(Finish::Stop) } else { finish };
                    let response = self.response(text, (choice, top), drafted, finish);
                    if finish.is_some() {
                        self.end();
                    }
                    return Some(Ok(response));
                }
            }
        }
    }
}

/// Tokens to text, up to the first of some texts; what may be the beginning of one is held back.
pub(super) struct StopText {
    detokenizer: Detokenizer,
    stop: Vec<String>,
    held: String,
}

impl StopText {
    pub(super) fn new(detokenizer: Detokenizer, stop: Vec<String>) -> StopText {
        StopText { detokenizer, stop: stop.into_iter().filter(|s| !s.is_empty()).collect(), held: String::new() }
    }

    /// The new text, and whether a text to stop at was found. A token that ends the text is not part of it.
    pub(super) fn add(&mut self, token: u32, finish: Option<Finish>) -> Result<(String, bool)> {
        if finish != Some(Finish::Stop) {
            let piece = self.detokenizer.add(token)?;
            self.held.push_str(&piece);
        }
        if finish.is_some() {
            let rest = self.detokenizer.finalize();
            self.held.push_str(&rest);
        }
        if let Some(at) = self.stop.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.held.truncate(at);
            return Ok((std::mem::take(&mut self.held), true));
        }
        let keep = if finish.is_some() { 0 } else { self.partial() };
        let rest = self.held.split_off(self.held.len() - keep);
        Ok((std::mem::replace(&mut self.held, rest), false))
    }

    /// Bytes at the end that may be the beginning of a text to stop at.
    fn partial(&self) -> usize {
        let longest = |s: &String| {
            (1..s.len()).rev().find(|&n| s.is_char_boundary(n) && self.held.ends_with(&s[..n])).unwrap_or(0)
        };
        self.stop.iter().map(longest).max().unwrap_or(0)
    }
}
