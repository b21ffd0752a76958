//! Arrays from nothing.

use crate::call::{Call, Outcome, narrow, one};
use lapis::ops::{self, Indexing};
use lapis::scalar::Scalar;
use lapis::{Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    if c.op == "meshgrid" {
        let indexing = match c.attrs.text("indexing").unwrap_or("xy") {
            "xy" => Indexing::Xy,
            "ij" => Indexing::Ij,
            other => return Some(Err(Error::value(format!("[meshgrid] unknown indexing {other}")))),
        };
        return Some(ops::meshgrid(&c.arrays(), c.attrs.flag("sparse"), indexing));
    }
    one(created(c)?)
}

fn created(c: &Call) -> Option<Result<lapis::Array>> {
    let dtype = c.attrs.dtype("dtype");
    let k = c.attrs.int("k").unwrap_or(0);
    let filled = |value: f64| {
        let shape = c.sizes("shape")?;
        ops::full(&shape, value, Some(dtype.unwrap_or(lapis::Dtype::Float32)))
    };
    let square = || Ok((c.count("n")?.unwrap_or(0), c.count("m")?));
    let window = |make: fn(usize) -> Result<lapis::Array>| c.count("M").and_then(|m| make(m.unwrap()));
    Some(match c.op {
        "zeros" => filled(0.0),
        "ones" => filled(1.0),
        "full" => c.sizes("shape").and_then(|shape| ops::full(&shape, c.operand(0), dtype)),
        "zeros_like" => ops::zeros_like(&c.array(0), dtype),
        "ones_like" => ops::ones_like(&c.array(0), dtype),
        "full_like" => ops::full(c.array(0).shape(), c.operand(1), Some(dtype.unwrap_or(c.array(0).dtype()))),
        "arange" => {
            let (start, step) =
                (c.scalar("start").unwrap_or(Scalar::Int(0)), c.scalar("step").unwrap_or(Scalar::Int(1)));
            ops::arange(start, c.scalar("stop").unwrap(), step, dtype)
        }
        "linspace" => c.count("num").and_then(|num| {
            let endpoint = c.attrs.bool("endpoint").unwrap_or(true);
            ops::linspace(c.scalar("start").unwrap(), c.scalar("stop").unwrap(), num.unwrap_or(50), endpoint, dtype)
        }),
        "eye" => square().and_then(|(n, m)| ops::eye(n, m, k, dtype)),
        "identity" => square().and_then(|(n, _)| ops::identity(n, dtype)),
        "tri" => square().and_then(|(n, m)| ops::tri(n, m, k, dtype)),
        "tril" => ops::tril(&c.array(0), k),
        "triu" => ops::triu(&c.array(0), k),
        "diag" => ops::diag(&c.array(0), k),
        "diagonal" => {
            let axis = |name, default| c.attrs.int(name).map_or(default, narrow);
            ops::diagonal(&c.array(0), c.attrs.int("offset").unwrap_or(0), axis("axis1", 0), axis("axis2", 1))
        }
        "bartlett" => window(ops::bartlett),
        "blackman" => window(ops::blackman),
        "hamming" => window(ops::hamming),
        "hanning" => window(ops::hanning),
        _ => return None,
    })
}
