//! What models are made of. Each block is a module with the names of checkpoints, built by [`At`](crate::weights::At)
//! from tensors, and takes rows `(rows, width)`; only attention and recurrences look at the [`Batch`](crate::Batch).

mod attention;
mod backbone;
mod conv;
mod decoder;
mod delta;
mod experts;
mod fading;
mod gated;
mod hybrid;
mod kimi;
mod latent;
mod mamba;
mod mixture;
mod mlp;
mod named;
mod norm;
mod rope;
mod router;
mod scan;

pub use attention::{Attention, Growth, HeadNorms, Heads, Inputs, PerHead};
pub use backbone::{Backbone, FrameNames, Trunk};
pub use conv::{DepthwiseConv, ShortConv};
pub use decoder::{Block, Body, Decoder, Layered, Norms, Residual};
pub use delta::{DeltaInputs, DeltaNet, DeltaSizes};
pub use experts::{Experts, GatedExperts, MultiLinear, PlainExperts, swiglu, swiglu_within};
pub use fading::{Fading, FadingSizes, GroupNorm};
pub use gated::GatedAttention;
pub use hybrid::{FusedMlp, Hybrid, Mixer, Pair, Product};
pub use kimi::{InnerConv, KimiDelta, KimiSizes};
pub use latent::{Expand, Latent, LatentSizes, Queries};
pub use mamba::{Mamba2, MambaSizes};
pub use mixture::{BareGate, BiasedGate, Feed, Gate, InnerGate, Mixture, Pool, Shared, Squared, mix};
pub use mlp::Mlp;
pub use named::{Named, NamedAttention, NamedBlock, NamedGate, NamedInputs, NamedMlp};
pub use norm::{Norm, divide_norm};
pub use rope::Rope;
pub(crate) use rope::yarn_score_gain;
pub use router::{Router, Rule};
pub use scan::{Scan, ScanSizes};

use lapis::{Array, Result};

/// What stands between two products.
pub type Activation = fn(&Array) -> Result<Array>;
