//! How likely the tokens of a prompt are, each after those before it.
//!
//! Logits of a whole prompt would be far more than its keys and values: they are made of some rows at a time, and only
//! where a request asks for them.

use crate::sample::likeliest;
use lapis::backend::each;
use lapis::{Array, Dtype, Result, ops};

/// A token of a prompt with its log-probability, and the likeliest tokens at its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens with theirs, as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Logits that exist at once: 32 MiB.
pub const LOGITS: usize = 8 << 20;

/// The places of `tokens`, which follow the rows of `hidden` that begin at `from`, with `top` of the likeliest each.
pub(super) fn places(
    logits: &dyn Fn(&Array) -> Result<Array>,
    hidden: &Array,
    from: usize,
    tokens: &[u32],
    vocabulary: usize,
    top: usize,
) -> Result<Vec<Place>> {
    let rows = (LOGITS / vocabulary.max(1)).max(1);
    let mut all = Vec::with_capacity(tokens.len());
    for (i, part) in tokens.chunks(rows).enumerate() {
        let start = (from + i * rows) as i64;
        let rows = ops::slice(hidden, &[(Some(start), Some(start + part.len() as i64), 1)])?;
        let logits = ops::astype(&logits(&rows)?, Dtype::Float32)?;
        if top > 0 {
            let values = logits.to_vec::<f32>()?;
            let rows = part.iter().zip(values.chunks(logits.dim(1).max(1)));
            let mut places: Vec<Option<Place>> = vec![None; part.len()];
            each(
                rows.zip(&mut places).collect(),
                1,
                || (),
                |(), ((&token, row), place)| {
                    let top = likeliest(row, top);
                    // The likeliest has the norm.
                    let norm = top.first().map_or(0.0, |&(t, logprob)| row[t as usize] - logprob);
                    *place = Some(Place { token, logprob: row[token as usize] - norm, top });
                },
            );
            all.extend(places.into_iter().flatten());
            continue;
        }
        let wanted = Array::from_vec(part.iter().map(|&t| t as i32).collect(), &[part.len(), 1]);
        let own = ops::squeeze(&ops::take_along_axis(&logits, &wanted, Some(-1))?, -1)?;
        let scores = ops::subtract(own, ops::logsumexp(&logits, -1, false)?)?.to_vec::<f32>()?;
        all.extend(part.iter().zip(scores).map(|(&token, logprob)| Place { token, logprob, top: Vec::new() }));
    }
    Ok(all)
}
