//! What models are made of. Each block is a module with the names of checkpoints, built by [`At`](crate::weights::At)
//! from tensors, and takes rows `(rows, width)`; only attention and recurrences look at the [`Batch`].

mod attention;
mod decoder;
mod experts;
mod norm;
mod rope;

pub use attention::{Attention, Heads};
pub use decoder::{Block, Body, Decoder, Layered};
pub use experts::{Experts, GatedExperts, Mixture, MultiLinear, Router, Rule, mix, swiglu};
pub use norm::Norm;
pub use rope::Rope;

use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// What stands between two products.
pub type Activation = fn(&Array) -> Result<Array>;

/// `down(activation(gate(x)) * up(x))`.
#[derive(Module, Clone)]
pub struct Mlp {
    /// To the activation.
    pub gate_proj: Linear,
    /// To what it is multiplied with.
    pub up_proj: Linear,
    /// Back.
    pub down_proj: Linear,
    activation: Activation,
}

impl Mlp {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, inner: usize, bias: bool, activation: Activation) -> Result<Mlp> {
        Ok(Mlp {
            gate_proj: at.linear("gate_proj", width, inner, bias)?,
            up_proj: at.linear("up_proj", width, inner, bias)?,
            down_proj: at.linear("down_proj", inner, width, bias)?,
            activation,
        })
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let gate = (self.activation)(&self.gate_proj.forward(x)?)?;
        self.down_proj.forward(&ops::multiply(&gate, self.up_proj.forward(x)?)?)
    }
}
