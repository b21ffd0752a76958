//! Transforms: derivatives, mapping, compilation, and their nesting.

mod basic;
mod check;
mod interface;
mod linear;
mod structure;
