//! Logits of a step's rows, and the token that each row chooses: on the host only what a request needs there.

use super::Running;
use crate::sample::{Choice, Constraint, Sampling};
use lapis::{Array, Dtype, Result, ops};
use std::borrow::Cow;
use std::cell::RefCell;

/// Logits of some rows, and what the likeliest token of each takes.
pub(super) struct Likeliest {
    logits: Array,
    token: Array,
    peak: Array,
    norm: Array,
    /// Where a row is changed: pages for each row anew would cost as much as choosing from it.
    copy: RefCell<Vec<f32>>,
}

/// The likeliest token of each row, its logit, and the logarithm of the sum of all.
pub(super) type Best = (Vec<u32>, Vec<f32>, Vec<f32>);

impl Likeliest {
    pub(super) fn new(logits: Array) -> Result<Likeliest> {
        let token = ops::astype(&ops::argmax(&logits, Some(-1), true)?, Dtype::Uint32)?;
        Ok(Likeliest {
            peak: ops::take_along_axis(&logits, &token, Some(-1))?,
            token,
            norm: ops::logsumexp(&logits, -1, false)?,
            logits,
            copy: RefCell::default(),
        })
    }

    pub(super) fn arrays(&self) -> [&Array; 4] {
        [&self.logits, &self.token, &self.peak, &self.norm]
    }

    pub(super) fn read(&self) -> Result<Best> {
        Ok((self.token.to_vec()?, self.peak.to_vec()?, self.norm.to_vec()?))
    }

    /// Row `i`, where it lies if all rows lie one after the other.
    fn row(&self, i: usize) -> Result<Cow<'_, [f32]>> {
        let width = self.logits.dim(-1);
        match self.logits.as_slice() {
            Ok(all) => Ok(Cow::Borrowed(&all[i * width..][..width])),
            Err(_) => {
                let row = ops::slice(&self.logits, &[(Some(i as i64), Some(i as i64 + 1), 1)])?;
                Ok(Cow::Owned(row.to_vec()?))
            }
        }
    }

    /// Chooses from row `i`, and gives the row as the choice was made from it to `then`.
    fn choose_from<T>(
        &self,
        i: usize,
        sampling: &Sampling,
        history: &[u32],
        choice: u64,
        constraint: Option<&mut dyn Constraint>,
        then: impl FnOnce(Choice, &[f32]) -> T,
    ) -> Result<T> {
        let row = self.row(i)?;
        if constraint.is_none() && sampling.takes_logits_as_they_are() {
            return Ok(then(sampling.draw(&row, history, choice)?, &row));
        }
        let mut copy = self.copy.borrow_mut();
        copy.clear();
        copy.extend_from_slice(&row);
        let chosen = sampling.choose(&mut copy, history, choice, constraint)?;
        Ok(then(chosen, &copy))
    }

    /// The token of row `i` that follows `history`.
    pub(super) fn choose(
        &self,
        (tokens, peaks, norms): &Best,
        i: usize,
        sampling: &Sampling,
        history: &[u32],
        choice: u64,
        constraint: Option<&mut dyn Constraint>,
    ) -> Result<Choice> {
        // The likeliest token needs none of the logits on the host.
        if sampling.is_plain() && constraint.is_none() && norms[i].is_finite() && peaks[i].is_finite() {
            return Ok(Choice { token: tokens[i], logprob: peaks[i] - norms[i] });
        }
        self.choose_from(i, sampling, history, choice, constraint, |chosen, _| chosen)
    }

    /// As [`Likeliest::choose`] for a request, with the likeliest tokens that it wants to hear of.
    pub(super) fn choose_for(&self, best: &Best, i: usize, of: &mut Running) -> Result<(Choice, Vec<(u32, f32)>)> {
        let (request, constraint) = (&of.request, of.constraint.as_mut());
        let constraint = constraint.map(|c| &mut **c as &mut dyn Constraint);
        if request.top == 0 {
            let chosen = self.choose(best, i, &request.sampling, &of.tokens, request.choice, constraint)?;
            return Ok((chosen, Vec::new()));
        }
        let told = |chosen, row: &[f32]| (chosen, crate::sample::likeliest(row, request.top));
        self.choose_from(i, &request.sampling, &of.tokens, request.choice, constraint, told)
    }
}
