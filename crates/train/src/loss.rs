//! The loss of a batch: the mean of `-ln p(token | tokens before)` over the tokens that count; of a process that shares the batch with
//! others, what it adds to that.

use crate::Batch;
use lapis::ops::fast::cross_entropy;
use lapis::{Array, Result, ops};
use lapis_lm::{Model, Sequence};

/// The loss, float32 0-d. With `recompute`, values inside layers are computed again for gradients.
///
/// # Errors
/// Those of the model.
pub(crate) fn loss(model: &dyn Model, batch: &Batch, recompute: bool) -> Result<Array> {
    let losses = token_losses(model, batch, recompute)?;
    ops::divide(&ops::sum(&losses, (), false)?, batch.divisor as f32)
}

/// The losses of all tokens that count, row after row.
pub(crate) fn token_losses(model: &dyn Model, batch: &Batch, recompute: bool) -> Result<Array> {
    let (mut inputs, mut targets, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let mut texts = vec![Sequence::whole(); batch.rows.len()];
    let mut lengths = Vec::new();
    for (row, counted) in batch.rows.iter().zip(&batch.counted) {
        // What comes after the last token that counts is of no use.
        let length = counted.end.saturating_sub(1).max(1);
        let first = inputs.len();
        inputs.extend(row[..length].iter().map(|&t| t as i32));
        targets.extend(row[counted.clone()].iter().map(|&t| t as i32));
        places.extend(counted.clone().map(|at| (first + at - 1) as i32));
        lengths.push(length);
    }
    let (n, count) = (inputs.len(), targets.len());
    let mut rows = lapis_lm::Batch::new(lengths.into_iter().zip(&mut texts));
    if recompute {
        rows.recompute();
    }
    let mut hidden = model.hidden(&Array::from_vec(inputs, &[n]), &mut rows)?;
    if count < n {
        hidden = ops::take(&hidden, &Array::from_vec(places, &[count]), 0)?;
    }
    cross_entropy(&model.logits(&hidden)?, &Array::from_vec(targets, &[count]))
}
