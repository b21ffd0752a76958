//! SGD, RMSprop, Adagrad, AdaDelta, Lion. Each formula is the one of `mlx.optimizers`, in its order of operations.

use super::Rate;
use super::rule::{At, Base, Rule, Shapes, Slots, demand};
use lapis::{Array, Result};

/// The part of a [`Rule`] that is the same for all.
macro_rules! titled {
    ($title:literal) => {
        fn title(&self) -> &'static str {
            $title
        }
        fn base(&self) -> &Base {
            &self.base
        }
        fn base_mut(&mut self) -> &mut Base {
            &mut self.base
        }
    };
}
/// Options as builder methods: `Sgd::new(0.1).momentum(0.9)`.
macro_rules! options {
    ($($(#[$doc:meta])* $name:ident: $t:ty),* $(,)?) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $name(mut self, $name: $t) -> Self {
            self.$name = $name;
            self
        }
    )*};
}
pub(super) use {options, titled};

/// One slot of the parameter's shape for each name.
pub(super) fn like(shape: &[usize], names: &[&'static str]) -> Shapes {
    names.iter().map(|&name| (name, shape.to_vec())).collect()
}

/// Stochastic gradient descent: `g += weight_decay w; v = momentum v + (1 - dampening) g; w -= lr v`, with
/// `g + momentum v` in place of `v` for Nesterov's momentum.
pub struct Sgd {
    base: Base,
    momentum: f64,
    weight_decay: f64,
    dampening: f64,
    nesterov: bool,
}

impl Sgd {
    /// Without momentum, decay, dampening.
    pub fn new(learning_rate: impl Into<Rate>) -> Sgd {
        let base = Base::new(Some(learning_rate.into()));
        Sgd { base, momentum: 0.0, weight_decay: 0.0, dampening: 0.0, nesterov: false }
    }

    options! {
        /// Default 0.
        momentum: f64,
        /// Added to the gradient times the parameter; default 0.
        weight_decay: f64,
        /// Default 0.
        dampening: f64,
        /// Nesterov's momentum; needs a momentum and no dampening.
        nesterov: bool,
    }
}

impl Rule for Sgd {
    titled!("SGD");
    fn check(&self) -> Result<()> {
        let ok = !self.nesterov || (self.momentum > 0.0 && self.dampening == 0.0);
        let given = (self.momentum, self.dampening);
        demand(ok, "SGD", "Nesterov's momentum needs a momentum above 0 and a dampening of 0", given)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["v"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let lr = at.lr(g)?;
        let g = if self.weight_decay != 0.0 { g + self.weight_decay * w } else { g.clone() };
        if self.momentum <= 0.0 {
            return Ok(w - lr * g);
        }
        let kept = self.momentum * &state["v"];
        let v = if self.dampening > 0.0 { kept + (1.0 - self.dampening) * &g } else { kept + &g };
        let update = if self.nesterov { g + self.momentum * &v } else { v.clone() };
        state["v"] = v;
        Ok(w - lr * update)
    }
}

/// RMSprop: `v = alpha v + (1 - alpha) g^2; w -= lr g / (sqrt(v) + eps)` (Tieleman and Hinton 2012).
pub struct RmsProp {
    base: Base,
    alpha: f64,
    eps: f64,
}

impl RmsProp {
    /// With alpha 0.99 and eps 1e-8.
    pub fn new(learning_rate: impl Into<Rate>) -> RmsProp {
        RmsProp { base: Base::new(Some(learning_rate.into())), alpha: 0.99, eps: 1e-8 }
    }

    options! {
        /// How much of the average stays; default 0.99.
        alpha: f64,
        /// Default 1e-8.
        eps: f64,
    }
}

impl Rule for RmsProp {
    titled!("RMSprop");
    fn check(&self) -> Result<()> {
        demand(self.alpha >= 0.0, "RMSprop", "alpha must be at least 0", self.alpha)?;
        demand(self.eps > 0.0, "RMSprop", "eps must be above 0", self.eps)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["v"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        state["v"] = self.alpha * &state["v"] + (1.0 - self.alpha) * g.square();
        Ok(w - at.lr(g)? * g / (state["v"].sqrt() + self.eps))
    }
}

/// Adagrad: `v += g^2; w -= lr g / (sqrt(v) + eps)` (Duchi, Hazan and Singer 2011).
pub struct Adagrad {
    base: Base,
    eps: f64,
}

impl Adagrad {
    /// With eps 1e-8.
    pub fn new(learning_rate: impl Into<Rate>) -> Adagrad {
        Adagrad { base: Base::new(Some(learning_rate.into())), eps: 1e-8 }
    }

    options! {
        /// Default 1e-8.
        eps: f64,
    }
}

impl Rule for Adagrad {
    titled!("Adagrad");
    fn check(&self) -> Result<()> {
        demand(self.eps > 0.0, "Adagrad", "eps must be above 0", self.eps)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["v"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        state["v"] = &state["v"] + g.square();
        Ok(w - at.lr(g)? * g / (state["v"].sqrt() + self.eps))
    }
}

/// AdaDelta: `v = rho v + (1 - rho) g^2; d = sqrt(u + eps) / sqrt(v + eps) g; u = rho u + (1 - rho) d^2; w -= lr d`
/// (Zeiler 2012).
pub struct AdaDelta {
    base: Base,
    rho: f64,
    eps: f64,
}

impl AdaDelta {
    /// With rho 0.9 and eps 1e-6.
    pub fn new(learning_rate: impl Into<Rate>) -> AdaDelta {
        AdaDelta { base: Base::new(Some(learning_rate.into())), rho: 0.9, eps: 1e-6 }
    }

    options! {
        /// How much of the averages stays; default 0.9.
        rho: f64,
        /// Default 1e-6.
        eps: f64,
    }
}

impl Rule for AdaDelta {
    titled!("AdaDelta");
    fn check(&self) -> Result<()> {
        demand(self.rho >= 0.0, "AdaDelta", "rho must be at least 0", self.rho)?;
        demand(self.eps > 0.0, "AdaDelta", "eps must be above 0", self.eps)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["v", "u"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let rho = self.rho;
        state["v"] = rho * &state["v"] + (1.0 - rho) * g.square();
        let d = (&state["u"] + self.eps).sqrt() / (&state["v"] + self.eps).sqrt() * g;
        state["u"] = rho * &state["u"] + (1.0 - rho) * d.square();
        Ok(w - at.lr(g)? * d)
    }
}

/// Lion: `c = b1 m + (1 - b1) g; m = b2 m + (1 - b2) g; w = (1 - lr weight_decay) w - lr sign(c)` (Chen et al. 2023).
/// Its steps are larger than Adam's: rates 3 to 10 times smaller, decays as much larger.
pub struct Lion {
    base: Base,
    betas: [f64; 2],
    weight_decay: f64,
}

impl Lion {
    /// With betas 0.9 and 0.99 and no decay.
    pub fn new(learning_rate: impl Into<Rate>) -> Lion {
        Lion { base: Base::new(Some(learning_rate.into())), betas: [0.9, 0.99], weight_decay: 0.0 }
    }

    options! {
        /// Weights of the past in the direction and in the momentum; default 0.9, 0.99.
        betas: [f64; 2],
        /// Default 0.
        weight_decay: f64,
    }
}

impl Rule for Lion {
    titled!("Lion");
    fn check(&self) -> Result<()> {
        demand(self.betas.iter().all(|b| (0.0..1.0).contains(b)), "Lion", "betas must lie in [0, 1)", self.betas)
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["m"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let (lr, [b1, b2]) = (at.lr(g)?, self.betas);
        let c = b1 * &state["m"] + (1.0 - b1) * g;
        state["m"] = b2 * &state["m"] + (1.0 - b2) * g;
        let w = if self.weight_decay > 0.0 { (1.0 - &lr * self.weight_decay) * w } else { w.clone() };
        Ok(w - lr * c.sign())
    }
}
