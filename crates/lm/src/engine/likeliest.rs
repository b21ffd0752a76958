//! Logits of a step's rows, and the token that each row chooses: on the host only what a request needs there.

use super::Running;
use crate::sample::{Choice, Constraint, Sampling};
use lapis::{Array, Dtype, Result, ops};

/// Logits of some rows, and what the likeliest token of each takes.
pub(super) struct Likeliest {
    logits: Array,
    token: Array,
    peak: Array,
    norm: Array,
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
        })
    }

    pub(super) fn arrays(&self) -> [&Array; 4] {
        [&self.logits, &self.token, &self.peak, &self.norm]
    }

    pub(super) fn read(&self) -> Result<Best> {
        Ok((self.token.to_vec()?, self.peak.to_vec()?, self.norm.to_vec()?))
    }

    pub(super) fn row(&self, i: usize) -> Result<Vec<f32>> {
        ops::slice(&self.logits, &[(Some(i as i64), Some(i as i64 + 1), 1)])?.to_vec()
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
        sampling.choose(&mut self.row(i)?, history, choice, constraint)
    }

    /// As [`Likeliest::choose`] for a request, with the likeliest tokens that it wants to hear of.
    pub(super) fn choose_for(&self, best: &Best, i: usize, of: &mut Running) -> Result<(Choice, Vec<(u32, f32)>)> {
        let (request, constraint) = (&of.request, of.constraint.as_mut());
        let constraint = constraint.map(|c| &mut **c as &mut dyn Constraint);
        if request.top == 0 {
            let chosen = self.choose(best, i, &request.sampling, &of.tokens, request.choice, constraint)?;
            return Ok((chosen, Vec::new()));
        }
        let mut row = self.row(i)?;
        let chosen = request.sampling.choose(&mut row, &of.tokens, request.choice, constraint)?;
        Ok((chosen, crate::sample::likeliest(&row, request.top)))
    }
}
