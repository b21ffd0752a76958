//! Indexing, take and put.

use crate::call::{Call, Outcome, one};
use lapis::ops::{self, Combine, Index};
use lapis::{Array, Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    one(indexed(c)?)
}

fn indexed(c: &Call) -> Option<Result<Array>> {
    let last = || c.operand(c.inputs.len() - 1);
    let combined = |how| parts(c).and_then(|p| ops::index_combine(&c.array(0), p, last(), how));
    Some(match c.op {
        "getitem" => parts(c).and_then(|p| ops::index(&c.array(0), p)),
        "setitem" => parts(c).and_then(|p| ops::index_update(&c.array(0), p, last())),
        "at.add" => combined(Combine::Sum),
        "at.multiply" => combined(Combine::Prod),
        "at.maximum" => combined(Combine::Max),
        "at.minimum" => combined(Combine::Min),
        "at.subtract" => parts(c).map(|p| c.array(0).at(p).subtract(last())),
        "at.divide" => parts(c).map(|p| c.array(0).at(p).divide(last())),
        "take" => ops::take(&c.array(0), &c.array(1), c.axis_or_none(None)),
        "take_along_axis" => ops::take_along_axis(&c.array(0), &c.array(1), c.axis_or_none(Some(-1))),
        "put_along_axis" => ops::put_along_axis(&c.array(0), &c.array(1), c.operand(2), c.axis_or_none(None)),
        _ => return None,
    })
}

fn parts(c: &Call) -> Result<Vec<Index>> {
    let entries = c.attrs.get("index").and_then(|v| v.as_array()).unwrap();
    let part = |e: &serde_json::Value| {
        if e.is_null() {
            return Ok(Index::NewAxis);
        }
        if e.is_string() {
            return Ok(Index::Ellipsis);
        }
        if let Some(i) = e.get("int") {
            return Ok(Index::At(i.as_i64().unwrap()));
        }
        if let Some(bounds) = e.get("slice") {
            let step = bounds[2].as_i64().unwrap_or(1);
            return Ok(Index::Range { start: bounds[0].as_i64(), stop: bounds[1].as_i64(), step });
        }
        let operand = e.get("array").or(e.get("mask")).and_then(|k| k.as_u64());
        Ok(Index::Array(c.array(operand.ok_or_else(|| Error::value("unknown entry of an index"))? as usize)))
    };
    entries.iter().map(part).collect()
}
