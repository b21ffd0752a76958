//! The products that see each token alone.

use super::Activation;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// Up, an activation, down: gated, `down(activation(gate(x)) * up(x))`, or plain, `down(activation(up(x)))`.
#[derive(Module, Clone)]
pub enum Mlp {
    /// Gated.
    Gated {
        /// To the activation.
        gate_proj: Linear,
        /// To what it is multiplied with.
        up_proj: Linear,
        /// Back.
        down_proj: Linear,
        /// After the gate.
        activation: Activation,
    },
    /// Gated, of one product whose first half of rows is the gate.
    Fused {
        /// To both.
        gate_up_proj: Linear,
        /// Back.
        down_proj: Linear,
        /// After the gate.
        activation: Activation,
    },
    /// Plain, by the names of a gated one.
    Ungated {
        /// Up.
        up_proj: Linear,
        /// Back.
        down_proj: Linear,
        /// Between them.
        activation: Activation,
    },
    /// Plain.
    Plain {
        /// Up.
        c_fc: Linear,
        /// Back.
        c_proj: Linear,
        /// Between them.
        activation: Activation,
    },
}

impl Mlp {
    /// A gated one from a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, inner: usize, bias: bool, activation: Activation) -> Result<Mlp> {
        Ok(Mlp::Gated {
            gate_proj: at.linear("gate_proj", width, inner, bias)?,
            up_proj: at.linear("up_proj", width, inner, bias)?,
            down_proj: at.linear("down_proj", inner, width, bias)?,
            activation,
        })
    }

    /// [`Mlp::Fused`].
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn fused(at: &At, width: usize, inner: usize, bias: bool, activation: Activation) -> Result<Mlp> {
        Ok(Mlp::Fused {
            gate_up_proj: at.linear("gate_up_proj", width, 2 * inner, bias)?,
            down_proj: at.linear("down_proj", inner, width, bias)?,
            activation,
        })
    }

    /// [`Mlp::Ungated`].
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn ungated(at: &At, width: usize, inner: usize, bias: bool, activation: Activation) -> Result<Mlp> {
        Ok(Mlp::Ungated {
            up_proj: at.linear("up_proj", width, inner, bias)?,
            down_proj: at.linear("down_proj", inner, width, bias)?,
            activation,
        })
    }

    /// [`Mlp::Plain`].
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn plain(at: &At, width: usize, inner: usize, bias: bool, activation: Activation) -> Result<Mlp> {
        Ok(Mlp::Plain {
            c_fc: at.linear("c_fc", width, inner, bias)?,
            c_proj: at.linear("c_proj", inner, width, bias)?,
            activation,
        })
    }
}

impl Layer for Mlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Mlp::Gated { gate_proj, up_proj, down_proj, activation } => {
                let gate = activation(&gate_proj.forward(x)?)?;
                down_proj.forward(&ops::multiply(&gate, up_proj.forward(x)?)?)
            }
            Mlp::Fused { gate_up_proj, down_proj, activation } => {
                let halves = ops::split(&gate_up_proj.forward(x)?, 2, -1)?;
                let [gate, up] = &halves[..] else { return Err(Error::shape("[mlp] two halves")) };
                down_proj.forward(&ops::multiply(&activation(gate)?, up)?)
            }
            Mlp::Ungated { up_proj: up, down_proj: down, activation }
            | Mlp::Plain { c_fc: up, c_proj: down, activation } => down.forward(&activation(&up.forward(x)?)?),
        }
    }
}
