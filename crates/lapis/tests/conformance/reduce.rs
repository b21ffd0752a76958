//! Reductions and statistics.

use crate::call::{Call, Outcome, one};
use lapis::ops;

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    macro_rules! table {
        ($($name:ident)*) => {
            match c.op {
                $(stringify!($name) => return one(ops::$name(&c.array(0), c.axes("axis"), c.attrs.flag("keepdims"))),)*
                _ => {}
            }
        };
    }
    table!(sum prod max min all any mean median count_nonzero logsumexp);
    let keepdims = c.attrs.flag("keepdims");
    let ddof = || Ok(c.count("ddof")?.unwrap_or(0));
    one(match c.op {
        "minmax" => return Some(ops::minmax(&c.array(0), c.axes("axis"), keepdims).map(Vec::from)),
        "var" => ddof().and_then(|ddof| ops::var(&c.array(0), c.axes("axis"), keepdims, ddof)),
        "std" => ddof().and_then(|ddof| ops::std(&c.array(0), c.axes("axis"), keepdims, ddof)),
        // `precise` changes nothing: the wide accumulator is always used.
        "softmax" => ops::softmax(&c.array(0), c.axes("axis")),
        "trace" => {
            let (axis1, axis2) = (c.axis("axis1", 0), c.axis("axis2", 1));
            ops::trace(&c.array(0), c.attrs.int("offset").unwrap_or(0), axis1, axis2, c.attrs.dtype("dtype"))
        }
        "argmax" => ops::argmax(&c.array(0), c.axis_or_none(None), keepdims),
        "argmin" => ops::argmin(&c.array(0), c.axis_or_none(None), keepdims),
        "diff" => c.count("n").and_then(|n| ops::diff(&c.array(0), n.unwrap_or(1), c.axis("axis", -1))),
        _ => return None,
    })
}
