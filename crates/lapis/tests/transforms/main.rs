//! Transforms: derivatives, mapping, compilation, and their nesting.

mod interface;
