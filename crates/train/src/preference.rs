//! Learning from pairs of answers, one of which is preferred: DPO and ORPO.
//!
//! Both look at `s`, the sum of `ln p(token | tokens before)` over an answer. DPO wants the preferred answer to gain more over what the
//! model gave it before training than the other one gains; ORPO wants the preferred answer itself and its odds over the
//! other's, and needs no model of before.

use crate::loss::token_losses;
use crate::{Batch, Settings};
use lapis::ops::{self, divide, exp, expm1, log, log1p, minimum, multiply, negative, select, square, subtract};
use lapis::{Array, Result};
use lapis_lm::Model;

/// What an answer is held against: scores of a batch's preferred and other answers by the model as it was.
pub(crate) type Scores = [Array; 2];

/// Scores of the preferred answers of a batch and of the others, each `[pairs]`: sums over their tokens, or means.
fn scores(model: &dyn Model, batch: &Batch, recompute: bool, mean: bool) -> Result<Scores> {
    let losses = token_losses(model, batch, recompute)?;
    let mut end = 0;
    let mut rows = Vec::new();
    for counted in &batch.counted {
        let (first, n) = (end, counted.len());
        end += n;
        let places = (first..end).map(|i| i as i32).collect();
        let row = ops::take(&losses, &Array::from_vec(places, &[n]), 0)?;
        rows.push(negative(&if mean { ops::mean(&row, (), false)? } else { ops::sum(&row, (), false)? })?);
    }
    let of = |nth: usize| ops::stack(&rows.iter().skip(nth).step_by(2).cloned().collect::<Vec<_>>(), 0);
    Ok([of(0)?, of(1)?])
}

/// `ln(1 / (1 + e^-x))`.
fn log_sigmoid(x: &Array) -> Result<Array> {
    negative(&ops::logaddexp(0.0f32, &negative(x)?)?)
}

/// `ln(1 - e^x)` of negative x; what is nearer to 0 than 1e-7 is taken as that.
fn log_rest(x: &Array) -> Result<Array> {
    let x = minimum(x, -1e-7f32)?;
    let near = log(&negative(&expm1(&x)?)?)?;
    select(&ops::greater(&x, -std::f32::consts::LN_2)?, &near, &log1p(&negative(&exp(&x)?)?)?)
}

/// The scores that DPO holds a batch against, by the model as it was before training.
pub(crate) fn reference(model: &dyn Model, batch: &Batch, s: &Settings) -> Result<Scores> {
    let scores = scores(model, batch, false, s.dpo_loss_type == "ipo")?;
    lapis::eval(&scores)?;
    Ok(scores)
}

/// The loss of a batch of pairs, a mean over them (of a process that shares the batch, what it adds to that), and by how much each preferred answer is ahead of the other, times beta.
/// With scores of `before` it is DPO's, without ORPO's.
pub(crate) fn loss(
    model: &dyn Model,
    before: Option<&Scores>,
    batch: &Batch,
    s: &Settings,
    recompute: bool,
) -> Result<(Array, Array)> {
    let beta = s.beta as f32;
    let ipo = s.dpo_loss_type == "ipo";
    let mean = |losses: &Array| divide(ops::sum(losses, (), false)?, (losses.size() * batch.shares) as f32);
    let [chosen, rejected] = scores(model, batch, recompute, before.is_none() || ipo)?;
    let Some([chosen_before, rejected_before]) = before else {
        let odds = subtract(subtract(&chosen, &rejected)?, subtract(log_rest(&chosen)?, log_rest(&rejected)?)?)?;
        let losses = subtract(negative(&chosen)?, multiply(log_sigmoid(&odds)?, beta)?)?;
        return Ok((mean(&losses)?, multiply(subtract(chosen, rejected)?, beta)?));
    };
    let gain = subtract(&chosen, chosen_before)?;
    let ahead = subtract(&gain, subtract(rejected, rejected_before)?)?;
    let margin = multiply(&ahead, beta)?;
    let losses = match s.dpo_loss_type.as_str() {
        "hinge" => ops::maximum(subtract(1.0f32, &margin)?, 0.0f32)?,
        "ipo" => square(&subtract(ahead, divide(0.5f32, beta)?)?)?,
        "dpop" => {
            let lost = ops::maximum(0.0f32, negative(&gain)?)?;
            subtract(multiply(lost, s.delta as f32)?, log_sigmoid(&margin)?)?
        }
        _ => negative(&log_sigmoid(&margin)?)?,
    };
    Ok((mean(&losses)?, margin))
}
