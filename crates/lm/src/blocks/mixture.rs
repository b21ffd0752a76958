//! Mixtures of experts by the names of checkpoints: a gate, the experts, and what every token goes through.

use super::{GatedExperts, Mlp, Named, PlainExperts, Router, swiglu};
use crate::weights::At;
use lapis::{Array, Result, ops};
use lapis_nn::activations::relu2;
use lapis_nn::{Layer, Linear, Module, Param};

/// Logits of experts.
#[derive(Module, Clone)]
pub enum Gate {
    /// A layer.
    Plain {
        /// To logits.
        gate: Linear,
    },
    /// One that is never packed, with a bias of the choice.
    Biased {
        /// To logits.
        gate: BiasedGate,
    },
    /// One that is never packed.
    Bare {
        /// To logits.
        gate: BareGate,
    },
    /// A layer, with a bias of the choice beside it.
    Beside {
        /// To logits.
        gate: Linear,
        /// (experts).
        e_score_correction_bias: Param,
    },
    /// A layer, with a bias of the choice by another name, or none.
    Expert {
        /// To logits.
        gate: Linear,
        /// (experts).
        expert_bias: Option<Param>,
    },
    /// A layer by another name.
    Router {
        /// To logits.
        router: Linear,
    },
    /// A layer in a layer.
    Inner {
        /// To logits.
        router: InnerGate,
    },
    /// A layer, with a bias of the choice or without, under names of their own.
    Named {
        /// To logits.
        #[flatten]
        gate: Named<Linear>,
        /// (experts).
        #[flatten]
        bias: Option<Named<Param>>,
    },
}

/// A matrix, and a bias that takes part in the choice alone.
#[derive(Module, Clone)]
pub struct BiasedGate {
    /// (experts, width).
    pub weight: Param,
    /// (experts).
    pub e_score_correction_bias: Param,
}

/// A matrix.
#[derive(Module, Clone)]
pub struct BareGate {
    /// (experts, width).
    pub weight: Param,
}

/// A layer called `layer`.
#[derive(Module, Clone)]
pub struct InnerGate {
    /// To logits.
    pub layer: Linear,
}

impl Gate {
    /// [`Gate::Biased`] of a mixture at a place in the names.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn biased(at: &At, width: usize, experts: usize) -> Result<Gate> {
        let at = at.at("gate");
        let gate = BiasedGate {
            weight: at.param("weight", &[experts, width])?,
            e_score_correction_bias: at.param("e_score_correction_bias", &[experts])?,
        };
        Ok(Gate::Biased { gate })
    }

    /// Logits, and the bias of the choice.
    fn forward(&self, x: &Array) -> Result<(Array, Option<&Array>)> {
        let product = |weight: &Param| ops::matmul(x, &ops::transpose(weight.value(), None)?);
        match self {
            Gate::Plain { gate: layer }
            | Gate::Router { router: layer }
            | Gate::Inner { router: InnerGate { layer } } => Ok((layer.forward(x)?, None)),
            Gate::Bare { gate } => Ok((product(&gate.weight)?, None)),
            Gate::Biased { gate } => Ok((product(&gate.weight)?, Some(gate.e_score_correction_bias.value()))),
            Gate::Beside { gate, e_score_correction_bias } => {
                Ok((gate.forward(x)?, Some(e_score_correction_bias.value())))
            }
            Gate::Named { gate, bias } => Ok((gate.1.forward(x)?, bias.as_ref().map(|b| b.1.value()))),
            Gate::Expert { gate, expert_bias } => Ok((gate.forward(x)?, expert_bias.as_deref())),
        }
    }
}

/// The experts of a mixture.
#[derive(Module, Clone)]
pub enum Pool {
    /// Gated.
    Gated {
        /// The experts.
        switch_mlp: GatedExperts,
    },
    /// Gated, by another name.
    Named {
        /// The experts.
        experts: GatedExperts,
    },
    /// Plain.
    Plain {
        /// The experts.
        switch_mlp: PlainExperts,
    },
    /// Plain, on rows that are narrower than the model's.
    Latent {
        /// To narrow rows.
        fc1_latent_proj: Linear,
        /// The experts.
        switch_mlp: PlainExperts,
        /// Back.
        fc2_latent_proj: Linear,
    },
}

