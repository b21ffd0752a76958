//! Guesses at what a sequence says next, which the model then checks in one step.
//!
//! A guess never changes a text: the model chooses its own token at each place, and guesses count only as long as they
//! agree with it. They cost rows of a step, which a machine limited by its memory has nearly for free.

use super::likeliest::{Likeliest, Spare, is_plain};
use crate::batch::{Batch, Mark, Sequence};
use crate::models::Model;
use crate::sample::Sampling;
use lapis::{Array, Dtype, Error, Result, eval, ops};
use std::sync::Arc;

/// Who guesses.
#[derive(Clone)]
pub enum Drafter {
    /// What followed the last time that the latest tokens were seen, in the prompt or the text.
    Lookup,
    /// A smaller model with the same tokens.
    Model {
        /// The network.
        model: Arc<dyn Model>,
        /// Columns of its logits.
        vocabulary: usize,
    },
}

impl std::fmt::Debug for Drafter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Drafter::Lookup => "Lookup",
            Drafter::Model { .. } => "Model",
        })
    }
}

/// What a drafting model remembers of a request.
#[derive(Default)]
pub(super) struct Memory {
    sequence: Sequence,
    mark: Option<Mark>,
}

/// A request to guess for.
pub(super) struct Asked<'a> {
    /// All tokens so far.
    pub(super) tokens: &'a [u32],
    pub(super) memory: &'a mut Memory,
    pub(super) sampling: &'a Sampling,
    pub(super) choice: u64,
    /// Tokens wanted.
    pub(super) count: usize,
}

impl Drafter {
    /// Whether it can guess for a model with a vocabulary of this size.
    ///
    /// # Errors
    /// Another size.
    pub fn check(&self, vocabulary: usize) -> Result<()> {
        match self {
            Drafter::Model { vocabulary: own, .. } if *own != vocabulary => Err(Error::value(format!(
                "[draft] the draft model has a vocabulary of {own} tokens, the model one of {vocabulary}: take a draft \
                 model of the same family"
            ))),
            _ => Ok(()),
        }
    }

    /// Guesses for each, as many as it has, up to what is asked.
    pub(super) fn guess(&self, asked: &mut [Asked], prefill_step: usize) -> Result<Vec<Vec<u32>>> {
        match self {
            Drafter::Lookup => Ok(asked.iter().map(|a| lookup(a.tokens, a.count)).collect()),
            Drafter::Model { model, .. } => drafted(&**model, asked, prefill_step),
        }
    }
}

impl Memory {
    /// Forgets what turned out otherwise: `agreed` tokens are as they were guessed.
    pub(super) fn settle(&mut self, agreed: usize) {
        if let Some(mark) = self.mark.take() {
            self.sequence.rewind(mark, agreed);
        }
    }
}

/// What followed the latest earlier place with the same last tokens, three of them if possible, one at least.
fn lookup(tokens: &[u32], count: usize) -> Vec<u32> {
    for n in (1..=3.min(tokens.len().saturating_sub(1))).rev() {
        let (last, before) = (&tokens[tokens.len() - n..], &tokens[..tokens.len() - 1]);
        if let Some(at) = before.windows(n).rposition(|w| w == last) {
            return tokens[at + n..].iter().take(count).copied().collect();
        }
    }
    Vec::new()
}

/// Guesses of a model: the tokens that it would choose itself by the settings of the request, one step for all requests
/// at a time.
fn drafted(model: &dyn Model, asked: &mut [Asked], prefill_step: usize) -> Result<Vec<Vec<u32>>> {
    let mut guesses: Vec<Vec<u32>> = vec![Vec::new(); asked.len()];
    let spare = Spare::default();
    // All that it has not read yet, but for the rows that one step takes.
    for a in asked.iter_mut().filter(|a| a.count > 0) {
        while a.tokens.len() - a.memory.sequence.len() > prefill_step {
            let from = a.memory.sequence.len();
            let rows = ids(&a.tokens[from..from + prefill_step]);
            let mut batch = Batch::one(prefill_step, &mut a.memory.sequence);
            let hidden = model.hidden(&rows, &mut batch)?;
            batch.finish();
            eval(a.memory.sequence.arrays().chain([&hidden]))?;
        }
    }
    let most = asked.iter().map(|a| a.count).max().unwrap_or(0);
    for round in 0..most {
        let mut tokens: Vec<u32> = Vec::new();
        let mut last = Vec::new();
        let mut parts = Vec::new();
        for (i, a) in asked.iter_mut().enumerate().filter(|(_, a)| a.count > round) {
            let fresh = match round {
                0 => &a.tokens[a.memory.sequence.len()..],
                _ => &guesses[i][round - 1..],
            };
            tokens.extend(fresh);
            last.push((i, tokens.len() as i32 - 1));
            parts.push((fresh.len(), &mut a.memory.sequence));
        }
        let n = tokens.len();
        let mut batch = Batch::new(parts);
        let hidden = model.hidden(&ids(&tokens), &mut batch)?;
        batch.finish();
        let rows = Array::from_vec(last.iter().map(|l| l.1).collect(), &[last.len()]);
        let hidden = if last.len() == n { hidden } else { ops::take(&hidden, &rows, 0)? };
        let plain = last.iter().any(|&(i, _)| is_plain(asked[i].sampling, None, 0));
        let likeliest = Likeliest::new(ops::astype(&model.logits(&hidden)?, Dtype::Float32)?, plain)?;
        let memory = asked.iter().flat_map(|a| a.memory.sequence.arrays());
        eval(memory.chain(likeliest.arrays()))?;
        let likeliest = likeliest.settle()?;
        let chooser = likeliest.chooser(&spare)?;
        let mut rows = Vec::new();
        for (row, (i, _)) in last.into_iter().enumerate() {
            let a = &mut asked[i];
            if round == 0 {
                // What was said already stays as it is.
                a.memory.mark = Some(a.memory.sequence.mark());
            }
            let history = [a.tokens, &guesses[i]].concat();
            rows.push((i, row, (a.sampling, history, a.choice), None));
        }
        chooser.each(
            rows.iter_mut().collect(),
            |(.., (sampling, ..), _)| is_plain(sampling, None, 0),
            |(_, row, (sampling, history, choice), token)| {
                *token = Some(chooser.choose(*row, sampling, history, *choice, None, 0));
            },
        );
        for (i, .., chosen) in rows {
            guesses[i].extend(chosen.transpose()?.map(|(chosen, _)| chosen.token));
        }
    }
    Ok(guesses)
}

fn ids(tokens: &[u32]) -> Array {
    Array::from_vec(tokens.iter().map(|&t| t as i32).collect(), &[tokens.len()])
}

#[cfg(test)]
mod tests {
    use super::lookup;

    #[test]
    fn the_latest_place_with_the_longest_match_is_continued() {
        assert_eq!(lookup(&[1, 2, 3, 9, 9, 1, 2, 3, 7, 8, 1, 2, 3], 2), [7, 8]);
        assert_eq!(lookup(&[5, 6, 1, 5, 7, 5], 3), [7, 5]);
        assert_eq!(lookup(&[5, 5, 5], 4), [5]);
        assert!(lookup(&[1, 2, 3], 4).is_empty());
        assert!(lookup(&[1], 4).is_empty());
    }
}
