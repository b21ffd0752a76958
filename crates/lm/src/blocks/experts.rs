//! Mixtures of experts: routers, and the products of each token with the experts it is sent to.

use super::Activation;
use crate::weights::At;
use lapis::ops::quantize::gather_qmm;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module, Packing, Param, Quantize, Weight};

/// One linear layer for each of `n` experts: weight (experts, output, input).
#[derive(Module, Clone)]
#[module(quantize)]
pub struct Experts {
    /// The matrices.
    #[flatten]
    pub weight: Weight,
    /// (experts, output).
    pub bias: Option<Param>,
}

impl Experts {
    /// Rows `x` (m, 1, input), row `from[i]` times the matrix `to[i]`: (n, 1, output).
    fn forward(&self, x: &Array, from: &Array, to: &Array) -> Result<Array> {
        let y = match (&self.weight, self.weight.quantized()) {
            (Weight::Dense { weight }, _) => {
                ops::gather_mm(x, &ops::matrix_transpose(weight)?, Some(from), Some(to), false)?
            }
            (_, Some(q)) => gather_qmm(x, &q, Some(from), Some(to), true)?,
            _ => return Err(Error::value("[experts] a packed weight lacks its scales")),
        };
        match &self.bias {
            Some(bias) => ops::add(&y, ops::expand_dims(&ops::take(bias, to, 0)?, 1)?),
            None => Ok(y),
        }
    }
}

/// One matrix for each head: weight (heads, output, input).
#[derive(Module, Clone)]
#[module(quantize)]
pub struct MultiLinear {
    /// The matrices.
    #[flatten]
    pub weight: Weight,
}

impl MultiLinear {
    /// (heads, rows, input) to (heads, rows, output).
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn forward(&self, x: &Array) -> Result<Array> {
        match (&self.weight, self.weight.quantized()) {
            (Weight::Dense { weight }, _) => ops::matmul(x, &ops::matrix_transpose(weight)?),
            (_, Some(q)) => lapis::ops::quantize::quantized_matmul(x, &q, true),
            _ => Err(Error::value("[multi_linear] a packed weight lacks its scales")),
        }
    }

    /// (heads, rows, output) to (heads, rows, input): the other way.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn backward(&self, x: &Array) -> Result<Array> {
        match (&self.weight, self.weight.quantized()) {
            (Weight::Dense { weight }, _) => ops::matmul(x, weight.value()),
            (_, Some(q)) => lapis::ops::quantize::quantized_matmul(x, &q, false),
            _ => Err(Error::value("[multi_linear] a packed weight lacks its scales")),
        }
    }
}

macro_rules! packs {
    ($($t:ty),*) => {$(
        impl Quantize for $t {
            fn quantize(&mut self, packing: Packing) -> Result<()> {
                self.weight.quantize(packing)
            }

            fn matrix(&self) -> &Weight {
                &self.weight
            }

            fn matrix_mut(&mut self) -> &mut Weight {
                &mut self.weight
            }
        }
    )*};
}
packs!(Experts, MultiLinear);

/// Experts that are gated products, as [`Mlp`](super::Mlp) is.
#[derive(Module, Clone)]
pub struct GatedExperts {
    /// To the activation.
    pub gate_proj: Experts,
    /// To what it is multiplied with.
    pub up_proj: Experts,
    /// Back.
    pub down_proj: Experts,
    /// What joins the two: (gate, up).
    #[plain]
    join: fn(&Array, &Array) -> Result<Array>,
}

