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
