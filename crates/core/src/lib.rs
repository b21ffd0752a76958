//! What an array is and what can be done to it: lazy graph, ops, scheduling.
//!
//! Knows no kernel and no file. The way through: [`array::Array`] is a handle to a node, [`ops`] builds nodes,
//! [`schedule`] evaluates them on a [`backend::Backend`].
#![forbid(unsafe_code)]

pub mod array;
pub mod backend;
pub mod buffer;
pub mod distributed;
pub mod dtype;
pub mod error;
pub mod graph;
pub mod memory;
pub mod node;
pub mod ops;
pub mod print;
pub mod random;
pub mod scalar;
pub mod schedule;
pub mod shape;
pub mod stream;
pub mod transforms;

pub use array::{Array, array};
pub use dtype::Dtype;
pub use error::{Error, ErrorKind, Result};
pub use schedule::{Replay, async_eval, clear_streams, eval, synchronize};
pub use stream::{Device, Stream};

/// The value, or a panic with the error's text at the caller's position: methods and operators use this.
#[track_caller]
pub(crate) fn or_panic<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            transforms::unwind_if_trying(&error);
            panic!("{error}")
        }
    }
}
