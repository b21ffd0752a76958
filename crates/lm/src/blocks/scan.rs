//! Mamba: a convolution, then a linear recurrence of each channel whose numbers fade each at a speed of its own.

use super::mamba::AWAY;
use super::{DepthwiseConv, Layered, Norm};
use crate::batch::Batch;
use crate::weights::At;
use lapis::ops::fast::gated_delta_update;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::activations::{silu, softplus};
use lapis_nn::{Layer, Linear, Module, Param};

/// Sizes of a Mamba layer.
#[derive(Clone, Copy, Debug)]
pub struct ScanSizes {
    /// Of rows.
    pub width: usize,
    /// Channels of the recurrence.
    pub inner: usize,
    /// Numbers of each.
    pub state: usize,
    /// Of the short row that steps are made of.
    pub rank: usize,
    /// Rows that the convolution sees.
    pub kernel: usize,
    /// Biases of the projections and of the convolution.
    pub bias: [bool; 2],
}

/// A Mamba layer: `h = exp(dt A) h + dt x B`, `y = h C + D x`, channel by channel.
#[derive(Module, Clone)]
pub struct Scan {
    /// Of what the recurrence takes.
    pub conv1d: DepthwiseConv,
    /// To what the recurrence takes, and gates.
    pub in_proj: Linear,
    /// To short rows of steps, to what is written and what is read.
    pub x_proj: Linear,
    /// To steps.
    pub dt_proj: Linear,
    /// Logarithm of how fast numbers fade: (channels, state).
    #[name = "A_log"]
    pub a_log: Param,
    /// How much of a row goes past the recurrence: (channels).
    #[name = "D"]
    pub d: Param,
    /// Of short rows of steps.
    pub dt_layernorm: Option<Norm>,
    /// Of what is written.
    pub b_layernorm: Option<Norm>,
    /// Of what is read.
    pub c_layernorm: Option<Norm>,
    /// Back.
    pub out_proj: Linear,
    #[plain]
    sizes: ScanSizes,
}

/// Rows whose speeds are computed together: (rows, channels, state) is large.
const TOGETHER: usize = 64;

impl Scan {
    /// From a place in the names; `norm` makes the norm of this name and width, if there is one.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, s: ScanSizes, norm: impl Fn(&At, &str, usize) -> Result<Option<Norm>>) -> Result<Scan> {
        let [projections, conv] = s.bias;
        Ok(Scan {
            conv1d: DepthwiseConv::load(&at.at("conv1d"), s.inner, s.kernel, conv)?,
            in_proj: at.linear("in_proj", s.width, 2 * s.inner, projections)?,
            x_proj: at.linear("x_proj", s.inner, s.rank + 2 * s.state, false)?,
            dt_proj: at.linear("dt_proj", s.rank, s.inner, true)?,
            a_log: at.param("A_log", &[s.inner, s.state])?,
            d: at.param("D", &[s.inner])?,
            dt_layernorm: norm(at, "dt_layernorm", s.rank)?,
            b_layernorm: norm(at, "b_layernorm", s.state)?,
            c_layernorm: norm(at, "c_layernorm", s.state)?,
            out_proj: at.linear("out_proj", s.inner, s.width, projections)?,
            sizes: s,
        })
    }

    /// Rows (rows, channels) and their steps, what is written and read (rows, state), all float32, after `state`
    /// (channels, state): what is read of them, and the next state.
    fn recur(&self, [x, dt, b, c]: [&Array; 4], state: Option<&Array>) -> Result<(Array, Array)> {
        let (inner, n) = (self.sizes.inner as i64, self.sizes.state as i64);
        let speed = ops::negative(&ops::exp(&ops::astype(&self.a_log, Dtype::Float32)?)?)?;
        let mut state = state.map(|s| ops::reshape(s, &[1, inner, 1, n])).transpose()?;
        let (mut out, mut at) = (Vec::new(), 0);
        while at < x.dim(0) {
            let next = (at + TOGETHER).min(x.dim(0));
            let part = |a: &Array| ops::slice(a, &[(Some(at as i64), Some(next as i64), 1)]);
            let (x, dt, rows) = (part(x)?, part(dt)?, (next - at) as i64);
            let gamma = ops::exp(&ops::multiply(ops::expand_dims(&dt, -1)?, &speed)?)?;
            // Each channel is a head whose values are one number wide: see `AWAY`.
            let v = ops::multiply(&ops::multiply(&dt, &x)?, AWAY)?;
            let v = ops::reshape(&v, &[1, rows, inner, 1])?;
            let beta = ops::full(&[1, next - at, self.sizes.inner], 1.0 / AWAY, Some(Dtype::Float32))?;
            let all = |a: &Array| ops::reshape(&part(a)?, &[1, rows, 1, n]);
            let gamma = ops::expand_dims(&gamma, 0)?;
            let [y, after] = gated_delta_update(&all(c)?, &all(b)?, &v, &gamma, &beta, state.as_ref(), None)?;
            out.push(ops::reshape(&y, &[rows, inner])?);
            state = Some(after);
            at = next;
        }
        let state = state.ok_or_else(|| Error::shape("[mamba] no rows"))?;
        let y = if out.len() == 1 { out.swap_remove(0) } else { ops::concatenate(&out, 0)? };
        Ok((y, ops::reshape(&state, &[inner, n])?))
    }
}

impl Layered for Scan {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let (s, wide) = (&self.sizes, |x: &Array| ops::astype(x, Dtype::Float32));
        let parts = ops::split(&self.in_proj.forward(x)?, 2, -1)?;
        let [x, gate] = &parts[..] else { return Err(Error::shape("[mamba] two parts")) };
        let x = batch.each(layer, &[x], |rows, slot| {
            let kept = slot.state();
            let (y, tail) = self.conv1d.forward(&rows[0], kept.and_then(<[Array]>::first))?;
            let state = kept.and_then(|s| s.get(1)).cloned();
            slot.set_state([tail].into_iter().chain(state).collect());
            Ok(y)
        })?;
        let x = silu(&x)?;
        let parts = ops::split(&self.x_proj.forward(&x)?, vec![s.rank as i64, (s.rank + s.state) as i64], -1)?;
        let [dt, b, c] = &parts[..] else { return Err(Error::shape("[mamba] three parts")) };
        let normed = |x: &Array, norm: &Option<Norm>| norm.as_ref().map_or(Ok(x.clone()), |norm| norm.forward(x));
        let dt = self.dt_proj.forward(&normed(dt, &self.dt_layernorm)?)?;
        let (dt, b, c) = (softplus(&wide(&dt)?)?, normed(b, &self.b_layernorm)?, normed(c, &self.c_layernorm)?);
        let x = wide(&x)?;
        let y = batch.each(layer, &[&x, &dt, &wide(&b)?, &wide(&c)?], |rows, slot| {
            let kept = slot.state().unwrap_or_default();
            let (y, state) = self.recur([&rows[0], &rows[1], &rows[2], &rows[3]], kept.get(1))?;
            slot.set_state(kept.iter().take(1).cloned().chain([state]).collect());
            Ok(y)
        })?;
        let y = ops::add(y, ops::multiply(&x, wide(&self.d)?)?)?;
        self.out_proj.forward(&ops::multiply(silu(gate)?, ops::astype(&y, gate.dtype())?)?)
    }
}
