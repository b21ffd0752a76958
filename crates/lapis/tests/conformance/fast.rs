//! Fast operations.

use crate::call::{Call, In, Outcome, one};
use lapis::ops::fast::{self, AttentionMask, AttentionOptions, Frequencies, Offset};
use lapis::scalar::Scalar;
use lapis::{Array, Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    let eps = || c.attrs.float("eps").unwrap();
    one(match c.op {
        "fast.gated_delta_update" => {
            let (a, state, mask) = (|i| c.array(i), c.maybe(5), c.maybe(6));
            let out = fast::gated_delta_update(&a(0), &a(1), &a(2), &a(3), &a(4), state.as_ref(), mask.as_ref());
            return Some(out.map(Vec::from));
        }
        "fast.rms_norm" => fast::rms_norm(&c.array(0), c.maybe(1).as_ref(), eps()),
        "fast.layer_norm" => fast::layer_norm(&c.array(0), c.maybe(1).as_ref(), c.maybe(2).as_ref(), eps()),
        "fast.cross_entropy" => fast::cross_entropy(&c.array(0), &c.array(1)),
        "fast.rope" => rope(c),
        "fast.scaled_dot_product_attention" => attention(c),
        _ => return None,
    })
}

fn rope(c: &Call) -> Result<Array> {
    let given = c.maybe(2);
    let frequencies = match (c.attrs.float("base"), &given) {
        (Some(base), None) => Frequencies::Base(base),
        (None, Some(freqs)) => Frequencies::Given(freqs),
        // What the type of `frequencies` rules out in Rust.
        _ => return Err(Error::value("[rope] one of base and freqs")),
    };
    let operand = c.operand(1);
    let offset = match &operand {
        In::Scalar(Scalar::Int(n)) => Offset::Number(*n as i64),
        In::Array(a) => Offset::Array(a),
        _ => panic!("an offset is an integer or an array"),
    };
    let dims = c.count("dims")?.unwrap();
    fast::rope(&c.array(0), dims, c.attrs.flag("traditional"), frequencies, c.attrs.float("scale").unwrap(), offset)
}

fn attention(c: &Call) -> Result<Array> {
    let (mask, sinks) = (c.maybe(3), c.maybe(4));
    let mask = match (c.attrs.text("mask"), &mask) {
        (None, None) => AttentionMask::None,
        (None, Some(mask)) => AttentionMask::Array(mask),
        (Some("causal"), None) => AttentionMask::Causal,
        _ => return Err(Error::value("[scaled_dot_product_attention] unknown mask")),
    };
    let scale = c.attrs.float("scale").unwrap();
    let options = AttentionOptions { scale, mask, sinks: sinks.as_ref(), ..AttentionOptions::default() };
    fast::scaled_dot_product_attention(&c.array(0), &c.array(1), &c.array(2), &options)
}
