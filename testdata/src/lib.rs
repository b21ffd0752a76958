//! The conformance cases: what each operation of lapis must answer, as data.
//!
//! Reads `cases/*.json` (format: `README.md` beside this crate), builds typed buffers and the strided views the cases
//! ask for, and compares results with good messages. Knows dtypes and error kinds, but no array and no backend, so
//! that every backend and every binding can run the same cases.
#![forbid(unsafe_code)]

mod attrs;
mod case;
mod compare;
mod values;
mod view;

pub use attrs::Attrs;
pub use case::{
    Case, Derivatives, Expect, Expected, Freedom, Input, Printed, families, load, load_derivatives, load_names,
    load_printing, load_tables,
};
pub use compare::{Tolerance, compare};
pub use values::{Values, round_bf16, round_f16};
pub use view::{Layout, View};
