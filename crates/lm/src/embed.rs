//! Texts to vectors: what the last layer says of a text's tokens, taken together.
//!
//! How is said by the files of sentence-transformers beside the weights ([`Pooling::read`]). Tokens of many texts lie in one
//! dimension of rows without filling, as everywhere here, and sums are taken in f64 in the order of the tokens: a text's
//! vector is the same bits alone, beside others, and read in parts.

use crate::batch::{Batch, Sequence};
use crate::checkpoint::read_object;
use crate::generate::LanguageModel;
use crate::models::Model;
use lapis::{Array, Dtype, Error, Result, eval, ops};
use serde_json::Value;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

/// What of a text's rows is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// The first.
    Cls,
    /// Their mean.
    Mean,
    /// The largest of each column.
    Max,
    /// The last.
    Last,
}

impl Pool {
    /// By the names `cls`, `mean`, `max`, `last`.
    pub fn named(name: &str) -> Option<Pool> {
        Some(match name {
            "cls" => Pool::Cls,
            "mean" => Pool::Mean,
            "max" => Pool::Max,
            "last" | "lasttoken" => Pool::Last,
            _ => return None,
        })
    }
}

/// How a model's rows become a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// What is taken.
    pub pool: Pool,
    /// Whether the vector gets length 1.
    pub normalize: bool,
}

impl Pooling {
    /// As `modules.json` and the files it names say; `None` where there is no such file.
    ///
    /// # Errors
    /// Files that are malformed, or ask for what there is not.
    pub fn read(dir: &Path) -> Result<Option<Pooling>> {
        let path = dir.join("modules.json");
        // A model inside a program has no folder.
        if dir.as_os_str().is_empty() || !path.is_file() {
            return Ok(None);
        }
        let wrong = |what: String| Error::io(format!("[load] {}: {what}", path.display()));
        let text = std::fs::read(&path).map_err(|e| wrong(e.to_string()))?;
        let list: Vec<Value> = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let (mut pool, mut normalize) = (None, false);
        for module in &list {
            let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
            match text("type").rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Normalize" => normalize = true,
                "Pooling" => {
                    let folder = text("path");
                    let plain = !folder.is_empty() && folder.split('/').all(|p| !p.is_empty() && !p.starts_with('.'));
                    if !plain {
                        return Err(wrong(format!("{folder:?} is no folder beside it")));
                    }
                    pool = Some(pool_of(&dir.join(folder).join("config.json"))?);
                }
                other => {
                    return Err(Error::unsupported(format!("[load] {}: {other:?} is not supported", path.display())));
                }
            }
        }
        Ok(pool.map(|pool| Pooling { pool, normalize }))
    }
}

/// What the config of a pooling asks for.
fn pool_of(path: &Path) -> Result<Pool> {
    let config = read_object(path)?;
    let asked: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let set = config.iter().filter(|(_, v)| **v == Value::Bool(true));
            set.filter_map(|(k, _)| {
                Some(k.strip_prefix("pooling_mode_")?.trim_end_matches("_tokens").trim_end_matches("_token"))
            })
            .collect()
        }
    };
    match asked[..] {
        [] => Ok(Pool::Mean),
        [one] if Pool::named(one).is_some() => Ok(Pool::named(one).unwrap_or(Pool::Mean)),
        _ => Err(Error::unsupported(format!(
            "[load] {}: pooling {} is not supported; one of cls, mean, max, lasttoken is",
            path.display(),
            asked.join(" and ")
        ))),
    }
}

/// Texts on their way to vectors, a step at a time.
pub struct Reading {
    model: Arc<dyn Model>,
    pooling: Pooling,
    texts: VecDeque<Text>,
    vectors: Vec<Vec<f32>>,
}

/// A text, as far as it was read.
struct Text {
    tokens: Vec<u32>,
    sequence: Sequence,
    /// Of the rows so far.
    taken: Vec<f64>,
}

impl Text {
    fn left(&self) -> usize {
        self.tokens.len() - self.sequence.len()
    }

    fn take(&mut self, pool: Pool, row: &[f32]) {
        if self.taken.is_empty() {
            self.taken = row.iter().map(|&x| f64::from(x)).collect();
            return;
        }
        for (sum, &x) in self.taken.iter_mut().zip(row) {
            let x = f64::from(x);
            match pool {
                Pool::Mean => *sum += x,
                Pool::Max => *sum = if x > *sum || x.is_nan() { x } else { *sum },
                // The only row that is taken.
                Pool::Cls | Pool::Last => *sum = x,
            }
        }
    }

    fn vector(mut self, pooling: Pooling) -> Vec<f32> {
        if pooling.pool == Pool::Mean {
            let n = self.tokens.len() as f64;
            self.taken.iter_mut().for_each(|x| *x /= n);
        }
        if pooling.normalize {
            normalize(&mut self.taken);
        }
        self.taken.into_iter().map(|x| x as f32).collect()
    }
}

/// Gives a vector length 1; zeros stay zeros.
fn normalize(vector: &mut [f64]) {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x /= length);
}

/// The first `n` numbers of a vector, given length 1 again.
pub fn shorten(vector: &mut Vec<f32>, n: usize) {
    vector.truncate(n);
    let mut wide: Vec<f64> = vector.iter().map(|&x| f64::from(x)).collect();
    normalize(&mut wide);
    vector.iter_mut().zip(wide).for_each(|(x, y)| *x = y as f32);
}

