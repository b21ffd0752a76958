//! The products that see each token alone.

use super::Activation;
use crate::weights::At;
use lapis::distributed::Group;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module, Split};

/// Up, an activation, down: gated, `down(activation(gate(x)) * up(x))`, or plain, `down(activation(up(x)))`.
#[derive(Module, Clone)]
#[module(split)]
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

impl Split for Mlp {
    /// Some of the features between the products.
    fn split(&mut self, group: Group) -> Result<bool> {
        let n = group.size();
        // Runs of rows that lead in: the fused one has two.
        let (into, runs, out): (Vec<&mut Linear>, usize, _) = match self {
            Mlp::Gated { gate_proj, up_proj, down_proj, .. } => (vec![gate_proj, up_proj], 1, down_proj),
            Mlp::Fused { gate_up_proj, down_proj, .. } => (vec![gate_up_proj], 2, down_proj),
            Mlp::Ungated { up_proj: up, down_proj: down, .. } | Mlp::Plain { c_fc: up, c_proj: down, .. } => {
                (vec![up], 1, down)
            }
        };
        let inner = out.dims().0;
        if !inner.is_multiple_of(n) || !out.columns_divide(n) {
            return Ok(false);
        }
        into.into_iter().try_for_each(|linear| linear.keep_rows(&vec![inner; runs], group))?;
        out.keep_columns(group)?;
        Ok(true)
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
