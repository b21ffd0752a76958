//! Experts: the products of each token with those that it is sent to.

use super::Activation;
use crate::weights::At;
use lapis::ops::quantize::gather_qmm;
use lapis::{Array, Dtype, Error, Result, ops};
use lapis_nn::{LowRank, Mode, Module, Packing, Param, Quantize, Side, Slot, Weight, record};

/// One linear layer for each of `n` experts: weight (experts, output, input).
#[derive(Module, Clone)]
#[module(quantize, mode)]
pub struct Experts {
    /// The matrices.
    #[flatten]
    pub weight: Weight,
    /// (experts, output).
    pub bias: Option<Param>,
    /// What fine-tuning adds to the matrices: parameters `lora_a`, `lora_b` and, for DoRA, `m`.
    #[flatten]
    pub change: Option<Box<LowRank>>,
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
        let bias = match &self.bias {
            Some(bias) => Some(ops::expand_dims(&ops::take(bias, to, 0)?, 1)?),
            None => None,
        };
        let plain = |y: Array| bias.as_ref().map_or(Ok(y.clone()), |bias| ops::add(&y, bias));
        let y = match &self.change {
            None => plain(y)?,
            Some(change) if change.m.is_none() => change.gathered(plain(y)?, x, [from, to], &self.weight, None)?,
            Some(change) => change.gathered(y, x, [from, to], &self.weight, bias.as_ref())?,
        };
        record::note(&self.weight, &y, || Ok((ops::squeeze(&ops::take(x, from, 0)?, [1])?, Some(to.clone()))))?;
        Ok(y)
    }

    fn set_mode(&mut self, mode: Mode) {
        if let Some(change) = &mut self.change {
            change.set_mode(mode, &self.weight);
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
    ($($t:ty { $($slot:item)? })*) => {$(
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

            $($slot)?
        }
    )*};
}
packs! {
    Experts {
        fn slot(&mut self) -> Option<Slot<'_>> {
            Some(Slot { side: Side::Stack, change: &mut self.change })
        }
    }
    MultiLinear {}
}

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
    /// Gates after their activation stay below this, what they are multiplied with within it.
    limit: Option<f64>,
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
            limit: None,
        })
    }

    /// As [`swiglu_within`], where there is a limit.
    pub fn with_limit(self, limit: Option<f64>) -> GatedExperts {
        GatedExperts { limit, ..self }
    }

    /// Rows (rows, width) through the experts `chosen` (rows, k): (rows, k, width).
    ///
    /// # Errors
    /// Sizes that do not fit. At evaluation: an expert that is not there.
    pub fn forward(&self, x: &Array, chosen: &Array) -> Result<Array> {
        through(x, chosen, &self.down_proj, |x, from, to| {
            let (gate, up) = (self.gate_proj.forward(x, from, to)?, self.up_proj.forward(x, from, to)?);
            self.limit.map_or_else(|| (self.join)(&gate, &up), |limit| swiglu_within(&gate, &up, limit))
        })
    }
}

/// Rows (rows, width) through `first` and `last` of the experts `chosen` (rows, k): (rows, k, width).
fn through(
    x: &Array,
    chosen: &Array,
    last: &Experts,
    first: impl Fn(&Array, &Array, &Array) -> Result<Array>,
) -> Result<Array> {
    let (rows, k) = (chosen.dim(0), chosen.dim(1));
    let to = ops::astype(&ops::flatten(chosen, 0, -1)?, Dtype::Uint32)?;
    let each = ops::arange(0, rows * k, 1, Some(Dtype::Uint32))?;
    let from = ops::floor_divide(&each, k as i64)?;
    let y = last.forward(&first(&ops::expand_dims(x, 1)?, &from, &to)?, &each, &to)?;
    ops::reshape(&y, &[rows as i64, k as i64, -1])
}

/// Experts that are plain products: `fc2(activation(fc1(x)))`.
#[derive(Module, Clone)]
pub struct PlainExperts {
    /// Up.
    pub fc1: Experts,
    /// Back.
    pub fc2: Experts,
    activation: Activation,
}

impl PlainExperts {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::experts`].
    pub fn load(
        at: &At,
        [experts, width, inner]: [usize; 3],
        bias: bool,
        activation: Activation,
    ) -> Result<PlainExperts> {
        Ok(PlainExperts {
            fc1: at.experts("fc1", experts, width, inner, bias)?,
            fc2: at.experts("fc2", experts, inner, width, bias)?,
            activation,
        })
    }

    /// Rows (rows, width) through the experts `chosen` (rows, k): (rows, k, width).
    ///
    /// # Errors
    /// Sizes that do not fit. At evaluation: an expert that is not there.
    pub fn forward(&self, x: &Array, chosen: &Array) -> Result<Array> {
        through(x, chosen, &self.fc2, |x, from, to| (self.activation)(&self.fc1.forward(x, from, to)?))
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

/// [`swiglu`] whose gates after their activation stay below `limit`, and what they are multiplied with within it.
///
/// # Errors
/// Shapes that do not fit.
pub fn swiglu_within(gate: &Array, up: &Array, limit: f64) -> Result<Array> {
    let gate = ops::clip(&lapis_nn::activations::silu(gate)?, None, Some(&limit))?;
    ops::multiply(&gate, ops::clip(up, Some(&-limit), Some(&limit))?)
}
