//! Sort and search.

use crate::call::{Call, Outcome, one};
use lapis::{Error, ops};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    let axis = || c.axis_or_none(Some(-1));
    let kth = || c.attrs.int("kth").unwrap();
    one(match c.op {
        "nonzero" => return Some(ops::nonzero(&c.array(0))),
        "where" if c.inputs.len() == 1 => return Some(ops::nonzero(&c.array(0))),
        "sort" => ops::sort(&c.array(0), axis()),
        "argsort" => ops::argsort(&c.array(0), axis()),
        "partition" => ops::partition(&c.array(0), kth(), axis()),
        "argpartition" => ops::argpartition(&c.array(0), kth(), axis()),
        "topk" => c.count("k").and_then(|k| ops::topk(&c.array(0), k.unwrap(), axis())),
        "searchsorted" => match c.attrs.text("side").unwrap_or("left") {
            side @ ("left" | "right") => ops::searchsorted(&c.array(0), &c.array(1), side == "right"),
            other => Err(Error::value(format!("[searchsorted] unknown side {other}"))),
        },
        _ => return None,
    })
}
