//! Multi-head latent attention: what a sequence remembers of a token is one short row, from which every head makes its
//! keys and values. Queries are taken to that row's space instead, so that its rows are never made larger: prompts and
//! single tokens take the same path and give the same bits.

use super::{MultiLinear, Norm, Rope};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// Sizes of a latent attention.
#[derive(Clone, Debug)]
pub struct LatentSizes {
    /// Of rows.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Of the row between rows and queries, if there is one.
    pub queries: Option<usize>,
    /// Of the row that is remembered.
    pub latent: usize,
    /// Of the part of a head without position.
    pub plain: usize,
    /// Of the part of a head with position, which all heads share in keys.
    pub turned: usize,
    /// Of a head of values.
    pub value: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Whether projections have biases.
    pub bias: bool,
    /// Added to what norms divide by.
    pub eps: f64,
}

/// To queries.
#[derive(Module, Clone)]
pub enum Queries {
    /// At once.
    Straight {
        /// To queries.
        q_proj: Linear,
    },
    /// Through a short row.
    Short {
        /// To the short row.
        q_a_proj: Linear,
        /// Of it.
        q_a_layernorm: Norm,
        /// To queries.
        q_b_proj: Linear,
    },
}

/// Multi-head latent attention.
#[derive(Module, Clone)]
pub struct Latent {
    /// To queries.
    #[flatten]
    pub queries: Queries,
    /// To the row that is remembered, and the turned part of keys.
    pub kv_a_proj_with_mqa: Linear,
    /// Of the row.
    pub kv_a_layernorm: Norm,
    /// Queries to the space of the row.
    pub embed_q: MultiLinear,
    /// Rows to values.
    pub unembed_out: MultiLinear,
    /// Back.
    pub o_proj: Linear,
    #[plain]
    sizes: LatentSizes,
    #[plain]
    rope: Rope,
}

impl Latent {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, s: LatentSizes, rope: Rope) -> Result<Latent> {
        let head = s.plain + s.turned;
        let queries = match s.queries {
            None => Queries::Straight { q_proj: at.linear("q_proj", s.width, s.heads * head, false)? },
            Some(short) => Queries::Short {
                q_a_proj: at.linear("q_a_proj", s.width, short, s.bias)?,
                q_a_layernorm: Norm::rms(at, "q_a_layernorm", short, s.eps)?,
                q_b_proj: at.linear("q_b_proj", short, s.heads * head, false)?,
            },
        };
        Ok(Latent {
            queries,
            kv_a_proj_with_mqa: at.linear("kv_a_proj_with_mqa", s.width, s.latent + s.turned, s.bias)?,
            kv_a_layernorm: Norm::rms(at, "kv_a_layernorm", s.latent, s.eps)?,
            embed_q: at.multi_linear("embed_q", s.heads, s.plain, s.latent)?,
            unembed_out: at.multi_linear("unembed_out", s.heads, s.latent, s.value)?,
            o_proj: at.linear("o_proj", s.heads * s.value, s.width, s.bias)?,
            sizes: s,
            rope,
        })
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (s, rows) = (&self.sizes, x.dim(0) as i64);
        let q = match &self.queries {
            Queries::Straight { q_proj } => q_proj.forward(x)?,
            Queries::Short { q_a_proj, q_a_layernorm, q_b_proj } => {
                q_b_proj.forward(&q_a_layernorm.forward(&q_a_proj.forward(x)?)?)?
            }
        };
        // (heads, rows, width of a head).
        let q = ops::transpose(&ops::reshape(&q, &[rows, s.heads as i64, -1])?, Some(&[1, 0, 2]))?;
        let (plain, turned) = cut(&q, s.plain)?;
        let q = ops::transpose(&self.embed_q.forward(&plain)?, Some(&[1, 0, 2]))?;
        let turned = ops::transpose(&turned, Some(&[1, 0, 2]))?;
        let (row, key) = cut(&self.kv_a_proj_with_mqa.forward(x)?, s.latent)?;
        let row = self.kv_a_layernorm.forward(&row)?;
        let y = batch.each(layer, &[&q, &turned, &row, &key], |rows, slot| {
            let [q, turned] = [&rows[0], &rows[1]].map(|x| ops::expand_dims(&ops::transpose(x, Some(&[1, 0, 2]))?, 0));
            let [row, key] = [&rows[2], &rows[3]].map(|x| ops::expand_dims(&ops::expand_dims(x, 0)?, 0));
            let q = ops::concatenate(&[q?, self.rope.forward(&turned?, slot.at)?], -1)?;
            let row = row?;
            let k = ops::concatenate(&[row.clone(), self.rope.forward(&key?, slot.at)?], -1)?;
            let (k, v) = slot.remember(&k, &row, None)?;
            let options =
                AttentionOptions { scale: s.scale, mask: AttentionMask::Causal, ..AttentionOptions::default() };
            let y = scaled_dot_product_attention(&q, &k, &v, &options)?;
            ops::transpose(&ops::squeeze(&y, 0)?, Some(&[1, 0, 2]))
        })?;
        let y = self.unembed_out.forward(&ops::transpose(&y, Some(&[1, 0, 2]))?)?;
        self.o_proj.forward(&ops::reshape(&ops::transpose(&y, Some(&[1, 0, 2]))?, &[rows, -1])?)
    }
}

/// The first `n` features, and the rest.
fn cut(x: &Array, n: usize) -> Result<(Array, Array)> {
    let mut parts = ops::split(x, vec![n as i64], -1)?.into_iter();
    match (parts.next(), parts.next()) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => Err(lapis::Error::shape("[attention] two parts")),
    }
}
