//! Which rows go into a step: one of each request that writes, with its guesses, and as many of prompts as there is room.
//!
//! Prompts share the room equally, but short ones go first and without the others, so that a short request does not wait
//! for a long one; the others have their turn in every second step at least.

use super::{Engine, Running};
use crate::batch::Mark;

/// Rows of a step that are one request's.
pub(super) struct Rows {
    /// Of all that run.
    pub(super) index: usize,
    /// Tokens, guesses included.
    pub(super) count: usize,
    /// What was guessed to follow.
    pub(super) guessed: Vec<u32>,
    /// The row whose logits are the next token's, and those of the guesses after it.
    pub(super) first: Option<usize>,
    /// Where to come back to when guesses are wrong.
    pub(super) mark: Option<Mark>,
}

impl Engine {
    /// Requests that write, and those whose prompts are still to be read, a place or not.
    pub fn work(&self) -> (usize, usize) {
        let running = || self.running.iter().filter(|r| !r.paused);
        let writing = running().filter(|r| r.pending() == 1).count();
        (writing, running().count() - writing + self.waiting.len())
    }

    /// Whether a request writes that has written fewer than so many tokens.
    pub fn is_early(&self, tokens: usize) -> bool {
        self.running.iter().any(|r| r.pending() == 1 && r.written < tokens)
    }

    /// Whether the rows of prompts in the next step are those of short ones.
    pub fn reads_short(&self) -> bool {
        let reading = || self.running.iter().filter(|r| r.pending() > 1 && !r.paused);
        let places = self.max_batch.saturating_sub(self.running.len());
        let mut coming = self.waiting.iter().take(places);
        let short = reading().any(|r| r.short) || coming.any(|r| r.pending() <= self.short_prompt);
        short && !(self.aside && reading().any(|r| !r.short))
    }

    /// Prompts whose rows the next step has, or may have: all where short ones have theirs, else long ones alone, a place or not.
    pub fn reads(&self) -> usize {
        let all = self.work().1;
        if self.reads_short() {
            return all;
        }
        let running = self.running.iter().filter(|r| r.pending() > 1 && !r.short && !r.paused).count();
        match running + self.waiting.iter().filter(|r| r.pending() > self.short_prompt).count() {
            0 => all,
            long => long,
        }
    }

    /// Rows of each prompt in this step.
    fn shares(&mut self) -> Vec<usize> {
        let pending: Vec<usize> = self.running.iter().map(Running::pending).collect();
        let mut shares: Vec<usize> = self.running.iter().map(|r| usize::from(!r.paused)).collect();
        if let Some(alone) = self.trial() {
            shares = vec![0; pending.len()];
            shares[alone] = pending[alone].min(self.prefill_step.max(64));
            return shares;
        }
        let mut reading: Vec<usize> =
            (0..pending.len()).filter(|&i| pending[i] > 1 && !self.running[i].paused).collect();
        reading.sort_by_key(|&i| pending[i]);
        let writes = (0..pending.len()).any(|i| pending[i] == 1 && !self.running[i].paused);
        if self.prefill_step == 0 && writes {
            reading.iter().for_each(|&i| shares[i] = 0);
            return shares;
        }
        let mut room = self.prefill_step.max(1);
        let short: Vec<usize> = reading.iter().copied().filter(|&i| self.running[i].short).collect();
        let turn = std::mem::take(&mut self.aside) && short.len() < reading.len();
        if !short.is_empty() && !turn {
            self.aside = short.len() < reading.len();
            reading.iter().for_each(|&i| shares[i] = 0);
            for i in short {
                shares[i] = pending[i].min(room);
                room -= shares[i];
            }
            return shares;
        }
        // What those with little to read leave is for the others.
        for (at, &i) in reading.iter().enumerate() {
            shares[i] = pending[i].min(room.div_ceil(reading.len() - at));
            room -= shares[i];
        }
        shares
    }

    /// What writes has a row, and one for each guess; prompts share what room there is.
    pub(super) fn rows(&mut self, guesses: Vec<Vec<u32>>) -> Vec<Rows> {
        let shares = self.shares();
        let mut all = Vec::new();
        for ((index, running), mut guessed) in self.running.iter().enumerate().zip(guesses) {
            let (pending, seen) = (running.pending(), running.sequence.len());
            let mut count = shares[index];
            // One that has seen nothing does not know.
            let free = if seen > 0 { running.sequence.is_free() } else { self.free.unwrap_or(false) };
            if self.prefixes.is_some() && !free && count > 1 {
                // Up to the next place to keep: the last is the end of the prompt but for one token, which a request of
                // the same prompt reads for its logits.
                let end = running.request.prompt.len() - 1;
                let every = self.checkpoint_every.max(1);
                let places = [(seen / every + 1) * every, end, running.marks()[0]];
                count = count.min(places.into_iter().filter(|&p| p > seen).min().unwrap_or(end) - seen);
            }
            if count == 0 {
                continue;
            }
            let ends = count == pending;
            if !ends {
                guessed.clear();
            }
            self.guessed += guessed.len() as u64;
            let mark = (!guessed.is_empty()).then(|| running.sequence.mark());
            let first = (ends && running.request.max_tokens > 0).then_some(count - 1);
            all.push(Rows { index, count: count + guessed.len(), guessed, first, mark });
        }
        all
    }
}
