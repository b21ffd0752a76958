//! Adam, AdamW, Adamax (Kingma and Ba 2015; Loshchilov and Hutter 2019).
//!
//! A step is three fused passes, for m, v and w: 10 elements read or written for each parameter.

use super::Rate;
use super::descent::{like, options, titled};
use super::rule::{At, Base, Rule, Shapes, Slots, demand};
use lapis::{Array, Result, ops};

/// Options of the family.
#[derive(Clone, Copy)]
struct Moments {
    betas: [f64; 2],
    eps: f64,
    bias_correction: bool,
}

impl Moments {
    const DEFAULT: Moments = Moments { betas: [0.9, 0.999], eps: 1e-8, bias_correction: false };

    fn check(&self, title: &str) -> Result<()> {
        demand(self.betas.iter().all(|b| (0.0..1.0).contains(b)), title, "betas must lie in [0, 1)", self.betas)?;
        demand(self.eps >= 0.0, title, "eps must be at least 0", self.eps)
    }

    /// `1 - b1^t` and `1 / sqrt(1 - b2^t)`.
    fn shared(&self, step: &Array) -> Result<Vec<Array>> {
        if !self.bias_correction {
            return Ok(Vec::new());
        }
        let [b1, b2] = self.betas;
        Ok(vec![1.0 - ops::power(b1, step)?, (1.0 - ops::power(b2, step)?).rsqrt()])
    }

    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let (lr, [b1, b2]) = (at.lr(g)?, self.betas);
        state["m"] = b1 * &state["m"] + (1.0 - b1) * g;
        state["v"] = b2 * &state["v"] + (1.0 - b2) * g.square();
        let (m, root) = (&state["m"], state["v"].sqrt());
        Ok(match at.shared {
            [c1, c2] => {
                let c1 = (lr / c1).astype(g.dtype());
                w - c1 * m / (root * c2.astype(g.dtype()) + self.eps)
            }
            _ => w - lr * m / (root + self.eps),
        })
    }
}

macro_rules! moments {
    () => {
        /// Weights of the past in the averages of the gradient and of its square; default 0.9, 0.999.
        #[must_use]
        pub fn betas(mut self, betas: [f64; 2]) -> Self {
            self.moments.betas = betas;
            self
        }
        /// Default 1e-8.
        #[must_use]
        pub fn eps(mut self, eps: f64) -> Self {
            self.moments.eps = eps;
            self
        }
    };
    (corrected) => {
        moments!();
        /// Whether the averages are freed of their start at zero; default false, as in MLX.
        #[must_use]
        pub fn bias_correction(mut self, bias_correction: bool) -> Self {
            self.moments.bias_correction = bias_correction;
            self
        }
    };
}

/// Adam: `m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w -= lr m / (sqrt(v) + eps)`; with bias correction
/// `w -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)` at step t.
pub struct Adam {
    base: Base,
    moments: Moments,
}

impl Adam {
    /// With betas 0.9 and 0.999, eps 1e-8, no bias correction.
    pub fn new(learning_rate: impl Into<Rate>) -> Adam {
        Adam { base: Base::new(Some(learning_rate.into())), moments: Moments::DEFAULT }
    }

    moments!(corrected);
}

impl Rule for Adam {
    titled!("Adam");
    fn check(&self) -> Result<()> {
        self.moments.check("Adam")
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["m", "v"])
    }
    fn shared(&self, step: &Array) -> Result<Vec<Array>> {
        self.moments.shared(step)
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        self.moments.step_one(at, g, w, state)
    }
}

/// Adam on `w (1 - lr weight_decay)`: decay that does not pass through the averages.
pub struct AdamW {
    base: Base,
    moments: Moments,
    weight_decay: f64,
}

impl AdamW {
    /// With betas 0.9 and 0.999, eps 1e-8, weight decay 0.01, no bias correction.
    pub fn new(learning_rate: impl Into<Rate>) -> AdamW {
        AdamW { base: Base::new(Some(learning_rate.into())), moments: Moments::DEFAULT, weight_decay: 0.01 }
    }

    moments!(corrected);
    options! {
        /// Default 0.01.
        weight_decay: f64,
    }
}

impl Rule for AdamW {
    titled!("AdamW");
    fn check(&self) -> Result<()> {
        self.moments.check("AdamW")
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["m", "v"])
    }
    fn shared(&self, step: &Array) -> Result<Vec<Array>> {
        self.moments.shared(step)
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let w = w * (1.0 - at.lr(g)? * self.weight_decay);
        self.moments.step_one(at, g, &w, state)
    }
}

/// Adamax, Adam with the largest gradient instead of the average square: `m = b1 m + (1 - b1) g; v = max(b2 v, |g|);
/// w -= lr m / (v + eps)`.
pub struct Adamax {
    base: Base,
    moments: Moments,
}

impl Adamax {
    /// With betas 0.9 and 0.999, eps 1e-8.
    pub fn new(learning_rate: impl Into<Rate>) -> Adamax {
        Adamax { base: Base::new(Some(learning_rate.into())), moments: Moments::DEFAULT }
    }

    moments!();
}

impl Rule for Adamax {
    titled!("Adamax");
    fn check(&self) -> Result<()> {
        self.moments.check("Adamax")
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["m", "v"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let [b1, b2] = self.moments.betas;
        state["m"] = b1 * &state["m"] + (1.0 - b1) * g;
        state["v"] = (b2 * &state["v"]).maximum(g.abs());
        Ok(w - at.lr(g)? * &state["m"] / (&state["v"] + self.moments.eps))
    }
}
