//! Convolutions.

use crate::call::{Call, Outcome, one};
use lapis::ops::{self, ConvSettings, ConvolveMode, Spatial};
use lapis::{Array, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    one(convolved(c)?)
}

fn convolved(c: &Call) -> Option<Result<Array>> {
    if !c.op.starts_with("conv") {
        return None;
    }
    let (x, w) = (c.array(0), c.array(1));
    let groups = c.attrs.int("groups").map_or(1, |n| n as usize);
    let (stride, padding, dilation) = (each(c, "stride", 1), each(c, "padding", 0), each(c, "dilation", 1));
    let extra = each(c, "output_padding", 0);
    Some(match c.op {
        "conv1d" => ops::conv1d(&x, &w, stride, padding, dilation, groups),
        "conv2d" => ops::conv2d(&x, &w, stride, padding, dilation, groups),
        "conv3d" => ops::conv3d(&x, &w, stride, padding, dilation, groups),
        "conv_transpose1d" => ops::conv_transpose1d(&x, &w, stride, padding, dilation, extra, groups),
        "conv_transpose2d" => ops::conv_transpose2d(&x, &w, stride, padding, dilation, extra, groups),
        "conv_transpose3d" => ops::conv_transpose3d(&x, &w, stride, padding, dilation, extra, groups),
        "conv_general" => {
            let (padding_lo, padding_hi) = if is_pair(c, "padding") {
                let pair = c.attrs.lists("padding").unwrap();
                (Spatial::from(&pair[0][..]), Spatial::from(&pair[1][..]))
            } else {
                (padding.clone(), padding)
            };
            let settings = ConvSettings {
                stride,
                padding_lo,
                padding_hi,
                kernel_dilation: each(c, "kernel_dilation", 1),
                input_dilation: each(c, "input_dilation", 1),
                groups,
                flip: c.attrs.flag("flip"),
            };
            ops::conv_general(&x, &w, &settings)
        }
        "convolve" => {
            let mode = ConvolveMode::from_name(c.attrs.text("mode").unwrap_or("full"));
            mode.and_then(|mode| ops::convolve(&x, &w, mode))
        }
        _ => return None,
    })
}

/// Whether an attribute is a list of lists: in front and behind.
fn is_pair(c: &Call, name: &str) -> bool {
    c.attrs.get(name).and_then(|v| v.get(0)).is_some_and(|v| v.is_array())
}

/// One number, or one a spatial axis; the default for what is not given, or a pair.
fn each(c: &Call, name: &str, default: i64) -> Spatial {
    if c.attrs.is_int(name) {
        return Spatial::from(c.attrs.int(name).unwrap());
    }
    if !c.attrs.has(name) || is_pair(c, name) {
        return Spatial::from(default);
    }
    Spatial::from(&c.attrs.ints(name).unwrap()[..])
}
