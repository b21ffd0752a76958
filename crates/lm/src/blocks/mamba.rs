//! Mamba 2: a convolution, then a linear recurrence whose matrix fades by one number a head.

use super::{DepthwiseConv, Layered};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::{gated_delta_update, rms_norm};
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::{silu, softplus};
use lapis_nn::{Layer, Linear, Module, Param, RMSNorm};

/// Sizes and rules of a Mamba 2 layer.
#[derive(Clone, Copy, Debug)]
pub struct MambaSizes {
    /// Of rows.
    pub width: usize,
    /// Heads, and their width.
    pub heads: [usize; 2],
    /// Columns of a head's matrix.
    pub state: usize,
    /// Groups of heads that read and write the same columns.
    pub groups: usize,
    /// Rows that the convolution sees.
    pub kernel: usize,
    /// Bounds of the step.
    pub limit: [f64; 2],
    /// Biases of the projection in, of the convolution, and of the projection back.
    pub bias: [bool; 3],
    /// Features that the norm takes together; 0 where there is no norm.
    pub together: usize,
    /// The norm stands before the gate.
    pub early: bool,
    /// Added to what the norm divides by.
    pub eps: f64,
}

/// A Mamba 2 layer.
#[derive(Module, Clone)]
pub struct Mamba2 {
    /// Of what the recurrence takes.
    pub conv1d: DepthwiseConv,
    /// To gates, what the recurrence takes, and steps.
    pub in_proj: Linear,
    /// (heads).
    pub dt_bias: Param,
    /// Logarithm of how fast the matrix fades: (heads).
    #[name = "A_log"]
    pub a_log: Param,
    /// How much of a row goes past the recurrence: (heads).
    #[name = "D"]
    pub d: Param,
    /// Of the result, gated or not yet.
    pub norm: Option<RMSNorm>,
    /// Back.
    pub out_proj: Linear,
    #[plain]
    sizes: MambaSizes,
}

/// The delta rule writes `beta (v - S k)`. With values this much larger and beta this much smaller, `S k` is lost
/// far below the last bit of `v`, and the rule is the plain write of Mamba 2. A power of two: nothing is rounded.
pub(super) const AWAY: f64 = (1u64 << 48) as f64;

impl Mamba2 {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`]; heads that do not divide into groups.
    pub fn load(at: &At, s: MambaSizes) -> Result<Mamba2> {
        let inner = s.heads[0] * s.heads[1];
        let together = s.together == 0 || inner.is_multiple_of(s.together);
        if s.groups == 0 || !s.heads[0].is_multiple_of(s.groups) || !together {
            let text = format!("{} heads do not divide into n_groups, {}", s.heads[0], s.groups);
            return Err(Error::value(format!("[load] config.json: {text}")));
        }
        let channels = inner + 2 * s.groups * s.state;
        Ok(Mamba2 {
            conv1d: DepthwiseConv::load(&at.at("conv1d"), channels, s.kernel, s.bias[1])?,
            in_proj: at.linear("in_proj", s.width, inner + channels + s.heads[0], s.bias[0])?,
            dt_bias: at.param("dt_bias", &[s.heads[0]])?,
            a_log: at.param("A_log", &[s.heads[0]])?,
            d: at.param("D", &[s.heads[0]])?,
            norm: (s.together > 0).then(|| at.rms_norm("norm", inner, s.eps)).transpose()?,
            out_proj: at.linear("out_proj", inner, s.width, s.bias[2])?,
            sizes: s,
        })
    }

    /// Rows to rows.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let s = &self.sizes;
        let [heads, width] = s.heads;
        let (inner, wide) = ((heads * width) as i64, |x: &Array| ops::astype(x, Dtype::Float32));
        let channels = inner + (2 * s.groups * s.state) as i64;
        let parts = ops::split(&self.in_proj.forward(x)?, vec![inner, inner + channels], -1)?;
        let [gate, taken, dt] = &parts[..] else { return Err(Error::shape("[mamba] three parts")) };
        let dt = softplus(&ops::add(wide(dt)?, self.dt_bias.value())?)?;
        let dt = ops::clip(&dt, Some(&s.limit[0]), Some(&s.limit[1]))?;
        let fade = ops::multiply(&dt, ops::negative(&ops::exp(&wide(&self.a_log)?)?)?)?;
        let y = batch.each(layer, &[taken, &dt, &ops::exp(&fade)?], |rows, slot| {
            let kept = slot.state();
            let (taken, tail) = self.conv1d.forward(&rows[0], kept.and_then(|s| s.first()))?;
            let borders = vec![inner, inner + (s.groups * s.state) as i64];
            let parts = ops::split(&wide(&silu(&taken)?)?, borders, -1)?;
            let [x, b, c] = &parts[..] else { return Err(Error::shape("[mamba] three parts")) };
            let split = |x: &Array, n: usize| ops::reshape(x, &[1, x.dim(0) as i64, n as i64, -1]);
            let (x, b, c) = (split(x, heads)?, split(b, s.groups)?, split(c, s.groups)?);
            let [dt, gamma] = [&rows[1], &rows[2]].map(|x| ops::expand_dims(x, 0));
            let v = ops::multiply(&x, ops::expand_dims(&ops::multiply(&dt?, AWAY)?, -1)?)?;
            let beta = ops::full(&[1, x.dim(1), heads], 1.0 / AWAY, Some(Dtype::Float32))?;
            let [y, state] = gated_delta_update(&c, &b, &v, &gamma?, &beta, kept.and_then(|s| s.get(1)), None)?;
            slot.set_state(vec![tail, state]);
            let past = ops::multiply(&x, ops::expand_dims(&wide(&self.d)?, -1)?)?;
            ops::reshape(&ops::add(&y, past)?, &[-1, inner])
        })?;
        let (y, gate) = (ops::astype(&y, gate.dtype())?, silu(gate)?);
        let y = match &self.norm {
            None => ops::multiply(gate, y)?,
            Some(_) if s.early => ops::multiply(gate, self.normed(&y)?)?,
            Some(_) => self.normed(&ops::multiply(gate, y)?)?,
        };
        self.out_proj.forward(&y)
    }

    fn normed(&self, y: &Array) -> Result<Array> {
        let Some(norm) = &self.norm else { return Ok(y.clone()) };
        let groups = rms_norm(&ops::reshape(y, &[y.dim(0) as i64, -1, self.sizes.together as i64])?, None, norm.eps)?;
        ops::multiply(ops::reshape(&groups, &[y.dim(0) as i64, -1])?, norm.weight.value())
    }
}

impl Layered for Mamba2 {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        Mamba2::forward(self, x, layer, batch)
    }
}
