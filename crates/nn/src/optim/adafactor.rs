//! Adafactor (Shazeer and Stern 2018): the second moment of a matrix as row and column averages.

use super::Rate;
use super::descent::{like, options, titled};
use super::rule::{At, Base, Rule, Shapes, Slots, demand};
use lapis::{Array, Result, ops};

/// Adafactor. Parameters of two and more axes keep averages of the squared gradient over the last axis and over the
/// one before; others keep the whole average. The update is clipped by its root mean square, then scaled by the rate
/// (relative to the step unless told) and by the size of the parameter.
pub struct Adafactor {
    base: Base,
    eps: [f64; 2],
    clip_threshold: f64,
    decay_rate: f64,
    beta_1: Option<f64>,
    weight_decay: f64,
    scale_parameter: bool,
    relative_step: bool,
    warmup_init: bool,
}

impl Adafactor {
    /// With a rate that follows from the step: `min(1e-2, 1 / sqrt(t))`.
    pub fn new() -> Adafactor {
        Adafactor::with(None)
    }

    /// With a learning rate, which counts once [`relative_step`](Adafactor::relative_step) is off.
    pub fn with_learning_rate(learning_rate: impl Into<Rate>) -> Adafactor {
        Adafactor::with(Some(learning_rate.into()))
    }

    fn with(rate: Option<Rate>) -> Adafactor {
        Adafactor {
            base: Base::new(rate),
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta_1: None,
            weight_decay: 0.0,
            scale_parameter: true,
            relative_step: true,
            warmup_init: false,
        }
    }

    options! {
        /// Added to the squared gradient; least scale of a parameter. Default 1e-30, 1e-3.
        eps: [f64; 2],
        /// Root mean square above which updates are scaled down; default 1.
        clip_threshold: f64,
        /// The averages forget `t^decay_rate` at step t; default -0.8.
        decay_rate: f64,
        /// Weight of the past in an average of the updates, if there shall be one; default none.
        beta_1: Option<f64>,
        /// Default 0.
        weight_decay: f64,
        /// Whether the rate is multiplied by the root mean square of the parameter; default true.
        scale_parameter: bool,
        /// Whether the rate follows from the step; default true.
        relative_step: bool,
        /// Whether the relative rate begins at `1e-6 t`; default false.
        warmup_init: bool,
    }

    /// The learning rate before it is scaled.
    fn rate(&self, at: &At) -> Result<Array> {
        if !self.relative_step {
            return at.rate().cloned();
        }
        let root = at.step.rsqrt();
        Ok(if self.warmup_init { (1e-6 * at.step).minimum(root) } else { root.minimum(1e-2) })
    }
}

impl Default for Adafactor {
    fn default() -> Adafactor {
        Adafactor::new()
    }
}

/// The root of the mean square, 0-d.
fn rms(a: &Array) -> Result<Array> {
    Ok(ops::mean(&a.square(), (), false)?.sqrt())
}

impl Rule for Adafactor {
    titled!("Adafactor");
    fn check(&self) -> Result<()> {
        let rated = self.relative_step || self.base.has_rate();
        demand(rated, "Adafactor", "without relative_step a learning rate is needed", ())?;
        demand(self.clip_threshold > 0.0, "Adafactor", "clip_threshold must be above 0", self.clip_threshold)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        let mut slots = match shape {
            [batch @ .., rows, cols] => {
                vec![("exp_avg_sq_row", [batch, &[*rows]].concat()), ("exp_avg_sq_col", [batch, &[*cols]].concat())]
            }
            _ => like(shape, &["exp_avg_sq"]),
        };
        slots.extend(self.beta_1.map(|_| ("exp_avg", shape.to_vec())));
        slots
    }
    fn shared(&self, step: &Array) -> Result<Vec<Array>> {
        Ok(vec![ops::power(step, self.decay_rate)?])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let size = rms(w)?;
        let mut rate = self.rate(at)?.astype(size.dtype());
        if self.scale_parameter {
            rate = size.maximum(self.eps[1]) * rate;
        }
        let b2 = 1.0 - at.shared[0].astype(size.dtype());
        let square = g.square() + self.eps[0];
        let mut update = if g.ndim() >= 2 {
            for (slot, axis) in [("exp_avg_sq_row", -1), ("exp_avg_sq_col", -2)] {
                state[slot] = &b2 * &state[slot] + (1.0 - &b2) * ops::mean(&square, axis, false)?;
            }
            let (row, col) = (&state["exp_avg_sq_row"], &state["exp_avg_sq_col"]);
            let row = (row / ops::mean(row, -1, true)?).rsqrt();
            ops::expand_dims(&row, -1)? * ops::expand_dims(&col.rsqrt(), -2)? * g
        } else {
            state["exp_avg_sq"] = &b2 * &state["exp_avg_sq"] + (1.0 - &b2) * square;
            state["exp_avg_sq"].rsqrt() * g
        };
        update = &update / (rms(&update)? / self.clip_threshold).maximum(1.0);
        update = &rate * update;
        if let Some(b1) = self.beta_1 {
            state["exp_avg"] = b1 * &state["exp_avg"] + (1.0 - b1) * update;
            update = state["exp_avg"].clone();
        }
        let w = if self.weight_decay != 0.0 { w + w * (-self.weight_decay * rate) } else { w.clone() };
        Ok(w - update)
    }
}
