//! Routers: which experts a token is sent to, and with what weights.

use lapis::{Array, Dtype, Error, Result, ops};

/// How logits of experts become a choice and weights.
#[derive(Clone, Debug)]
pub struct Router {
    /// Experts a token.
    pub chosen: usize,
    /// The rule.
    pub rule: Rule,
    /// Weights are made to sum to one.
    pub renormalize: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// Groups of experts, and how many of them may be chosen from.
    pub groups: Option<[usize; 2]>,
    /// A group is as good as so many of its best experts together.
    pub best: usize,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Softmax over all experts, then the best.
    SoftmaxThenTop,
    /// The best, then softmax over them.
    TopThenSoftmax,
    /// Sigmoid of each; a bias takes part in the choice alone.
    Sigmoid,
    /// The best, then the best of the others: each weight is a softmax over those not chosen before that lie within
    /// twice this share of the best (SparseMixer, arXiv 2310.00811, without its noise).
    OneByOne(f64),
}

impl Router {
    /// Softmax over all, then the best `chosen`.
    pub fn softmax(chosen: usize, renormalize: bool) -> Router {
        Router { chosen, rule: Rule::SoftmaxThenTop, renormalize, scale: 1.0, groups: None, best: 1 }
    }

    /// The best `chosen`, then softmax over them.
    pub fn top(chosen: usize) -> Router {
        Router { rule: Rule::TopThenSoftmax, ..Router::softmax(chosen, false) }
    }

    /// The experts (rows, k) of logits (rows, experts), and their weights (rows, k) in float32.
    ///
    /// # Errors
    /// More experts to choose than there are.
    pub fn route(&self, logits: &Array, bias: Option<&Array>) -> Result<(Array, Array)> {
        let logits = ops::astype(logits, Dtype::Float32)?;
        let n = logits.dim(1);
        if self.chosen == 0 || self.chosen > n {
            return Err(Error::value(format!("[experts] {} of {n} experts cannot be chosen", self.chosen)));
        }
        if let Rule::OneByOne(share) = self.rule {
            return one_by_one(&logits, self.chosen, share);
        }
        let scores = match self.rule {
            Rule::SoftmaxThenTop => ops::softmax(&logits, -1)?,
            Rule::TopThenSoftmax | Rule::OneByOne(_) => logits,
            Rule::Sigmoid => ops::sigmoid(&logits)?,
        };
        let mut choice = match bias {
            Some(bias) => ops::add(&scores, bias)?,
            None => scores.clone(),
        };
        if let Some([groups, kept]) = self.groups.filter(|[g, k]| g > k) {
            let best = if self.rule == Rule::Sigmoid { 2 } else { self.best };
            choice = limit_to_groups(&choice, groups, kept, best.min(n / groups))?;
        }
        let best = ops::argpartition(&ops::negative(&choice)?, self.chosen as i64 - 1, Some(-1))?;
        let best = ops::slice(&best, &[(None, None, 1), (None, Some(self.chosen as i64), 1)])?;
        let mut weights = ops::take_along_axis(&scores, &best, -1)?;
        if self.rule == Rule::TopThenSoftmax {
            weights = ops::softmax(&weights, -1)?;
        } else if self.renormalize && self.chosen > 1 {
            let sum = ops::sum(&weights, -1, true)?;
            weights = ops::divide(&weights, if self.rule == Rule::Sigmoid { ops::add(&sum, 1e-20)? } else { sum })?;
        }
        if self.scale != 1.0 {
            weights = ops::multiply(&weights, self.scale)?;
        }
        Ok((best, weights))
    }
}

/// See [`Rule::OneByOne`].
fn one_by_one(logits: &Array, chosen: usize, share: f64) -> Result<(Array, Array)> {
    let (mut left, mut best, mut weights) = (logits.clone(), Vec::new(), Vec::new());
    for _ in 0..chosen {
        let (top, at) = (ops::max(&left, -1, true)?, ops::argmax(&left, Some(-1), true)?);
        let scale = ops::maximum(ops::abs(logits)?, &top)?;
        let far = ops::greater(&ops::divide(ops::subtract(&top, logits)?, scale)?, 2.0 * share)?;
        let near = ops::softmax(&ops::select(&far, f32::NEG_INFINITY, &left)?, -1)?;
        weights.push(ops::take_along_axis(&near, &at, -1)?);
        left = ops::put_along_axis(&left, &at, f32::NEG_INFINITY, -1)?;
        best.push(at);
    }
    Ok((ops::concatenate(&best, -1)?, ops::concatenate(&weights, -1)?))
}

/// Scores outside the best `kept` of `groups` groups become 0; a group is as good as its `best` best experts together.
fn limit_to_groups(scores: &Array, groups: usize, kept: usize, best: usize) -> Result<Array> {
    let (rows, n) = (scores.dim(0) as i64, scores.dim(1) as i64);
    let grouped = ops::reshape(scores, &[rows, groups as i64, n / groups as i64])?;
    let best = ops::sum(&ops::topk(&grouped, best, Some(-1))?, -1, true)?;
    let drop = (groups - kept) as i64;
    let worst = ops::argpartition(&best, drop - 1, Some(-2))?;
    let worst = ops::slice(&worst, &[(None, None, 1), (None, Some(drop), 1)])?;
    ops::reshape(&ops::put_along_axis(&grouped, &worst, 0.0, -2)?, &[rows, n])
}
