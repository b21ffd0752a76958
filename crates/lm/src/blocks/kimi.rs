//! Kimi's delta attention: a gated delta net whose matrix fades column by column, behind three convolutions.

use super::{DepthwiseConv, Layered, Norm};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{gated_delta_update, rms_norm};
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::{silu, softplus};
use lapis_nn::{Layer, Linear, Module, Param};

/// Sizes of Kimi's delta attention.
#[derive(Clone, Copy, Debug)]
pub struct KimiSizes {
    /// Of rows.
    pub width: usize,
    /// Heads, and their width.
    pub heads: [usize; 2],
    /// Rows that the convolutions see.
    pub kernel: usize,
    /// Added to what the norm divides by.
    pub eps: f64,
}

/// A convolution under a name of its own.
#[derive(Module, Clone)]
pub struct InnerConv {
    /// The convolution.
    pub conv: DepthwiseConv,
}

/// Kimi's delta attention.
#[derive(Module, Clone)]
pub struct KimiDelta {
    /// To queries.
    pub q_proj: Linear,
    /// To keys.
    pub k_proj: Linear,
    /// To values.
    pub v_proj: Linear,
    /// Of queries.
    pub q_conv: InnerConv,
    /// Of keys.
    pub k_conv: InnerConv,
    /// Of values.
    pub v_conv: InnerConv,
    /// To a short row of how fast the matrix fades.
    pub f_a_proj: Linear,
    /// And to each column of each head.
    pub f_b_proj: Linear,
    /// How much of a row is written.
    pub b_proj: Linear,
    /// To a short row of gates.
    pub g_a_proj: Linear,
    /// And to gates.
    pub g_b_proj: Linear,
    /// Logarithm of how fast the matrix fades: (1, 1, heads, 1).
    #[name = "A_log"]
    pub a_log: Param,
    /// (heads * width).
    pub dt_bias: Param,
    /// Of each head of the result, before its gate.
    pub o_norm: Norm,
    /// Back.
    pub o_proj: Linear,
    #[plain]
    sizes: KimiSizes,
}

impl KimiDelta {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, s: KimiSizes) -> Result<KimiDelta> {
        let [heads, head] = s.heads;
        let inner = heads.checked_mul(head).ok_or_else(|| Error::value("[load] linear_attn_config: too large"))?;
        let conv = |name: &str| {
            let at = at.at(name).at("conv");
            Ok::<_, Error>(InnerConv { conv: DepthwiseConv::load(&at, inner, s.kernel, false)? })
        };
        let linear = |name: &str, i: usize, o: usize| at.linear(name, i, o, false);
        Ok(KimiDelta {
            q_proj: linear("q_proj", s.width, inner)?,
            k_proj: linear("k_proj", s.width, inner)?,
            v_proj: linear("v_proj", s.width, inner)?,
            q_conv: conv("q_conv")?,
            k_conv: conv("k_conv")?,
            v_conv: conv("v_conv")?,
            f_a_proj: linear("f_a_proj", s.width, head)?,
            f_b_proj: linear("f_b_proj", head, inner)?,
            b_proj: linear("b_proj", s.width, heads)?,
            g_a_proj: linear("g_a_proj", s.width, head)?,
            g_b_proj: linear("g_b_proj", head, inner)?,
            a_log: at.param("A_log", &[1, 1, heads, 1])?,
            dt_bias: at.param("dt_bias", &[inner])?,
            o_norm: Norm::rms(at, "o_norm", head, s.eps)?,
            o_proj: linear("o_proj", inner, s.width)?,
            sizes: s,
        })
    }
}

impl Layered for KimiDelta {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let ([heads, head], n) = (self.sizes.heads, x.dim(0) as i64);
        let wide = |x: &Array| ops::astype(x, Dtype::Float32);
        let each = |x: &Array| ops::reshape(x, &[1, x.dim(0) as i64, heads as i64, head as i64]);
        let (q, k, v) = (self.q_proj.forward(x)?, self.k_proj.forward(x)?, self.v_proj.forward(x)?);
        let fade = self.f_b_proj.forward(&self.f_a_proj.forward(x)?)?;
        let fade = each(&softplus(&ops::add(wide(&fade)?, wide(&self.dt_bias)?)?)?)?;
        let speed = ops::negative(&ops::exp(&wide(&self.a_log)?)?)?;
        let gamma = ops::squeeze(&ops::exp(&ops::multiply(speed, fade)?)?, 0)?;
        let beta = wide(&ops::sigmoid(&self.b_proj.forward(x)?)?)?;
        let y = batch.each(layer, &[&q, &k, &v, &gamma, &beta], |rows, slot| {
            let kept = slot.state();
            let tail = |i: usize| kept.and_then(|s| s.get(i));
            let (q, q_tail) = self.q_conv.conv.forward(&rows[0], tail(0))?;
            let (k, k_tail) = self.k_conv.conv.forward(&rows[1], tail(1))?;
            let (v, v_tail) = self.v_conv.conv.forward(&rows[2], tail(2))?;
            // Of length one; the epsilon is that of the sum of squares.
            let root = (head as f64).powf(-0.5);
            let unit = |x: &Array| rms_norm(&each(&silu(x)?)?, None, 1e-6 * root * root);
            let (q, k) = (ops::multiply(&unit(&q)?, root * root)?, ops::multiply(&unit(&k)?, root)?);
            let (gamma, beta) = (ops::expand_dims(&rows[3], 0)?, ops::expand_dims(&rows[4], 0)?);
            let [y, state] = gated_delta_update(&q, &k, &each(&silu(&v)?)?, &gamma, &beta, tail(3), None)?;
            slot.set_state(vec![q_tail, k_tail, v_tail, state]);
            ops::squeeze(&y, 0)
        })?;
        let gate = ops::reshape(&self.g_b_proj.forward(&self.g_a_proj.forward(x)?)?, &[n, heads as i64, head as i64])?;
        let y = ops::multiply(self.o_norm.forward(&y)?, ops::sigmoid(&gate)?)?;
        self.o_proj.forward(&ops::reshape(&y, &[n, -1])?)
    }
}
