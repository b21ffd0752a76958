//! Logits of a step's rows, and the token that each row chooses: on the host only what a request needs there, and rows beside
//! each other on the threads of the CPU backend.

use super::Running;
use crate::sample::{Choice, Constraint, Sampling};
use lapis::backend::each;
use lapis::{Array, Dtype, Error, Result, eval, ops};
use std::sync::{Mutex, PoisonError};

/// Logits of some rows, and what the likeliest token of each takes.
pub(super) struct Likeliest {
    logits: Array,
    /// The likeliest token of each row, its logit, and the logarithm of the sum of all; nothing where no row asks for them.
    best: Option<[Array; 3]>,
}

/// Rows on the host.
pub(super) struct Chooser<'a> {
    logits: &'a [f32],
    width: usize,
    best: Option<(Vec<u32>, Vec<f32>, Vec<f32>)>,
    spare: &'a Spare,
}

/// Memory for rows that are changed: pages for each row anew would cost as much as choosing from it.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<f32>) -> T) -> T {
        let all = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut copy = all().pop().unwrap_or_default();
        let result = f(&mut copy);
        all().push(copy);
        result
    }
}

impl Likeliest {
    /// Of `logits`, `(rows, vocabulary)` in f32; `plain` if a row takes the likeliest token and nothing else.
    pub(super) fn new(logits: Array, plain: bool) -> Result<Likeliest> {
        if !plain {
            return Ok(Likeliest { logits, best: None });
        }
        let token = ops::astype(&ops::argmax(&logits, Some(-1), true)?, Dtype::Uint32)?;
        let peak = ops::take_along_axis(&logits, &token, Some(-1))?;
        Ok(Likeliest { best: Some([token, peak, ops::logsumexp(&logits, -1, false)?]), logits })
    }

    /// Of its [arrays](Likeliest::arrays).
    pub(super) fn of(mut arrays: impl Iterator<Item = Array>) -> Result<Likeliest> {
        let logits = arrays.next().ok_or_else(|| Error::value("[generate] no logits"))?;
        Ok(Likeliest { logits, best: arrays.collect::<Vec<_>>().try_into().ok() })
    }

    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        std::iter::once(&self.logits).chain(self.best.iter().flatten())
    }

    /// Rows one after the other.
    pub(super) fn settle(self) -> Result<Likeliest> {
        if self.logits.as_slice::<f32>().is_ok() {
            return Ok(self);
        }
        let logits = ops::contiguous(&self.logits, false)?;
        eval([&logits])?;
        Ok(Likeliest { logits, ..self })
    }

    /// What chooses from the rows, after [`Likeliest::settle`].
    pub(super) fn chooser<'a>(&'a self, spare: &'a Spare) -> Result<Chooser<'a>> {
        let read = |[token, peak, norm]: &[Array; 3]| Ok((token.to_vec()?, peak.to_vec()?, norm.to_vec()?));
        let best = self.best.as_ref().map(read).transpose()?;
        Ok(Chooser { logits: self.logits.as_slice()?, width: self.logits.dim(-1), best, spare })
    }
}

/// Whether the likeliest token is all that a row needs.
pub(super) fn is_plain(sampling: &Sampling, constraint: Option<&dyn Constraint>, top: usize) -> bool {
    sampling.is_plain() && constraint.is_none() && top == 0
}

impl Chooser<'_> {
    /// The token of row `i` that follows `history`, and the `top` likeliest.
    pub(super) fn choose(
        &self,
        i: usize,
        sampling: &Sampling,
        history: &[u32],
        choice: u64,
        constraint: Option<&mut dyn Constraint>,
        top: usize,
    ) -> Result<(Choice, Vec<(u32, f32)>)> {
        // The likeliest token needs none of the logits on the host.
        if let Some((tokens, peaks, norms)) = &self.best
            && is_plain(sampling, constraint.as_deref(), top)
            && norms[i].is_finite()
            && peaks[i].is_finite()
        {
            return Ok((Choice { token: tokens[i], logprob: peaks[i] - norms[i] }, Vec::new()));
        }
        let row = &self.logits[i * self.width..][..self.width];
        if constraint.is_none() && sampling.takes_logits_as_they_are() {
            return sampling.draw_with(row, history, choice, top);
        }
        self.spare.with(|copy| {
            copy.clear();
            copy.extend_from_slice(row);
            sampling.choose_with(copy, history, choice, constraint, top)
        })
    }

    /// As [`Chooser::choose`] for a request, with the likeliest tokens that it wants to hear of.
    pub(super) fn choose_for(&self, i: usize, of: &mut Running) -> Result<(Choice, Vec<(u32, f32)>)> {
        let (request, constraint) = (&of.request, of.constraint.as_mut());
        let constraint = constraint.map(|c| &mut **c as &mut dyn Constraint);
        self.choose(i, &request.sampling, &of.tokens, request.choice, constraint, request.top)
    }

    /// Runs `f` on each item, which chooses from rows: on several threads unless there is as good as nothing to do.
    pub(super) fn each<I: Send>(&self, items: Vec<I>, plain: impl Fn(&I) -> bool, f: impl Fn(I) + Sync) {
        let costly = items.iter().filter(|i| !plain(i)).count();
        if costly < 2 || costly * self.width < REGION {
            return items.into_iter().for_each(f);
        }
        each(items, 1, || (), |(), item| f(item));
    }
}

/// Logits from which a parallel region pays.
const REGION: usize = 1 << 13;
