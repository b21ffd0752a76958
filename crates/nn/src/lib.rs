//! Neural networks: modules with named parameters, losses, initialisers, optimisers.
#![forbid(unsafe_code)]

// The derive writes `::lapis_nn`, also here.
extern crate self as lapis_nn;

pub mod module;
pub mod optim;
mod quantize;

pub use lapis_nn_derive::Module;
pub use module::{Buffer, Leaf, LeafMut, Mode, Module, Param, key, show};
pub use quantize::{Packing, Quantize, quantize, quantize_where};

use lapis::Array;
use std::collections::BTreeMap;

/// Parameters, gradients or state by dotted name: `layers.0.weight`.
pub type Params = BTreeMap<String, Array>;
