//! Elementwise operations of two and three inputs.

use crate::call::{Call, Outcome, one};
use lapis::ops::{self, Operand};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    macro_rules! table {
        ($($name:ident)*) => {
            match c.op {
                $(stringify!($name) => return one(ops::$name(c.operand(0), c.operand(1))),)*
                _ => {}
            }
        };
    }
    table!(add subtract multiply divide floor_divide remainder power maximum minimum logaddexp arctan2 logical_and
        logical_or logical_xor bitwise_and bitwise_or bitwise_xor left_shift right_shift equal not_equal less
        less_equal greater greater_equal);
    let bound = |i: usize| c.has(i).then(|| c.operand(i));
    let (rtol, atol) = (c.attrs.float("rtol").unwrap_or(1e-5), c.attrs.float("atol").unwrap_or(1e-8));
    let equal_nan = c.attrs.flag("equal_nan");
    one(match c.op {
        "where" if c.inputs.len() == 3 => ops::select(&c.array(0), c.operand(1), c.operand(2)),
        "divmod" => return Some(ops::divmod(c.operand(0), c.operand(1)).map(Vec::from)),
        "clip" => {
            let (low, high) = (bound(1), bound(2));
            ops::clip(&c.array(0), low.as_ref().map(|v| v as &dyn Operand), high.as_ref().map(|v| v as &dyn Operand))
        }
        "isclose" => ops::isclose(c.operand(0), c.operand(1), rtol, atol, equal_nan),
        "allclose" => ops::allclose(c.operand(0), c.operand(1), rtol, atol, equal_nan),
        "array_equal" => ops::array_equal(&c.array(0), &c.array(1), equal_nan),
        _ => return None,
    })
}
