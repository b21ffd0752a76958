//! How well a model foresees a text: losses, perplexity.

use crate::batch::{Batch, Sequence};
use crate::generate::LanguageModel;
use lapis::ops::fast::cross_entropy;
use lapis::{Array, Dtype, Error, Result, eval, ops};

/// Rows whose logits exist at once.
const ROWS: usize = 512;

/// Perplexity of a text and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean loss of a token.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Tokens foreseen.
    pub tokens: usize,
}

impl LanguageModel {
    /// The loss of each token of each window but its first: `-ln p(token | tokens before)`. `batch` windows go through the
    /// model at once; `each` hears how many are done, and says whether to go on: where it does not, what came so far is given.
    ///
    /// # Errors
    /// A window of fewer than two tokens, a token beyond the vocabulary.
    pub fn losses(&self, windows: &[Vec<u32>], batch: usize, mut each: impl FnMut(usize) -> bool) -> Result<Vec<f32>> {
        if let Some(w) = windows.iter().find(|w| w.len() < 2) {
            return Err(Error::value(format!("[perplexity] a window has {} tokens; two are the least", w.len())));
        }
        if let Some(t) = windows.iter().flatten().find(|&&t| t as usize >= self.vocabulary) {
            return Err(Error::index(format!(
                "[perplexity] token {t} is beyond the vocabulary of {}",
                self.vocabulary
            )));
        }
        let mut all = Vec::new();
        for (i, part) in windows.chunks(batch.max(1)).enumerate() {
            let mut sequences = vec![Sequence::new(); part.len()];
            let inputs: Vec<i32> = part.iter().flat_map(|w| &w[..w.len() - 1]).map(|&t| t as i32).collect();
            let targets: Vec<i32> = part.iter().flat_map(|w| &w[1..]).map(|&t| t as i32).collect();
            let n = inputs.len();
            let mut rows = Batch::new(part.iter().zip(&mut sequences).map(|(w, s)| (w.len() - 1, s)));
            let hidden = self.model.hidden(&Array::from_vec(inputs, &[n]), &mut rows)?;
            rows.finish();
            eval([&hidden])?;
            for from in (0..n).step_by(ROWS) {
                let to = (from + ROWS).min(n);
                let rows = ops::slice(&hidden, &[(Some(from as i64), Some(to as i64), 1)])?;
                let logits = ops::astype(&self.model.logits(&rows)?, Dtype::Float32)?;
                let losses = cross_entropy(&logits, &Array::from_slice(&targets[from..to], &[to - from]))?;
                all.extend(losses.to_vec::<f32>()?);
            }
            if !each(((i + 1) * batch).min(windows.len())) {
                break;
            }
        }
        Ok(all)
    }

    /// The perplexity of windows of tokens, or of the first of them where `each` says no.
    ///
    /// # Errors
    /// As [`LanguageModel::losses`]; losses that are no numbers.
    pub fn perplexity(
        &self,
        windows: &[Vec<u32>],
        batch: usize,
        each: impl FnMut(usize) -> bool,
    ) -> Result<Perplexity> {
        let losses = self.losses(windows, batch, each)?;
        let n = losses.len() as f64;
        if losses.len() < 2 || losses.iter().any(|l| l.is_nan()) {
            return Err(Error::eval(format!(
                "[perplexity] {} losses, some of them no numbers: the weights are damaged",
                n
            )));
        }
        let mean = losses.iter().map(|&l| f64::from(l)).sum::<f64>() / n;
        let variance = losses.iter().map(|&l| (f64::from(l) - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let value = mean.exp();
        Ok(Perplexity { value, error: value * (variance / n).sqrt(), tokens: losses.len() })
    }
}
