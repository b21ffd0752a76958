//! Layers of models whose layers differ: one of several parts that look at other tokens, and one of several products.

use super::{Attention, DeltaNet, GatedAttention, KimiDelta, Latent, Layered, Mamba2, Mixture, Mlp, Norm, swiglu};
use crate::batch::Batch;
use crate::weights::At;
use lapis::{Array, Error, Result, ops};
use lapis_nn::{Layer, Linear, Module};

/// What looks at other tokens.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum Mixer {
    /// Attention.
    Attention {
        /// The part.
        self_attn: Attention,
    },
    /// Attention with a gate.
    Gated {
        /// The part.
        self_attn: GatedAttention,
    },
    /// Attention to short rows.
    Latent {
        /// The part.
        self_attn: Latent,
    },
    /// A gated delta net.
    Delta {
        /// The part.
        linear_attn: DeltaNet,
    },
    /// Kimi's delta attention.
    Kimi {
        /// The part.
        self_attn: KimiDelta,
    },
    /// Mamba 2.
    Mamba {
        /// The part.
        mamba: Mamba2,
    },
}

impl Mixer {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        match self {
            Mixer::Attention { self_attn } => self_attn.forward(x, layer, batch),
            Mixer::Gated { self_attn } => self_attn.forward(x, layer, batch),
            Mixer::Latent { self_attn } => self_attn.forward(x, layer, batch),
            Mixer::Delta { linear_attn } => linear_attn.forward(x, layer, batch),
            Mixer::Kimi { self_attn } => self_attn.forward(x, layer, batch),
            Mixer::Mamba { mamba } => mamba.forward(x, layer, batch),
        }
    }
}

/// What looks at each token.
#[derive(Module, Clone)]
#[expect(clippy::large_enum_variant, reason = "one a layer")]
pub enum Product {
    /// A gated product.
    Dense {
        /// The part.
        mlp: Mlp,
    },
    /// Experts.
    Experts {
        /// The part.
        mlp: Mixture,
    },
    /// Experts, by another name.
    Sparse {
        /// The part.
        block_sparse_moe: Mixture,
    },
    /// Experts beside a gated product.
    Beside {
        /// For every token.
        shared_mlp: FusedMlp,
        /// For some each.
        block_sparse_moe: Mixture,
    },
}

impl Product {
    fn forward(&self, x: &Array) -> Result<Array> {
        match self {
            Product::Dense { mlp } => mlp.forward(x),
            Product::Experts { mlp } => mlp.forward(x),
            Product::Sparse { block_sparse_moe } => block_sparse_moe.forward(x),
            Product::Beside { shared_mlp, block_sparse_moe } => {
                ops::add(block_sparse_moe.forward(x)?, shared_mlp.forward(x)?)
            }
        }
    }
}

/// A gated product of which one layer makes both sides.
#[derive(Module, Clone)]
pub struct FusedMlp {
    /// To both sides, the gate first.
    pub input_linear: Linear,
    /// Back.
    pub output_linear: Linear,
}

impl FusedMlp {
    /// From a place in the names.
    ///
    /// # Errors
    /// As [`At::linear`].
    pub fn load(at: &At, width: usize, inner: usize) -> Result<FusedMlp> {
        Ok(FusedMlp {
            input_linear: at.linear("input_linear", width, 2 * inner, false)?,
            output_linear: at.linear("output_linear", inner, width, false)?,
        })
    }
}

impl Layer for FusedMlp {
    fn forward(&self, x: &Array) -> Result<Array> {
        let both = ops::split(&self.input_linear.forward(x)?, 2, -1)?;
        let [gate, up] = &both[..] else { return Err(Error::shape("[mlp] two sides")) };
        self.output_linear.forward(&swiglu(gate, up)?)
    }
}

/// The norms before the two.
#[derive(Module, Clone)]
pub struct Pair {
    /// Before what looks at other tokens.
    pub input_layernorm: Norm,
    /// Before what looks at each.
    pub post_attention_layernorm: Norm,
}

/// A layer: each part behind a norm, and added to its input.
#[derive(Module, Clone)]
pub struct Hybrid {
    /// What looks at other tokens.
    #[flatten]
    pub mixer: Mixer,
    /// What looks at each token.
    #[flatten]
    pub product: Product,
    /// Before the two.
    #[flatten]
    pub norms: Pair,
    /// Factor of what is added.
    pub residual: f64,
}

impl Hybrid {
    /// Norms of this width from a place in the names; parts are added as they are.
    ///
    /// # Errors
    /// As [`At::tensor`].
    pub fn new(at: &At, width: usize, eps: f64, mixer: Mixer, product: Product) -> Result<Hybrid> {
        let norm = |name: &str| Norm::rms(at, name, width, eps);
        let norms = Pair {
            input_layernorm: norm("input_layernorm")?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
        };
        Ok(Hybrid { mixer, product, norms, residual: 1.0 })
    }
}

impl Layered for Hybrid {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch) -> Result<Array> {
        let add = |x: &Array, y: Array| match self.residual {
            1.0 => ops::add(x, y),
            factor => ops::add(x, ops::multiply(&y, factor)?),
        };
        let y = self.mixer.forward(&self.norms.input_layernorm.forward(x)?, layer, batch)?;
        let x = add(&batch.looked_at(x)?, batch.looked_at(&y)?)?;
        add(&x, self.product.forward(&self.norms.post_attention_layernorm.forward(&x)?)?)
    }

    fn narrows(&self) -> bool {
        true
    }
}
