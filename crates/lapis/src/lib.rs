//! Lazy arrays at the speed of your machine.
//!
//! Build arrays with [`array()`], [`arange`](ops::arange), [`zeros`](ops::zeros); combine them with operators, methods
//! and the functions of [`ops`]; nothing is computed until a value is read or [`eval`] is called.
//!
//! ```
//! use lapis::prelude::*;
//!
//! let a = array([1.0f32, 2.0, 3.0]);
//! let b = array([10.0f32, 20.0, 30.0]);
//! assert_eq!((&a + &b).to_vec::<f32>()?, [11.0, 22.0, 33.0]);
//! # Ok::<(), lapis::Error>(())
//! ```
#![forbid(unsafe_code)]

pub use lapis_core::ops::{fft, linalg};
pub use lapis_core::*;
pub use lapis_io as io;

// Linked for their backends.
use lapis_cpu as _;
use lapis_linalg as _;

/// What most programs need: `use lapis::prelude::*`.
pub mod prelude {
    pub use lapis_core::array::{Array, array};
    pub use lapis_core::dtype::Dtype;
    pub use lapis_core::ops::{self, Ellipsis, NewAxis, Step as _};
    pub use lapis_core::{Error, Result, eval};
}
