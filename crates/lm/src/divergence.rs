//! How far a model is from another: the mean KL divergence of what they foresee, token by token of a text.

use crate::batch::{Batch, Sequence};
use crate::models::Model;
use lapis::ops::fast::cross_entropy;
use lapis::shape::show;
use lapis::{Array, Dtype, Error, Result, eval, ops};
use lapis_nn::activations::log_softmax;

/// Rows whose logits exist at once.
const ROWS: usize = 256;

/// What two models foresee at the same places of a text.
#[derive(Clone, Debug, Default)]
pub struct Divergence {
    /// KL(first ‖ second) at each place, in nats.
    pub kl: Vec<f32>,
    /// `-ln p(token | tokens before)` of the first model at each place.
    pub first: Vec<f32>,
    /// The same of the second.
    pub second: Vec<f32>,
    /// Places at which both find the same token likeliest.
    pub agree: usize,
}

impl Divergence {
    /// Places.
    pub fn tokens(&self) -> usize {
        self.kl.len()
    }

    /// The mean KL divergence, in nats a token.
    pub fn mean(&self) -> f64 {
        mean(&self.kl)
    }

    /// Its standard error.
    pub fn error(&self) -> f64 {
        let (n, mean) = (self.kl.len() as f64, self.mean());
        let squares: f64 = self.kl.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        (squares / (n - 1.0).max(1.0) / n).sqrt()
    }

    /// The divergence that a fraction `q`, from 0 to 1, of the places do not exceed.
    pub fn quantile(&self, q: f64) -> f64 {
        let mut all = self.kl.clone();
        all.sort_by(f32::total_cmp);
        let at = (q.clamp(0.0, 1.0) * (all.len().saturating_sub(1)) as f64).round() as usize;
        all.get(at).copied().map_or(f64::NAN, f64::from)
    }

    /// How often both find the same token likeliest, from 0 to 1.
    pub fn agreement(&self) -> f64 {
        self.agree as f64 / self.kl.len().max(1) as f64
    }

    /// Perplexities of the first and of the second model.
    pub fn perplexities(&self) -> [f64; 2] {
        [mean(&self.first).exp(), mean(&self.second).exp()]
    }
}

fn mean(all: &[f32]) -> f64 {
    all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64
}

/// Compares `second` with `first` at every token of each window but the last, `batch` windows at once; `each` hears how many
/// windows are done, and says whether to go on: where it does not, what came so far is given. Logits are compared in float32.
///
/// # Errors
/// A window of fewer than two tokens, a token beyond the vocabulary; models of other vocabularies than each other's, or that
/// write no text; divergences that are no numbers.
pub fn divergence(
    first: &dyn Model,
    second: &dyn Model,
    windows: &[Vec<u32>],
    batch: usize,
    mut each: impl FnMut(usize) -> bool,
) -> Result<Divergence> {
    if first.is_encoder() || second.is_encoder() {
        return Err(Error::unsupported("[kld] a model that gives embeddings foresees no text"));
    }
    if windows.is_empty() || windows.iter().any(|w| w.len() < 2) {
        return Err(Error::value("[kld] there is no text to compare on, or a window of one token; two are the least"));
    }
    let mut found = Divergence::default();
    for (i, part) in windows.chunks(batch.max(1)).enumerate() {
        let (a, b) = (rows(first, part)?, rows(second, part)?);
        eval([&a, &b])?;
        let targets: Vec<i32> = part.iter().flat_map(|w| &w[1..]).map(|&t| t as i32).collect();
        for from in (0..targets.len()).step_by(ROWS) {
            let to = (from + ROWS).min(targets.len());
            found.add(&logits(first, &a, from, to)?, &logits(second, &b, from, to)?, &targets[from..to])?;
        }
        if !each(((i + 1) * batch.max(1)).min(windows.len())) {
            break;
        }
    }
    if found.kl.iter().chain(&found.first).chain(&found.second).any(|x| !x.is_finite()) {
        return Err(Error::eval("[kld] some divergences are no numbers: weights of one of the models are damaged"));
    }
    Ok(found)
}

/// Rows of the last layer of all windows, but for their last tokens.
fn rows(model: &dyn Model, windows: &[Vec<u32>]) -> Result<Array> {
    let inputs: Vec<i32> = windows.iter().flat_map(|w| &w[..w.len() - 1]).map(|&t| t as i32).collect();
    let mut texts = vec![Sequence::whole(); windows.len()];
    let n = inputs.len();
    let mut batch = Batch::new(windows.iter().map(|w| w.len() - 1).zip(&mut texts));
    model.hidden(&Array::from_vec(inputs, &[n]), &mut batch)
}

fn logits(model: &dyn Model, hidden: &Array, from: usize, to: usize) -> Result<Array> {
    let rows = ops::slice(hidden, &[(Some(from as i64), Some(to as i64), 1)])?;
    ops::astype(&model.logits(&rows)?, Dtype::Float32)
}

impl Divergence {
    fn add(&mut self, a: &Array, b: &Array, targets: &[i32]) -> Result<()> {
        if a.shape() != b.shape() {
            let (a, b) = (show(a.shape()), show(b.shape()));
            return Err(Error::shape(format!(
                "[kld] logits of shapes {a} and {b}: the models have different vocabularies and cannot be compared"
            )));
        }
        let vocabulary = a.dim(1);
        if let Some(t) = targets.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(Error::index(format!("[kld] token {t} is beyond the vocabulary of {vocabulary}")));
        }
        let targets = Array::from_slice(targets, &[targets.len()]);
        let (p, q) = (log_softmax(a, -1)?, log_softmax(b, -1)?);
        let kl = ops::sum(&ops::multiply(ops::exp(&p)?, ops::subtract(&p, &q)?)?, -1, false)?;
        let (first, second) = (cross_entropy(a, &targets)?, cross_entropy(b, &targets)?);
        let same = ops::equal(ops::argmax(a, Some(-1), false)?, ops::argmax(b, Some(-1), false)?)?;
        let same = ops::sum(&ops::astype(&same, Dtype::Int32)?, (), false)?;
        eval([&kl, &first, &second, &same])?;
        // What rounding leaves below zero is zero.
        self.kl.extend(kl.to_vec::<f32>()?.into_iter().map(|x| if x < 0.0 { 0.0 } else { x }));
        self.first.extend(first.to_vec::<f32>()?);
        self.second.extend(second.to_vec::<f32>()?);
        self.agree += same.item::<i32>()? as usize;
        Ok(())
    }
}
