//! Functions of functions: gradients, vectorisation, compilation.
//!
//! A transform runs a closure on tracers, takes the graph that grew from them as a `trace::Tape`, and replays it in
//! its own way: [`vjp`] backwards, [`vmap`] with one axis more, [`compile`] with other inputs. Tracers are arrays and
//! closures build ordinary nodes, so transforms nest in any order. The rules of the ops are in `ops`.

mod compile;
mod custom;
pub(crate) mod decompose;
mod function;
mod grad;
mod jvp;
pub(crate) mod program;
mod rule;
mod sizes;
pub(crate) mod trace;
mod traces;
mod tree;
pub(crate) mod vjp;
mod vmap;

pub(crate) use compile::is_compiling;
pub use compile::{Compiled, compile, compile_shapeless, compile_with_state, disable_compile, enable_compile};
pub use custom::{Custom, CustomFunction, checkpoint, custom_function};
pub use decompose::Decompose;
pub use function::{Function, Listing};
pub use grad::{grad, value_and_grad};
pub use jvp::jvp;
pub use rule::{Grads, Lane, Site, Transform};
pub(crate) use rule::{behind, moved};
pub use trace::{Placeholder, Tracer};
pub(crate) use traces::unwind_if_trying;
pub use tree::{Outcome, Tree};
pub use vjp::vjp;
pub(crate) use vmap::map_made;
pub use vmap::{MapAxes, vmap, vmap_axes};
