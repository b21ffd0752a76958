//! Multi-head latent attention: every head makes its keys and values of one short row a token.
//!
//! Absorbed, a sequence remembers that row alone: queries are taken to its space instead, for prompts and single tokens
//! alike, so that both give the same bits. Otherwise it remembers the keys and values of all heads.

use super::{Layered, MultiLinear, Named, Norm, Rope};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{AttentionMask, AttentionOptions};
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
    /// The name of the projection back.
    pub output: &'static str,
    /// Added to what norms divide by.
    pub eps: f64,
}

/// To queries.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
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

/// From the row to the heads.
#[derive(Module, Clone)]
pub enum Expand {
    /// Queries go to the row's space, and what is attended to comes from there.
    Absorbed {
        /// Queries to the space of the row.
        embed_q: MultiLinear,
        /// Rows to values.
        unembed_out: MultiLinear,
    },
    /// To keys and values of all heads.
    All {
        /// To both, head by head.
        kv_b_proj: Linear,
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
    /// From the row to the heads.
    #[flatten]
    pub expand: Expand,
    /// Back.
    #[flatten]
    pub output: Named<Linear>,
    #[plain]
    sizes: LatentSizes,
    #[plain]
    rope: Option<Rope>,
}

impl Latent {
    /// From a place in the names, absorbed or not. Without `rope` there are no positions.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, s: LatentSizes, rope: Option<Rope>, absorbed: bool) -> Result<Latent> {
        let head = s.plain + s.turned;
        let queries = match s.queries {
            None => Queries::Straight { q_proj: at.linear("q_proj", s.width, s.heads * head, false)? },
            Some(short) => Queries::Short {
                q_a_proj: at.linear("q_a_proj", s.width, short, s.bias)?,
                q_a_layernorm: Norm::rms(at, "q_a_layernorm", short, s.eps)?,
                q_b_proj: at.linear("q_b_proj", short, s.heads * head, false)?,
            },
        };
        let expand = match absorbed {
            true => Expand::Absorbed {
                embed_q: at.multi_linear("embed_q", s.heads, s.plain, s.latent)?,
                unembed_out: at.multi_linear("unembed_out", s.heads, s.latent, s.value)?,
            },
            false => Expand::All { kv_b_proj: at.linear("kv_b_proj", s.latent, s.heads * (s.plain + s.value), false)? },
        };
        Ok(Latent {
            queries,
            expand,
            kv_a_proj_with_mqa: at.linear("kv_a_proj_with_mqa", s.width, s.latent + s.turned, s.bias)?,
            kv_a_layernorm: Norm::rms(at, "kv_a_layernorm", s.latent, s.eps)?,
            output: Named(s.output, at.linear(s.output, s.heads * s.value, s.width, s.bias)?),
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
        let heads = |x: &Array| ops::reshape(x, &[rows, s.heads as i64, -1]);
        let (q, turned) = cut(&heads(&q)?, s.plain)?;
        let (row, key) = cut(&self.kv_a_proj_with_mqa.forward(x)?, s.latent)?;
        let row = self.kv_a_layernorm.forward(&row)?;
        let (q, k, v) = match &self.expand {
            Expand::Absorbed { embed_q, .. } => {
                (swap(&embed_q.forward(&swap(&q)?)?)?, ops::expand_dims(&row, 1)?, None)
            }
            Expand::All { kv_b_proj } => {
                let (k, v) = cut(&heads(&kv_b_proj.forward(&row)?)?, s.plain)?;
                (q, k, Some(v))
            }
        };
        // (rows, heads, width), with one head of keys or as many as of queries.
        let key = ops::expand_dims(&key, 1)?;
        let inputs: Vec<&Array> = [&q, &turned, &k, &key].into_iter().chain(&v).collect();
        let y = batch.each(layer, &inputs, |rows, slot| {
            let [q, turned, k, key] = [0, 1, 2, 3].map(|i| ops::expand_dims(&swap(&rows[i])?, 0));
            let turn = |x: Array| self.rope.as_ref().map_or(Ok(x.clone()), |rope| rope.forward(&x, slot.at));
            let q = ops::concatenate(&[q?, turn(turned?)?], -1)?;
            let (k, key) = (k?, turn(key?)?);
            let key = ops::broadcast_to(&key, &[1, k.dim(1), k.dim(2), s.turned])?;
            let options =
                AttentionOptions { scale: s.scale, mask: AttentionMask::Causal, ..AttentionOptions::default() };
            let k = ops::concatenate(&[k, key], -1)?;
            let y = match rows.get(4) {
                Some(v) => slot.attend(&q, &k, &ops::expand_dims(&swap(v)?, 0)?, &options)?,
                None => slot.attend_latent(&q, &k, s.latent, &options)?,
            };
            swap(&ops::squeeze(&y, 0)?)
        })?;
        let y = match &self.expand {
            Expand::Absorbed { unembed_out, .. } => swap(&unembed_out.forward(&swap(&y)?)?)?,
            Expand::All { .. } => y,
        };
        self.output.1.forward(&ops::reshape(&y, &[rows, -1])?)
    }
}

impl Layered for Latent {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        Latent::forward(self, x, layer, batch)
    }
}

/// (rows, heads, width) to (heads, rows, width), or the other way.
fn swap(x: &Array) -> Result<Array> {
    ops::transpose(x, Some(&[1, 0, 2]))
}

/// The first `n` features, and the rest.
fn cut(x: &Array, n: usize) -> Result<(Array, Array)> {
    let mut parts = ops::split(x, vec![n as i64], -1)?.into_iter();
    match (parts.next(), parts.next()) {
        (Some(a), Some(b)) => Ok((a, b)),
        _ => Err(lapis::Error::shape("[attention] two parts")),
    }
}
