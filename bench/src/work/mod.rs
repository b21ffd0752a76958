//! The benchmarks, one file a group. Each states the bytes or operations that bound it.

use crate::measure::{Bench, Measured, Result};

/// One benchmark.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Bench) -> Result<Measured>,
}

/// Every benchmark, in the order of the report.
pub(crate) fn all() -> Vec<Case> {
    vec![]
}
