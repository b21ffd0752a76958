//! Neural networks: modules with named parameters, layers, losses, initialisers, optimisers.
//!
//! ```
//! use lapis_nn::{Linear, Layer, Module, activations::relu};
//!
//! #[derive(Module, Clone)]
//! struct Mlp {
//!     up: Linear,
//!     down: Linear,
//! }
//!
//! impl Layer for Mlp {
//!     fn forward(&self, x: &lapis::Array) -> lapis::Result<lapis::Array> {
//!         self.down.forward(&relu(&self.up.forward(x)?)?)
//!     }
//! }
//!
//! let mlp = Mlp { up: Linear::new(4, 16, true)?, down: Linear::new(16, 2, true)? };
//! let names: Vec<String> = mlp.parameters().into_keys().collect();
//! assert_eq!(names, ["down.bias", "down.weight", "up.bias", "up.weight"]);
//! # Ok::<(), lapis::Error>(())
//! ```
#![forbid(unsafe_code)]

// The derive writes `::lapis_nn`, also here.
extern crate self as lapis_nn;

pub mod activations;
mod grad;
pub mod init;
pub mod layers;
pub mod losses;
pub mod module;
pub mod optim;
mod quantize;
pub mod record;
mod tree;

pub use activations::{
    CELU, ELU, GELU, GLU, GeluApprox, HardShrink, HardTanh, Hardswish, LeakyReLU, LogSigmoid, LogSoftmax, Mish, PReLU,
    ReLU, ReLU2, ReLU6, SELU, SiLU, Sigmoid, Softmax, Softmin, Softplus, Softshrink, Softsign, Step, Tanh,
};
pub use grad::{check_finite, checkpoint, finite_value_and_grad, value_and_grad};
pub use lapis_nn_derive::Module;
pub use layers::*;
pub use module::{Buffer, Leaf, LeafMut, Mode, Module, Param, key, show};
pub use quantize::{Packing, Quantize, for_each_packable, quantize, quantize_where};
pub use tree::{tree_flatten, tree_map, tree_map_with_path, tree_merge, tree_reduce, tree_unflatten};

use lapis::Array;
use std::collections::BTreeMap;

/// Parameters, gradients or state by dotted name: `layers.0.weight`.
pub type Params = BTreeMap<String, Array>;
