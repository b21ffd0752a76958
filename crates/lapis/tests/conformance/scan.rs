//! Cumulative operations.

use crate::call::{Call, Outcome, one};
use lapis::ops;

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    let axis = || c.axis_or_none(None);
    let (reverse, inclusive) = (c.attrs.flag("reverse"), c.attrs.bool("inclusive").unwrap_or(true));
    one(match c.op {
        "cumsum" => ops::cumsum(&c.array(0), axis(), reverse, inclusive, c.attrs.dtype("dtype")),
        "cumprod" => ops::cumprod(&c.array(0), axis(), reverse, inclusive, c.attrs.dtype("dtype")),
        "cummax" => ops::cummax(&c.array(0), axis(), reverse, inclusive),
        "cummin" => ops::cummin(&c.array(0), axis(), reverse, inclusive),
        "logcumsumexp" => ops::logcumsumexp(&c.array(0), axis(), reverse, inclusive),
        _ => return None,
    })
}
