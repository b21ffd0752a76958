//! `#[derive(Module)]`: the parameter tree of a struct from its fields.
