//! What a model needs, before a byte of its weights is read: memory at any length of context, and bytes a token reads.
//!
//! The model is built on arrays that are never computed, and steps are taken with it that are never run: what its layers
//! would remember has a size all the same, whatever their kind (windows, latents, recurrences). So nothing here knows an
//! architecture.

use crate::batch::{Batch, Sequence};
use crate::checkpoint::Checkpoint;
use crate::models::{self, Model};
use lapis::{Array, Dtype, Result, memory, ops};
use lapis_nn::for_each_packable;
use serde_json::Value;
use std::time::Instant;

/// Tokens of a prompt in a step.
const STEP: usize = 2048;
/// Where a config says nothing of the model's context.
const CONTEXT: usize = 32768;
/// What of the memory's speed a token's reading of the weights reaches, as README's table of a whole model has it.
const REACHED: f64 = 0.72;

/// What a model needs.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Bytes of its parameters.
    pub weights: u64,
    /// Values that they stand for.
    pub parameters: u64,
    /// Bytes of parameters that a token reads.
    pub reads: u64,
    /// Values of matrices that each token of a prompt meets, and those that only its last one does, as it is the only one with
    /// logits.
    products: (u64, u64),
    /// Positions that the model was made for, where its config says so.
    pub context: Option<usize>,
    /// Bytes that a step needs beside what it remembers.
    pub working: u64,
    /// Values of the layers that can be packed, and the bytes they take now.
    packable: (u64, u64),
    /// Tokens seen, and bytes remembered of them; both grow.
    remembered: Vec<(usize, u64)>,
}

impl Fit {
    /// What the model of a checkpoint needs.
    ///
    /// # Errors
    /// Those of loading it.
    pub fn of(checkpoint: &mut Checkpoint) -> Result<Fit> {
        let (context, vocabulary) = (checkpoint.context(), checkpoint.vocabulary()?);
        let config = checkpoint.config.clone();
        let number = |names: &[&str]| {
            let text = config.get("text_config").and_then(Value::as_object);
            let find = |c: &serde_json::Map<String, Value>| names.iter().find_map(|n| c.get(*n)?.as_u64());
            find(&config).or_else(|| text.and_then(find))
        };
        let chosen =
            number(&["num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts", "moe_topk"]);
        let (width, inner) = (number(&["hidden_size", "n_embd", "d_model"]), number(&["intermediate_size", "n_inner"]));
        let width = width.unwrap_or(4096);
        let inner = inner.unwrap_or(4 * width);
        let mut model = models::load(checkpoint)?;
        let rows = context.unwrap_or(CONTEXT).min(STEP) as u64;
        let mut fit = Fit {
            weights: 0,
            parameters: 0,
            reads: 0,
            products: (0, 0),
            context,
            // The residual, its norm and a product; the inner rows twice; logits as they are chosen from.
            working: 2 * rows * (3 * width + 2 * inner) + 12 * vocabulary as u64,
            packable: (0, 0),
            remembered: remembered(&*model, context.unwrap_or(CONTEXT))?,
        };
        fit.count(&mut *model, chosen);
        Ok(fit)
    }

    /// Adds up the parameters; of experts, `chosen` of each layer's are read for a token.
    fn count(&mut self, model: &mut dyn Model, chosen: Option<u64>) {
        let mut packed = std::collections::HashMap::new();
        for_each_packable(model.module_mut(), &mut |path, layer| {
            packed.insert(path.to_string(), layer.matrix().format().map(|f| f.bits() as u64));
        });
        let leaves = model.module().parameters();
        let is_head = |path: &str| path.contains("lm_head") || path.contains("embed_out");
        let is_table =
            |path: &str| ["embed", "wte", "word_embeddings"].iter().any(|t| path.contains(t)) && !is_head(path);
        let tied = !leaves.keys().any(|path| is_head(path));
        for (path, value) in leaves.iter() {
            let (bytes, size) = (value.nbytes() as u64, value.size() as u64);
            let (layer, last) = path.rsplit_once('.').unwrap_or(("", path));
            let values = match (packed.get(layer), last) {
                (Some(Some(bits)), "weight") => size * 32 / bits,
                (Some(Some(_)), "scales" | "biases") => 0,
                _ => size,
            };
            self.weights += bytes;
            self.parameters += values;
            if packed.contains_key(layer) && last != "bias" {
                self.packable.0 += values;
                self.packable.1 += bytes;
            }
            let experts = value.shape().first().map_or(1, |&n| n as u64).max(1);
            // What of it a token takes.
            let part =
                |of: u64| match chosen {
                    Some(chosen) if path.contains("experts") || path.contains("switch_mlp") => {
                        if path.contains("shared") { of } else { of / experts * chosen.min(experts) }
                    }
                    // Of a table that is no head as well, one row.
                    _ if is_table(path) && (!tied || path.contains("tokens_per_layer")) => of / experts,
                    _ => of,
                };
            self.reads += part(bytes);
            if value.ndim() > 1 {
                match is_head(path) || is_table(path) {
                    false => self.products.0 += part(values),
                    true => self.products.1 += part(values),
                }
            }
        }
    }

    /// Bytes remembered of a sequence of so many tokens.
    pub fn remembered(&self, tokens: usize) -> u64 {
        let i = self.remembered.partition_point(|&(n, _)| n < tokens);
        let (n1, b1) = self.remembered[i.min(self.remembered.len() - 1)];
        let (n0, b0) = self.remembered[i.saturating_sub(1).min(self.remembered.len() - 1)];
        if n1 == n0 { b1 } else { b0 + (b1 - b0.min(b1)) * (tokens - n0) as u64 / (n1 - n0) as u64 }
    }

