//! What an array is and what can be done to it.
//!
//! Knows no kernel and no file.
#![forbid(unsafe_code)]

pub mod dtype;
pub mod error;
