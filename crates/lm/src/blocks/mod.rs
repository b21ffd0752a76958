//! What models are made of. Each block is a module with the names of checkpoints, built by [`At`](crate::weights::At)
//! from tensors, and takes rows `(rows, width)`; only attention and recurrences look at the [`Batch`].

mod attention;
mod decoder;
mod experts;
mod mlp;
mod norm;
mod rope;

pub use attention::{Attention, Growth, HeadNorms, Heads, Inputs, PerHead};
pub use decoder::{Block, Body, Decoder, Layered, Norms, Residual};
pub use experts::{Experts, GatedExperts, Mixture, MultiLinear, Router, Rule, mix, swiglu};
pub use mlp::Mlp;
pub use norm::Norm;
pub use rope::Rope;

use lapis::{Array, Result};

/// What stands between two products.
pub type Activation = fn(&Array) -> Result<Array>;
