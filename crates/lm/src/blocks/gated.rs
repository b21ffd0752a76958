//! Attention whose result is gated, channel by channel, by what its projection to queries says beside them.

use super::{Heads, Norm};
use crate::batch::Batch;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// Projections to queries and gates, keys and values, and back.
#[derive(Module, Clone)]
pub struct GatedAttention {
    /// To queries and gates, side by side in each head.
    pub q_proj: Linear,
    /// To keys.
    pub k_proj: Linear,
    /// To values.
    pub v_proj: Linear,
    /// Back.
    pub o_proj: Linear,
    /// Of each head of queries.
    pub q_norm: Norm,
    /// Of each head of keys.
    pub k_norm: Norm,
    #[plain]
    heads: Heads,
}

impl GatedAttention {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, heads: Heads, bias: bool, eps: f64) -> Result<GatedAttention> {
        let (q, k) = (heads.count * heads.width, heads.keys * heads.width);
        Ok(GatedAttention {
            q_proj: at.linear("q_proj", width, 2 * q, bias)?,
            k_proj: at.linear("k_proj", width, k, bias)?,
            v_proj: at.linear("v_proj", width, k, bias)?,
            o_proj: at.linear("o_proj", q, width, bias)?,
            q_norm: Norm::rms(at, "q_norm", heads.width, eps)?,
            k_norm: Norm::rms(at, "k_norm", heads.width, eps)?,
            heads,
        })
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Widths that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let rows = x.dim(0) as i64;
        let each = |x: &Array, heads: usize| ops::reshape(x, &[rows, heads as i64, -1]);
        let both = ops::split(&each(&self.q_proj.forward(x)?, self.heads.count)?, 2, -1)?;
        let [q, gate] = &both[..] else { return Err(Error::shape("[attention] queries and gates")) };
        let q = self.q_norm.forward(q)?;
        let k = self.k_norm.forward(&each(&self.k_proj.forward(x)?, self.heads.keys)?)?;
        let y = self.heads.attend([&q, &k, &self.v_proj.forward(x)?], None, layer, batch)?;
        let gate = ops::sigmoid(&ops::reshape(gate, &[rows, -1])?)?;
        self.o_proj.forward(&ops::multiply(&y, gate)?)
    }
}
