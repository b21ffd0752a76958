//! Transforms: derivatives, mapping, compilation, and their nesting.

mod basic;
mod cached;
mod check;
mod fast;
mod interface;
mod linear;
mod quantized;
mod structure;