    /// Bytes in all for a sequence of so many tokens.
    pub fn needs(&self, tokens: usize) -> u64 {
        let rows = tokens.min(STEP) as u64;
        self.weights + self.remembered(tokens) + self.working * rows.max(64) / STEP as u64
    }

    /// The longest sequence that fits in so many bytes, up to the model's context; `None` where nothing does.
    pub fn longest(&self, bytes: u64) -> Option<usize> {
        let most = self.context.unwrap_or(CONTEXT);
        let (mut fits, mut not) = (0, most + 1);
        while not - fits > 1 {
            let tokens = fits + (not - fits) / 2;
            if self.needs(tokens) <= bytes { fits = tokens } else { not = tokens }
        }
        (fits > 0).then_some(fits)
    }

    /// The same model with the layers that can be packed at so many bits in groups of 64 (affine).
    pub fn packed(&self, bits: u64) -> Fit {
        let (values, now) = self.packable;
        let then = values * (2 * bits + 1) / 16;
        let share =
            |bytes: u64| (bytes as f64 * (self.weights - now + then) as f64 / self.weights.max(1) as f64) as u64;
        Fit { weights: self.weights - now + then, reads: share(self.reads), packable: (values, then), ..self.clone() }
    }

    /// Tokens a second after so many tokens, where memory gives `bandwidth` bytes a second.
    pub fn rate(&self, bandwidth: f64, tokens: usize) -> f64 {
        REACHED * bandwidth / (self.reads + self.remembered(tokens)).max(1) as f64
    }

    /// The most tokens a second of `sequences` sequences after so many tokens each, where memory gives `bandwidth` bytes a
    /// second: the parameters are read once for all. Of experts it counts those of one token.
    pub fn most(&self, bandwidth: f64, sequences: usize, tokens: usize) -> f64 {
        let n = sequences as f64;
        n * bandwidth / (self.reads as f64 + n * self.remembered(tokens) as f64).max(1.0)
    }

    /// The most tokens a second of a prompt of so many tokens, where multiply-adds do `peak` operations a second: two for each
    /// value of the matrices that a token meets. Attention is not counted.
    pub fn most_of_prompt(&self, peak: f64, tokens: usize) -> f64 {
        let (each, last) = self.products;
        peak / (2.0 * (each as f64 + last as f64 / tokens.max(1) as f64)).max(1.0)
    }

    /// Bits a value.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.weights as f64 / self.parameters.max(1) as f64
    }
}

/// What a sequence would leave behind at growing lengths.
fn remembered(model: &dyn Model, context: usize) -> Result<Vec<(usize, u64)>> {
    if model.is_encoder() {
        return Ok(vec![(1, 0), (context, 0)]);
    }
    let step = STEP.max(context / 32);
    let (mut points, mut sequence) = (Vec::new(), Sequence::new());
    let mut take = |rows: usize, sequence: &mut Sequence| -> Result<()> {
        let mut batch = Batch::one(rows, sequence);
        model.hidden(&Array::from_vec(vec![0i32; rows], &[rows]), &mut batch)?;
        batch.finish();
        points.push((sequence.len(), sequence.bytes() as u64));
        Ok(())
    };
    take(1, &mut Sequence::new())?;
    take(STEP.min(context), &mut sequence)?;
    while sequence.len() < context {
        take(step.min(context - sequence.len()), &mut sequence)?;
    }
    points.dedup_by_key(|p| p.0);
    // Windows hold more while a step passes through them than after it; what was needed once is needed.
    let mut most = 0;
    for (_, bytes) in &mut points {
        most = most.max(*bytes);
        *bytes = most;
    }
    Ok(points)
}

/// Bytes of memory that are free for a process that begins now: within its limit, and not taken by others.
pub fn available() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
    });
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max").zip(number("/sys/fs/cgroup/memory.current")).map(|(most, used)| {
        // Pages of files give way.
        let stat = read("/sys/fs/cgroup/memory.stat").unwrap_or_default();
        let files = |key: &str| stat.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok()).unwrap_or(0);
        most.saturating_sub(used.saturating_sub(files("inactive_file ") + files("active_file ")))
    });
    [machine, group, Some(memory::limit() as u64)].into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Bytes a second that memory gives when all threads read.
///
/// # Errors
/// No memory for it.
pub fn bandwidth() -> Result<f64> {
    Bandwidth::new()?.measure()
}

/// More memory than caches hold, to read.
pub struct Bandwidth(Array);

impl Bandwidth {
    /// A quarter of what is free, 512 MiB at most, written once: that takes longer than reading it.
    ///
    /// # Errors
    /// No memory for it.
    pub fn new() -> Result<Bandwidth> {
        let bytes = (available() / 4).clamp(16 << 20, 512 << 20) as usize;
        // A fill is one number until it is copied.
        let all = ops::contiguous(&ops::full(&[bytes / 4], 1.0, Some(Dtype::Float32))?, false)?;
        all.eval()?;
        Ok(Bandwidth(all))
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.0.nbytes()
    }

    /// Bytes a second that all threads read: the median of several passes.
    ///
    /// # Errors
    /// None that are known.
    pub fn measure(&self) -> Result<f64> {
        let mut passes = [0.0; 9];
        for pass in &mut passes {
            let began = Instant::now();
            ops::sum(&self.0, (), false)?.eval()?;
            *pass = self.bytes() as f64 / began.elapsed().as_secs_f64();
        }
        passes.sort_by(f64::total_cmp);
        Ok(passes[passes.len() / 2])
    }
}
