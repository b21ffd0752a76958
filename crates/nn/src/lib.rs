//! Neural networks: modules with named parameters, losses, initialisers, optimisers.
#![forbid(unsafe_code)]

pub mod optim;

use lapis::Array;
use std::collections::BTreeMap;

/// Parameters, gradients or state by dotted name: `layers.0.weight`.
pub type Params = BTreeMap<String, Array>;
