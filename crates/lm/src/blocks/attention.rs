//! Attention over what a sequence remembers.

use super::{Norm, Rope};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{AttentionMask, AttentionOptions, scaled_dot_product_attention};
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Linear, Module, Param};

/// Sizes and rules of the heads of a layer.
#[derive(Clone, Debug)]
pub struct Heads {
    /// Query heads.
    pub count: usize,
    /// Heads of keys and values.
    pub keys: usize,
    /// Width of a head.
    pub width: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Positions, if they are turned into angles.
    pub rope: Option<Rope>,
    /// How many of the latest keys a query sees.
    pub window: Option<usize>,
    /// Soft cap of the scores.
    pub softcap: Option<f64>,
}

impl Heads {
    /// Plain heads with scores over the root of their width.
    pub fn new(count: usize, keys: usize, width: usize, rope: Option<Rope>) -> Heads {
        Heads { count, keys, width, scale: (width as f64).powf(-0.5), rope, window: None, softcap: None }
    }

    /// Rows of queries, keys and values, `(rows, heads * width)` or `(rows, heads, width)`, to rows of
    /// `(heads * value width)`.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn attend(
        &self,
        [q, k, v]: [&Array; 3],
        sinks: Option<&Array>,
        layer: usize,
        batch: &mut Batch,
    ) -> Result<Array> {
        batch.each(layer, &[q, k, v], |rows, slot| {
            let split = |x: &Array, heads: usize| -> Result<Array> {
                let x = ops::reshape(x, &[1, x.dim(0) as i64, heads as i64, -1])?;
                ops::transpose(&x, Some(&[0, 2, 1, 3]))
            };
            let (mut q, mut k) = (split(&rows[0], self.count)?, split(&rows[1], self.keys)?);
            let v = split(&rows[2], self.keys)?;
            if let Some(rope) = &self.rope {
                (q, k) = (rope.forward(&q, slot.at)?, rope.forward(&k, slot.at)?);
            }
            let (k, v) = slot.remember(&k, &v, self.window)?;
            let options = AttentionOptions {
                scale: self.scale,
                mask: AttentionMask::Causal,
                window: self.window,
                softcap: self.softcap,
                sinks,
            };
            let y = scaled_dot_product_attention(&q, &k, &v, &options)?;
            ops::reshape(&ops::transpose(&y, Some(&[0, 2, 1, 3]))?, &[y.dim(2) as i64, -1])
        })
    }
}

/// Projections to queries, keys and values and back, with norms of queries and keys where a model has them.
#[derive(Module, Clone)]
pub struct Attention {
    /// To queries.
    pub q_proj: Linear,
    /// To keys.
    pub k_proj: Linear,
    /// To values.
    pub v_proj: Linear,
    /// Back.
    pub o_proj: Linear,
    /// Of queries: of each head, or of the whole projection, as its width says.
    pub q_norm: Option<Norm>,
    /// Of keys.
    pub k_norm: Option<Norm>,
    /// One more logit a head.
    pub sinks: Option<Param>,
    #[plain]
    heads: Heads,
    #[plain]
    norm_whole: bool,
}

impl Attention {
    /// Projections from a place in the names; `bias` says whether those to queries, keys and values, and the one back,
    /// have biases.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, heads: Heads, bias: [bool; 2]) -> Result<Attention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        Ok(Attention {
            q_proj: at.linear("q_proj", width, q, bias[0])?,
            k_proj: at.linear("k_proj", width, k, bias[0])?,
            v_proj: at.linear("v_proj", width, k, bias[0])?,
            o_proj: at.linear("o_proj", q, width, bias[1])?,
            q_norm: None,
            k_norm: None,
            sinks: None,
            heads,
            norm_whole: false,
        })
    }

    /// With norms of each head of queries and keys.
    pub fn with_head_norms(self, q: Norm, k: Norm) -> Attention {
        Attention { q_norm: Some(q), k_norm: Some(k), ..self }
    }

    /// With norms of all heads of queries, and of keys, at once.
    pub fn with_whole_norms(self, q: Norm, k: Norm) -> Attention {
        Attention { norm_whole: true, ..self.with_head_norms(q, k) }
    }

    /// With one more logit for each head.
    pub fn with_sinks(self, sinks: Param) -> Attention {
        Attention { sinks: Some(sinks), ..self }
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let norm = |x: Array, norm: &Option<Norm>| match norm {
            None => Ok(x),
            Some(norm) if self.norm_whole => norm.forward(&x),
            Some(norm) => norm.forward(&ops::reshape(&x, &[x.dim(0) as i64, -1, self.heads.width as i64])?),
        };
        let q = norm(self.q_proj.forward(x)?, &self.q_norm)?;
        let k = norm(self.k_proj.forward(x)?, &self.k_norm)?;
        let v = self.v_proj.forward(x)?;
        self.o_proj.forward(&self.heads.attend([&q, &k, &v], self.sinks.as_deref(), layer, batch)?)
    }
}
