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
//!
//! # What is stored, and what only passes through
//!
//! A value that somebody holds a handle to is wanted: an evaluation that comes by it also stores it. Values without a
//! handle live in one pass over memory. Rust drops temporaries at the end of a statement, so build long expressions in a
//! function that returns the array, or bind the result and evaluate it in the next statement:
//!
//! ```
//! use lapis::prelude::*;
//!
//! fn silu_mul(x: &Array, y: &Array) -> Array {
//!     x * x.sigmoid() * y
//! }
//!
//! let x = array([1.0f32, 2.0]);
//! let z = silu_mul(&x, &x);
//! z.eval()?; // one pass, one result
//! # Ok::<(), lapis::Error>(())
//! ```
#![forbid(unsafe_code)]

pub use lapis_core::ops::{fft, linalg};
pub use lapis_core::*;
pub use lapis_cpu::logits;
pub use lapis_cpu::pool::give_way;
pub use lapis_io as io;
pub use lapis_io::{export_function, import_function};

// Linked for their backends.
use lapis_cpu as _;
use lapis_linalg as _;

/// The kernels in use and how exact they are: results of others, on this machine or another, may differ in their last bits.
pub fn kernels() -> String {
    format!("{:?} {:?}", lapis_cpu::isa::features(), lapis_cpu::quant::arithmetic())
}

/// What most programs need: `use lapis::prelude::*`.
pub mod prelude {
    pub use lapis_core::array::{Array, array};
    pub use lapis_core::dtype::Dtype;
    pub use lapis_core::ops::{self, Ellipsis, NewAxis, Step as _};
    pub use lapis_core::{Error, Result, eval};
}
