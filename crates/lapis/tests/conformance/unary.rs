//! Elementwise operations of one input, and casts.

use crate::call::{Call, Outcome, narrow, one};
use lapis::ops;

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    macro_rules! table {
        ($($name:ident)*) => {
            match c.op {
                $(stringify!($name) => return one(ops::$name(&c.array(0))),)*
                _ => {}
            }
        };
    }
    table!(abs arccos arccosh arcsin arcsinh arctan arctanh bitwise_invert ceil conjugate cos cosh degrees erf erfinv exp
        expm1 floor imag isfinite isinf isnan isneginf isposinf log log10 log1p log2 logical_not negative positive
        radians real reciprocal rsqrt sigmoid sign sin sinh sqrt square stop_gradient tan tanh trunc);
    one(match c.op {
        "round" => ops::round(&c.array(0), c.attrs.int("decimals").map_or(0, narrow)),
        "astype" => ops::astype(&c.array(0), c.attrs.dtype("dtype").unwrap()),
        "view" => ops::view(&c.array(0), c.attrs.dtype("dtype").unwrap()),
        "nan_to_num" => {
            let nan = c.attrs.float("nan").unwrap_or(0.0);
            ops::nan_to_num(&c.array(0), nan, c.attrs.float("posinf"), c.attrs.float("neginf"))
        }
        _ => return None,
    })
}