impl Pool {
    /// Rows through the experts `chosen` (rows, k), added up with `weights` (rows, k).
    fn forward(&self, x: &Array, chosen: &Array, weights: &Array) -> Result<Array> {
        match self {
            Pool::Gated { switch_mlp: all } | Pool::Named { experts: all } => mix(&all.forward(x, chosen)?, weights),
            Pool::Plain { switch_mlp } => mix(&switch_mlp.forward(x, chosen)?, weights),
            Pool::Latent { fc1_latent_proj, switch_mlp, fc2_latent_proj } => {
                fc2_latent_proj.forward(&mix(&switch_mlp.forward(&fc1_latent_proj.forward(x)?, chosen)?, weights)?)
            }
        }
    }
}

/// What every token goes through.
#[derive(Module, Clone)]
pub enum Shared {
    /// Nothing.
    None,
    /// Gated products.
    Plain {
        /// As one.
        shared_experts: Mlp,
    },
    /// Squares.
    Squared {
        /// As one.
        shared_experts: Squared,
    },
    /// Gated products, times a number for each token.
    Gated {
        /// The products.
        shared_expert: Mlp,
        /// To the number, before its sigmoid.
        shared_expert_gate: Linear,
    },
}

impl Shared {
    /// Adds to what the experts made of rows.
    fn add(&self, y: Array, x: &Array) -> Result<Array> {
        match self {
            Shared::None => Ok(y),
            Shared::Plain { shared_experts } => ops::add(y, shared_experts.forward(x)?),
            Shared::Squared { shared_experts } => ops::add(y, shared_experts.forward(x)?),
            Shared::Gated { shared_expert, shared_expert_gate } => {
                let gate = ops::sigmoid(&shared_expert_gate.forward(x)?)?;
                ops::add(y, ops::multiply(&gate, shared_expert.forward(x)?)?)
            }
        }
    }
}

/// `down(relu(up(x))^2)`.
#[derive(Module, Clone)]
pub struct Squared {
    /// Up.
    pub up_proj: Linear,
    /// Back.
    pub down_proj: Linear,
}

impl Squared {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, inner: usize, bias: bool) -> Result<Squared> {
        Ok(Squared {
            up_proj: at.linear("up_proj", width, inner, bias)?,
            down_proj: at.linear("down_proj", inner, width, bias)?,
        })
    }
}

impl Layer for Squared {
    fn forward(&self, x: &Array) -> Result<Array> {
        self.down_proj.forward(&relu2(&self.up_proj.forward(x)?)?)
    }
}

/// A gate with its experts, and what every token goes through.
#[derive(Module, Clone)]
pub struct Mixture {
    /// Logits of experts.
    #[flatten]
    pub gate: Gate,
    /// The experts.
    #[flatten]
    pub pool: Pool,
    /// What every token goes through.
    #[flatten]
    pub shared: Shared,
    /// How logits become a choice.
    #[plain]
    pub router: Router,
}

impl Mixture {
    /// From a place in the names: `gate` and `switch_mlp` of `[experts, width, inner]`.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, sizes: [usize; 3], router: Router) -> Result<Mixture> {
        let gate = Gate::Plain { gate: at.linear("gate", sizes[1], sizes[0], false)? };
        Mixture::behind(gate, at, sizes, router)
    }

    /// As [`Mixture::load`], behind a gate.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn behind(gate: Gate, at: &At, sizes: [usize; 3], router: Router) -> Result<Mixture> {
        let switch_mlp = GatedExperts::load(&at.at("switch_mlp"), sizes, false, swiglu)?;
        Ok(Mixture { gate, pool: Pool::Gated { switch_mlp }, shared: Shared::None, router })
    }

    /// With products that every token goes through.
    pub fn with(self, shared: Shared) -> Mixture {
        Mixture { shared, ..self }
    }
}

/// What looks at each token, under one name: a gated product or experts.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum Feed {
    /// A gated product.
    Dense(Mlp),
    /// Experts.
    Experts(Mixture),
}

impl Layer for Feed {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Feed::Dense(mlp) => mlp.forward(x),
            Feed::Experts(mixture) => mixture.forward(x),
        }
    }
}

impl Layer for Mixture {
    fn forward(&self, x: &Array) -> Result<Array> {
        let (logits, bias) = self.gate.forward(x)?;
        let (chosen, weights) = self.router.route(&logits, bias)?;
        self.shared.add(self.pool.forward(x, &chosen, &weights)?, x)
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
