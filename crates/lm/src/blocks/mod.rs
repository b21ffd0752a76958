//! What models are made of. Each block is a module with the names of checkpoints, built by [`At`](crate::weights::At)
//! from tensors, and takes rows `(rows, width)`; only attention and recurrences look at the [`Batch`](crate::Batch).

mod attention;
mod backbone;
mod conv;
mod decoder;
mod delta;
mod experts;
mod gated;
mod hybrid;
mod latent;
mod mamba;
mod mixture;
mod mlp;
mod norm;
mod rope;
mod router;

pub use attention::{Attention, Growth, HeadNorms, Heads, Inputs, PerHead};
pub use backbone::{Backbone, Frame, Last, Table, Trunk};
pub use conv::{DepthwiseConv, ShortConv};
pub use decoder::{Block, Body, Decoder, Layered, Norms, Residual};
pub use delta::{DeltaInputs, DeltaNet, DeltaSizes};
pub use experts::{Experts, GatedExperts, MultiLinear, PlainExperts, swiglu};
pub use gated::GatedAttention;
pub use hybrid::{FusedMlp, Hybrid, Mixer, Pair, Product};
pub use latent::{Expand, Latent, LatentSizes, Queries};
pub use mamba::{Mamba2, MambaSizes};
pub use mixture::{BareGate, BiasedGate, Gate, InnerGate, Mixture, Pool, Shared, Squared, mix};
pub use mlp::Mlp;
pub use norm::{Norm, divide_norm};
pub use rope::Rope;
pub(crate) use rope::yarn_score_gain;
pub use router::{Router, Rule};

use lapis::{Array, Result};

/// What stands between two products.
pub type Activation = fn(&Array) -> Result<Array>;
