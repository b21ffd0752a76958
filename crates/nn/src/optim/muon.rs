//! Muon: momentum made orthogonal by Newton and Schulz (Keller Jordan 2024).

use super::Rate;
use super::descent::{like, options, titled};
use super::rule::{At, Base, Rule, Shapes, Slots};
use lapis::{Array, Result, ops};

/// Muon: `g += weight_decay w; v = momentum v + (1 - momentum) g`; then, for parameters of two and more axes, the
/// update `v` (Nesterov: `(1 - momentum) g + momentum v`) is flattened to a matrix, brought close to the nearest
/// orthogonal one and scaled by `sqrt(max(1, rows / columns))` of the parameter's last two axes, as MLX does.
///
/// Meant for hidden matrices. Embeddings, the last layer and vectors do better with [`AdamW`](super::AdamW): see
/// [`MultiOptimizer`](super::MultiOptimizer).
pub struct Muon {
    base: Base,
    momentum: f64,
    weight_decay: f64,
    nesterov: bool,
    ns_steps: usize,
}

impl Muon {
    /// With momentum 0.95 (Nesterov's), weight decay 0.01 and 5 iterations.
    pub fn new(learning_rate: impl Into<Rate>) -> Muon {
        let base = Base::new(Some(learning_rate.into()));
        Muon { base, momentum: 0.95, weight_decay: 0.01, nesterov: true, ns_steps: 5 }
    }

    options! {
        /// Default 0.95.
        momentum: f64,
        /// Added to the gradient times the parameter; default 0.01.
        weight_decay: f64,
        /// Nesterov's momentum; default true.
        nesterov: bool,
        /// Iterations; default 5.
        ns_steps: usize,
    }
}

/// A matrix with the singular vectors of `x` and singular values near 1: a quintic iteration whose coefficients are
/// chosen to be steep at 0.
fn orthogonal(x: &Array, steps: usize) -> Result<Array> {
    const A: f64 = 3.4445;
    const B: f64 = -4.7750;
    const C: f64 = 2.0315;
    let tall = x.dim(-2) > x.dim(-1);
    let mut x = if tall { ops::transpose(x, None)? } else { x.clone() };
    x = &x / (ops::sum(&x.square(), (), true)?.sqrt() + 1e-7);
    for _ in 0..steps {
        let a = ops::matmul(&x, &ops::transpose(&x, None)?)?;
        let b = ops::addmm(&(B * &a), &a, &a, C, 1.0)?;
        x = ops::addmm(&(A * &x), &b, &x, 1.0, 1.0)?;
    }
    if tall { ops::transpose(&x, None) } else { Ok(x) }
}

impl Rule for Muon {
    titled!("Muon");
    fn check(&self) -> Result<()> {
        Ok(())
    }
    fn slots(&self, shape: &[usize]) -> Shapes {
        like(shape, &["v"])
    }
    fn step_one(&self, at: &At, g: &Array, w: &Array, state: &mut Slots) -> Result<Array> {
        let mu = self.momentum;
        let mut lr = at.lr(g)?;
        let g = if self.weight_decay != 0.0 { g + self.weight_decay * w } else { g.clone() };
        state["v"] = mu * &state["v"] + (1.0 - mu) * &g;
        let mut update = if self.nesterov { g * (1.0 - mu) + &state["v"] * mu } else { state["v"].clone() };
        if let [first, .., before_last, last] | [first @ before_last, last] = *w.shape()
            && w.size() > 0
        {
            let flat = ops::reshape(&update, &[first, w.size() / first])?;
            update = ops::reshape(&orthogonal(&flat, self.ns_steps)?, w.shape())?;
            lr = lr * (before_last as f64 / last as f64).max(1.0).sqrt();
        }
        Ok(w - lr * update)
    }
}
