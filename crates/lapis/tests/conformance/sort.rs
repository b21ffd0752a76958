//! Sort and search.

use crate::call::{Call, Outcome, one};
use lapis::Error;
use lapis::ops::{self, Operand};

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
        "unique" => return Some(unique(c)),
        _ => return None,
    })
}

/// The values, then the parts that are asked for.
fn unique(c: &Call) -> Outcome {
    let fill = c.has(1).then(|| c.operand(1));
    let found = ops::unique(&c.array(0), c.count("size")?, fill.as_ref().map(|v| v as &dyn Operand))?;
    let asked = |name: &str, part| c.attrs.flag(name).then_some(part);
    let parts = [
        Some(found.values),
        asked("return_index", found.indices),
        asked("return_inverse", found.inverse),
        asked("return_counts", found.counts),
    ];
    Ok(parts.into_iter().flatten().collect())
}
