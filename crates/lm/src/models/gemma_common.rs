//! What Gemma 3n and Gemma 4 have in common: keys that later layers share, embeddings of each token for each layer.

use super::Settings;
use super::settings::wrong;
use crate::batch::Batch;
use crate::blocks::Heads;
use crate::weights::At;
use lapis::ops::fast::rms_norm;
use lapis::{Array, Result, ops};
use lapis_nn::{Embedding, Layer, Linear, Module, RMSNorm};

/// Layers, and how many of the last look at keys of others.
pub(super) fn sharing(s: &Settings) -> Result<(usize, usize)> {
    let (layers, shared): (usize, usize) = (s.need("num_hidden_layers")?, s.need("num_kv_shared_layers")?);
    match shared < layers {
        true => Ok((layers, shared)),
        false => {
            Err(wrong("num_kv_shared_layers", format!("{shared} of {layers} layers; one at least has its own keys")))
        }
    }
}

/// The kind of each layer, and for each of the last `shared` the latest layer of its kind before them.
pub(super) fn owners(kinds: &[String], shared: usize) -> Result<Vec<usize>> {
    let own = kinds.len() - shared;
    let owner = |i: usize| match i < own {
        true => Ok(i),
        false => kinds[..own].iter().rposition(|k| *k == kinds[i]).ok_or_else(|| {
            wrong("layer_types", format!("layer {i} shares keys, and no layer of kind {:?} has any", kinds[i]))
        }),
    };
    (0..kinds.len()).map(owner).collect()
}

/// Attention whose keys and values are its own, or those of an earlier layer: checkpoints may have the projections of both.
#[derive(Module, Clone)]
pub(super) struct Look {
    pub(super) q_proj: Linear,
    pub(super) k_proj: Option<Linear>,
    /// Without one, values are keys as they are before their norm.
    pub(super) v_proj: Option<Linear>,
    pub(super) o_proj: Linear,
    pub(super) q_norm: RMSNorm,
    pub(super) k_norm: Option<RMSNorm>,
    #[plain]
    pub(super) heads: Heads,
    /// The layer whose keys these are.
    #[plain]
    pub(super) owner: usize,
    /// Of the norm of values.
    #[plain]
    pub(super) eps: f64,
}

impl Look {
    pub(super) fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let each = |x: &Array| ops::reshape(x, &[x.dim(0) as i64, -1, self.heads.width as i64]);
        let q = self.q_norm.forward(&each(&self.q_proj.forward(x)?)?)?;
        let y = match (&self.k_proj, &self.k_norm) {
            (Some(k_proj), Some(k_norm)) if self.owner == layer => {
                let k = each(&k_proj.forward(x)?)?;
                let v = match &self.v_proj {
                    Some(v_proj) => each(&v_proj.forward(x)?)?,
                    None => k.clone(),
                };
                let v = rms_norm(&v, None, self.eps)?;
                self.heads.attend([&q, &k_norm.forward(&k)?, &v], None, layer, batch)?
            }
            _ => self.heads.attend_shared(&q, self.owner, batch)?,
        };
        self.o_proj.forward(&y)
    }
}

/// Embeddings of each token for each layer.
#[derive(Module, Clone)]
pub(super) struct PerLayer {
    embed_tokens_per_layer: Embedding,
    per_layer_model_projection: Linear,
    per_layer_projection_norm: RMSNorm,
    #[plain]
    layers: usize,
}

impl PerLayer {
    /// `tokens` is how many have embeddings, `width` that of the model, `inner` that of an embedding.
    pub(super) fn load(
        at: &At,
        tokens: usize,
        width: usize,
        inner: usize,
        layers: usize,
        eps: f64,
    ) -> Result<PerLayer> {
        Ok(PerLayer {
            embed_tokens_per_layer: at.embedding("embed_tokens_per_layer", tokens, layers * inner)?,
            per_layer_model_projection: at.linear("per_layer_model_projection", width, layers * inner, false)?,
            per_layer_projection_norm: at.rms_norm("per_layer_projection_norm", inner, eps)?,
            layers,
        })
    }

    /// Rows of the model's embedding and their tokens to one array of rows a layer.
    pub(super) fn forward(&self, x: &Array, tokens: &Array) -> Result<Vec<Array>> {
        let each = |x: &Array| ops::reshape(x, &[x.dim(0) as i64, self.layers as i64, -1]);
        let own = each(&self.embed_tokens_per_layer.forward(tokens)?)?;
        let own = scaled(&own, (own.dim(2) as f64).sqrt())?;
        let seen = scaled(&self.per_layer_model_projection.forward(x)?, (x.dim(1) as f64).powf(-0.5))?;
        let all = ops::add(self.per_layer_projection_norm.forward(&each(&seen)?)?, own)?;
        let all = scaled(&all, 0.5f64.sqrt())?;
        let layer = |i: usize| {
            let range = (Some(i as i64), Some(i as i64 + 1), 1);
            ops::squeeze(&ops::slice(&all, &[(None, None, 1), range])?, 1)
        };
        (0..self.layers).map(layer).collect()
    }
}

/// Times a factor that is rounded to the type of `x`.
pub(super) fn scaled(x: &Array, factor: f64) -> Result<Array> {
    ops::multiply(x, ops::full(&[], factor, Some(x.dtype()))?)
}

/// Logits below `cap`, softly.
pub(super) fn capped(y: Array, cap: Option<f64>) -> Result<Array> {
    match cap {
        Some(cap) => ops::multiply(ops::tanh(&ops::divide(&y, cap)?)?, cap),
        None => Ok(y),
    }
}
