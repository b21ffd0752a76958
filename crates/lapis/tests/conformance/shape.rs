//! Shape and layout.

use crate::call::{Call, In, Outcome, narrow, one, positions};
use lapis::ops::{self, PadMode, PadWidth, Sections};
use lapis::scalar::Scalar;
use lapis::{Array, Error, Result};

pub(crate) fn run(c: &Call) -> Option<Outcome> {
    let axis = || c.axis("axis", 0);
    match c.op {
        "broadcast_shapes" => {
            let shapes: Vec<Vec<usize>> = c.attrs.lists("shapes").unwrap().iter().map(|s| sizes(s)).collect();
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            return one(ops::broadcast_shapes(&shapes).map(|s| positions(&s)));
        }
        "result_type" => {
            let dtype = lapis::dtype::result_type(c.arrays().iter().map(Array::dtype));
            return one(dtype.and_then(|d| ops::full(&[0], 0, Some(d))));
        }
        "broadcast_arrays" => return Some(ops::broadcast_arrays(&c.arrays())),
        "split" => return Some(sections(c).and_then(|s| ops::split(&c.array(0), s, axis()))),
        "unstack" => return Some(ops::unstack(&c.array(0), axis())),
        "atleast_1d" => return Some(c.arrays().iter().map(ops::atleast_1d).collect()),
        "atleast_2d" => return Some(c.arrays().iter().map(ops::atleast_2d).collect()),
        "atleast_3d" => return Some(c.arrays().iter().map(ops::atleast_3d).collect()),
        _ => {}
    }
    one(shaped(c)?)
}

fn sizes(shape: &[i64]) -> Vec<usize> {
    shape.iter().map(|&d| usize::try_from(d).unwrap()).collect()
}

fn sections(c: &Call) -> Result<Sections> {
    let cuts = c.attrs.ints("indices_or_sections").unwrap();
    if c.attrs.is_list("indices_or_sections") {
        return Ok(Sections::from(cuts));
    }
    Ok(Sections::from(c.count("indices_or_sections")?.unwrap()))
}

fn shaped(c: &Call) -> Option<Result<Array>> {
    let shape = || c.attrs.ints("shape").unwrap();
    Some(match c.op {
        "concatenate" => ops::concatenate(&c.arrays(), c.axis_or_none(Some(0))),
        "stack" => ops::stack(&c.arrays(), c.axis("axis", 0)),
        "reshape" => ops::reshape(&c.array(0), &shape()),
        "flatten" => ops::flatten(&c.array(0), c.axis("start_axis", 0), c.axis("end_axis", -1)),
        "unflatten" => ops::unflatten(&c.array(0), c.axis("axis", 0), &shape()),
        "squeeze" => ops::squeeze(&c.array(0), c.axes("axis")),
        "expand_dims" => ops::expand_dims(&c.array(0), c.axes("axis")),
        "transpose" | "permute_dims" => ops::transpose(&c.array(0), c.axis_list("axes").as_deref()),
        "matrix_transpose" => ops::matrix_transpose(&c.array(0)),
        "swapaxes" => ops::swapaxes(&c.array(0), c.axis("axis1", 0), c.axis("axis2", 0)),
        "moveaxis" => ops::moveaxis(&c.array(0), c.axis("source", 0), c.axis("destination", 0)),
        "broadcast_to" => c.sizes("shape").and_then(|s| ops::broadcast_to(&c.array(0), &s)),
        "tile" => c.sizes("reps").and_then(|r| ops::tile(&c.array(0), &r)),
        "repeat" => c.count("repeats").and_then(|n| ops::repeat(&c.array(0), n.unwrap(), c.axis_or_none(None))),
        "roll" => ops::roll(&c.array(0), shift(c), c.axes("axis")),
        "flip" => ops::flip(&c.array(0), c.axes("axis")),
        "pad" => pad(c),
        "contiguous" => ops::contiguous(&c.array(0), c.attrs.flag("allow_col_major")),
        "as_strided" => c.sizes("shape").and_then(|shape| {
            let strides: Vec<isize> = c.attrs.ints("strides").unwrap().iter().map(|&s| s as isize).collect();
            ops::as_strided(&c.array(0), &shape, &strides, c.count("offset")?.unwrap_or(0))
        }),
        "slice" => c
            .sizes("slice_size")
            .and_then(|size| ops::dynamic_slice(&c.array(0), &c.array(1), &c.axis_list("axes").unwrap(), &size)),
        "slice_update" => {
            ops::dynamic_slice_update(&c.array(0), &c.array(1), &c.array(2), &c.axis_list("axes").unwrap())
        }
        _ => return None,
    })
}

/// One shift for several axes is the same for each.
fn shift(c: &Call) -> Vec<i64> {
    let shift = c.attrs.ints("shift").unwrap();
    let axes = c.axis_list("axis").map_or(1, |a| a.len());
    if shift.len() == 1 { vec![shift[0]; axes] } else { shift }
}

fn pad(c: &Call) -> Result<Array> {
    let mode = match c.attrs.text("mode").unwrap_or("constant") {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "symmetric" => PadMode::Symmetric,
        other => return Err(Error::value(format!("[pad] unknown mode {other}"))),
    };
    let pair = |p: &[i64]| -> Result<(usize, usize)> {
        let side = |v: i64| usize::try_from(v).map_err(|_| Error::value(format!("[pad] width {v} is negative")));
        Ok((side(p[0])?, side(*p.last().unwrap())?))
    };
    let nested = c.attrs.get("pad_width").and_then(|v| v.get(0)).is_some_and(|v| v.is_array());
    let width = if nested {
        PadWidth::Each(c.attrs.lists("pad_width").unwrap().iter().map(|p| pair(p)).collect::<Result<_>>()?)
    } else {
        let (lo, hi) = pair(&c.attrs.ints("pad_width").unwrap())?;
        PadWidth::Every(lo, hi)
    };
    let value = if c.has(1) { c.operand(1) } else { In::Scalar(Scalar::from(narrow(0))) };
    ops::pad(&c.array(0), width, mode, value)
}