impl Reading {
    /// Of texts as tokens.
    ///
    /// # Errors
    /// A text without tokens, longer than the model's context, or with a token beyond its vocabulary.
    pub fn new(model: &LanguageModel, texts: Vec<Vec<u32>>, pooling: Pooling) -> Result<Reading> {
        for (i, tokens) in texts.iter().enumerate() {
            let n = tokens.len();
            if n == 0 {
                return Err(Error::value(format!("[embed] text {i} is empty: there is nothing to take a vector of")));
            }
            if let Some(context) = model.context.filter(|&c| n > c) {
                return Err(Error::value(format!(
                    "[embed] text {i} has {n} tokens, and the model's context is {context}"
                )));
            }
            if let Some(t) = tokens.iter().find(|&&t| t as usize >= model.vocabulary) {
                let most = model.vocabulary;
                return Err(Error::index(format!(
                    "[embed] token {t} of text {i} is beyond the model's vocabulary of {most}"
                )));
            }
        }
        let text = |tokens| Text { tokens, sequence: Sequence::new(), taken: Vec::new() };
        let texts = texts.into_iter().map(text).collect();
        Ok(Reading { model: Arc::clone(&model.model), pooling, texts, vectors: Vec::new() })
    }

    /// Whether all was read.
    pub fn is_over(&self) -> bool {
        self.texts.is_empty()
    }

    /// Takes about `rows` tokens through the model, and says how many they were: encoders read a text at once.
    ///
    /// # Errors
    /// Those of the model.
    pub fn step(&mut self, rows: usize) -> Result<usize> {
        let (encoder, pool) = (self.model.is_encoder(), self.pooling.pool);
        let (mut counts, mut n) = (Vec::new(), 0);
        for text in &self.texts {
            let room = rows.max(1).saturating_sub(n);
            let count = match encoder {
                true if n > 0 && text.left() > room => break,
                true => text.left(),
                false => text.left().min(room),
            };
            if count == 0 {
                break;
            }
            counts.push(count);
            n += count;
        }
        if n == 0 {
            return Ok(0);
        }
        let (mut tokens, mut wanted): (Vec<i32>, Vec<i32>) = (Vec::with_capacity(n), Vec::new());
        let mut shares = Vec::with_capacity(counts.len());
        for (text, &count) in self.texts.iter().zip(&counts) {
            let (from, at) = (text.sequence.len(), tokens.len() as i32);
            let end = at + count as i32;
            tokens.extend(text.tokens[from..from + count].iter().map(|&t| t as i32));
            let rows = match pool {
                Pool::Mean | Pool::Max => at..end,
                Pool::Cls => at..at + i32::from(from == 0),
                Pool::Last => end - i32::from(count == text.left())..end,
            };
            shares.push(rows.len());
            wanted.extend(rows);
        }
        let parts = self.texts.iter_mut().zip(&counts).map(|(text, &count)| (count, &mut text.sequence));
        let mut batch = Batch::new(parts);
        let mut hidden = self.model.hidden(&Array::from_vec(tokens, &[n]), &mut batch)?;
        batch.finish();
        if wanted.len() < n {
            let picked = wanted.len();
            hidden = ops::take(&hidden, &Array::from_vec(wanted, &[picked]), 0)?;
        }
        let hidden = ops::astype(&hidden, Dtype::Float32)?;
        eval(self.texts.iter().take(counts.len()).flat_map(|t| t.sequence.arrays()).chain([&hidden]))?;
        let (width, values) = (hidden.dim(1), hidden.to_vec::<f32>()?);
        let mut values = values.chunks(width.max(1));
        for (text, rows) in self.texts.iter_mut().zip(shares) {
            values.by_ref().take(rows).for_each(|row| text.take(pool, row));
        }
        while self.texts.front().is_some_and(|t| t.left() == 0) {
            self.vectors.extend(self.texts.pop_front().map(|t| t.vector(self.pooling)));
        }
        Ok(n)
    }

    /// A vector for each text, once all was read.
    pub fn into_vectors(self) -> Vec<Vec<f32>> {
        self.vectors
    }
}

/// Tokens in a step.
const STEP: usize = 1024;

impl LanguageModel {
    /// Vectors of texts, float32 `(texts, width)`, as the model's files say or as `pooling` does.
    ///
    /// # Errors
    /// No texts; a model that does not say how, where `pooling` does not either; as [`Reading::new`].
    pub fn embed(&self, texts: &[&str], pooling: Option<Pooling>) -> Result<Array> {
        let why = "[embed] the model has no modules.json that says how to take rows together: say it";
        let pooling = pooling.or(self.pooling).ok_or_else(|| Error::value(why))?;
        let tokens = texts.iter().map(|text| self.tokenizer.encode(text, true)).collect::<Result<Vec<_>>>()?;
        let mut reading = Reading::new(self, tokens, pooling)?;
        while !reading.is_over() {
            reading.step(STEP)?;
        }
        let vectors = reading.into_vectors();
        let width = vectors.first().ok_or_else(|| Error::value("[embed] there are no texts"))?.len();
        Ok(Array::from_vec(vectors.concat(), &[texts.len(), width]))
    }
}
