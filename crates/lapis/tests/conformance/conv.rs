//! conv

use crate::call::{Call, Outcome};

pub(crate) fn run(_: &Call) -> Option<Outcome> {
    None
}