impl GatedExperts {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::experts`].
    pub fn load(
        at: &At,
        [experts, width, inner]: [usize; 3],
        bias: bool,
        join: fn(&Array, &Array) -> Result<Array>,
    ) -> Result<GatedExperts> {
        Ok(GatedExperts {
            gate_proj: at.experts("gate_proj", experts, width, inner, bias)?,
            up_proj: at.experts("up_proj", experts, width, inner, bias)?,
            down_proj: at.experts("down_proj", experts, inner, width, bias)?,
            join,
        })
    }

    /// Rows (rows, width) through the experts `chosen` (rows, k): (rows, k, width).
    ///
    /// # Errors
    /// Sizes that do not fit. At evaluation: an expert that is not there.
    pub fn forward(&self, x: &Array, chosen: &Array) -> Result<Array> {
        let (rows, k) = (chosen.dim(0), chosen.dim(1));
        let to = ops::astype(&ops::flatten(chosen, 0, -1)?, Dtype::Uint32)?;
        let each = ops::arange(0, rows * k, 1, Some(Dtype::Uint32))?;
        let from = ops::floor_divide(&each, k as i64)?;
        let x = ops::expand_dims(x, 1)?;
        let (gate, up) = (self.gate_proj.forward(&x, &from, &to)?, self.up_proj.forward(&x, &from, &to)?);
        let y = self.down_proj.forward(&(self.join)(&gate, &up)?, &each, &to)?;
        ops::reshape(&y, &[rows as i64, k as i64, -1])
    }
}

/// `silu(gate) * up`.
///
/// # Errors
/// Shapes that do not fit.
pub fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    let activation: Activation = lapis_nn::activations::silu;
    ops::multiply(&activation(gate)?, up)
}

/// How logits of experts become a choice and weights.
#[derive(Clone, Debug)]
pub struct Router {
    /// Experts a token.
    pub chosen: usize,
    /// The rule.
    pub rule: Rule,
    /// Weights are made to sum to one.
    pub renormalize: bool,
    /// Factor of the weights.
    pub scale: f64,
    /// Groups of experts, and how many of them may be chosen from.
    pub groups: Option<[usize; 2]>,
}

/// What comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Softmax over all experts, then the best.
    SoftmaxThenTop,
    /// The best, then softmax over them.
    TopThenSoftmax,
    /// Sigmoid of each; a bias takes part in the choice alone.
    Sigmoid,
}

impl Router {
    /// Softmax over all, then the best `chosen`.
    pub fn softmax(chosen: usize, renormalize: bool) -> Router {
        Router { chosen, rule: Rule::SoftmaxThenTop, renormalize, scale: 1.0, groups: None }
    }

    /// The experts (rows, k) of logits (rows, experts), and their weights (rows, k) in float32.
    ///
    /// # Errors
    /// More experts to choose than there are.
    pub fn route(&self, logits: &Array, bias: Option<&Array>) -> Result<(Array, Array)> {
        let logits = ops::astype(logits, Dtype::Float32)?;
        let n = logits.dim(1);
        if self.chosen == 0 || self.chosen > n {
            return Err(Error::value(format!("[experts] {} of {n} experts cannot be chosen", self.chosen)));
        }
        let scores = match self.rule {
            Rule::SoftmaxThenTop => ops::softmax(&logits, -1)?,
            Rule::TopThenSoftmax => logits,
            Rule::Sigmoid => ops::sigmoid(&logits)?,
        };
        let mut choice = match bias {
            Some(bias) => ops::add(&scores, bias)?,
            None => scores.clone(),
        };
        if let Some([groups, kept]) = self.groups.filter(|[g, k]| g > k) {
            choice = limit_to_groups(&choice, groups, kept)?;
        }
        let best = ops::argpartition(&ops::negative(&choice)?, self.chosen as i64 - 1, Some(-1))?;
        let best = ops::slice(&best, &[(None, None, 1), (None, Some(self.chosen as i64), 1)])?;
        let mut weights = ops::take_along_axis(&scores, &best, -1)?;
        if self.rule == Rule::TopThenSoftmax {
            weights = ops::softmax(&weights, -1)?;
        } else if self.renormalize && self.chosen > 1 {
            let sum = ops::sum(&weights, -1, true)?;
            weights = ops::divide(&weights, if self.rule == Rule::Sigmoid { ops::add(&sum, 1e-20)? } else { sum })?;
        }
        if self.scale != 1.0 {
            weights = ops::multiply(&weights, self.scale)?;
        }
        Ok((best, weights))
    }
}

/// Scores outside the best `kept` of `groups` groups become 0; a group is as good as its two best experts together.
fn limit_to_groups(scores: &Array, groups: usize, kept: usize) -> Result<Array> {
    let (rows, n) = (scores.dim(0) as i64, scores.dim(1) as i64);
    let grouped = ops::reshape(scores, &[rows, groups as i64, n / groups as i64])?;
    let two = ops::sum(&ops::topk(&grouped, 2, Some(-1))?, -1, true)?;
    let drop = (groups - kept) as i64;
    let worst = ops::argpartition(&two, drop - 1, Some(-2))?;
    let worst = ops::slice(&worst, &[(None, None, 1), (None, Some(drop), 1)])?;
    ops::reshape(&ops::put_along_axis(&grouped, &worst, 0.0, -2)?, &[rows, n])
}

/// A router with its experts, and experts that every token goes to.
#[derive(Module, Clone)]
pub struct Mixture {
    /// Logits of experts.
    pub gate: Linear,
    /// The experts.
    pub switch_mlp: GatedExperts,
    #[plain]
    router: Router,
}

impl Mixture {
    /// From a place in the names: `gate` and `switch_mlp`.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, sizes: [usize; 3], router: Router) -> Result<Mixture> {
        Ok(Mixture {
            gate: at.linear("gate", sizes[1], sizes[0], false)?,
            switch_mlp: GatedExperts::load(&at.at("switch_mlp"), sizes, false, swiglu)?,
            router,
        })
    }
}

/// The outputs of experts (rows, k, width), weighted (rows, k) and added up, in the type of the outputs.
///
/// # Errors
/// Shapes that do not fit.
pub fn mix(outputs: &Array, weights: &Array) -> Result<Array> {
    let weights = ops::expand_dims(weights, -1)?;
    ops::astype(&ops::sum(&ops::multiply(outputs, weights)?, -2, false)?, outputs.dtype())
}

impl Layer for Mixture {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (chosen, weights) = self.router.route(&self.gate.forward(x)?, None)?;
        mix(&self.switch_mlp.forward(x, &chosen)?, &weights)
    }
}
