//! Windows of arrays written from arrays of the same shape: concatenation, padding, slice updates.

use super::block;
use super::combine::row_fn;
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::ops::{Combine, DynamicSlice, DynamicSliceUpdate, Op, Pad, SliceUpdate};
use lapis_core::shape::Strides;

/// Bytes a task of the pool writes.
pub(super) const GRAIN: usize = 128 << 10;

/// Combines `src` into `dst`, which has its shape and dtype; both with any strides.
pub(super) fn merge(combine: Combine, dst: &Tensor, src: &Tensor) {
    let n = dst.size();
    if combine == Combine::Set || n == 0 {
        return block::copy(dst, src);
    }
    let size = dst.dtype.size() as isize;
    let row = row_fn(combine, dst.dtype);
    let loops = Loops::new(&dst.shape, &[&dst.strides, &src.strides]);
    let inner = loops.shape.len() - 1;
    let (ds, ss) = (loops.strides[0][inner], loops.strides[1][inner]);
    let (to, from) = (SendPtr(dst.ptr()), SendPtr(src.ptr()));
    pool::for_each_chunk(n, GRAIN / size as usize, &|range| {
        loops.rows_of([0, 1], range.start, range.len(), |_, [d, s], len| {
            // SAFETY: the nest stays inside both tensors; chunks do not share elements of `dst`.
            unsafe { row(to.get().offset(d * size), ds, from.get().offset(s * size), ss, len) }
        });
    });
}

/// The part of `t` with sizes `shape` that begins at `start`.
fn part(t: &Tensor, start: impl IntoIterator<Item = usize>, shape: &[usize]) -> Tensor {
    let steps = start.into_iter().zip(&t.strides).map(|(i, &s)| i as isize * s).sum::<isize>();
    let offset = t.offset.wrapping_add_signed(steps * t.dtype.size() as isize);
    Tensor { offset, shape: shape.into(), ..t.clone() }
}

/// A start on one axis only.
fn along(axis: usize, at: usize, ndim: usize) -> impl Iterator<Item = usize> {
    (0..ndim).map(move |i| if i == axis { at } else { 0 })
}

pub(super) fn concatenate(axis: usize, inputs: &[Tensor], out: &Tensor) {
    let mut at = 0;
    for input in inputs {
        merge(Combine::Set, &part(out, along(axis, at, out.shape.len()), &input.shape), input);
        at += input.shape[axis];
    }
}

/// Writes every element once: the input into the middle, then axis by axis the slabs around what is there.
pub(super) fn pad(op: &Pad, inputs: &[Tensor], out: &Tensor) {
    let (a, value) = (&inputs[0], &inputs[1]);
    let middle = part(out, op.lo.iter().copied(), &a.shape);
    merge(Combine::Set, &middle, a);
    let fill = |slab: Tensor| {
        let strides = Strides::from_elem(0, slab.shape.len());
        merge(Combine::Set, &slab, &Tensor { shape: slab.shape.clone(), strides, ..value.clone() });
    };
    // The slabs of an axis span the padded sizes of the axes before it and the bare sizes of those after.
    let mut shape = a.shape.clone();
    for axis in 0..shape.len() {
        let start = |at| {
            (0..op.lo.len()).map(move |i| {
                if i == axis {
                    at
                } else if i < axis {
                    0
                } else {
                    op.lo[i]
                }
            })
        };
        for (at, len) in [(0, op.lo[axis]), (op.lo[axis] + a.shape[axis], op.hi[axis])] {
            shape[axis] = len;
            fill(part(out, start(at), &shape));
        }
        shape[axis] = out.shape[axis];
    }
}

pub(super) fn update(op: &SliceUpdate, values: &Tensor, out: &Tensor) {
    if let Some(window) = Op::from(op.window.clone()).look(out) {
        merge(op.combine, &window, values);
    }
}

pub(super) fn dynamic_slice(op: &DynamicSlice, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let from = moving_part("slice", &inputs[0], &inputs[1], &op.axes, &op.size)?;
    merge(Combine::Set, out, &from);
    Ok(())
}

pub(super) fn dynamic_update(op: &DynamicSliceUpdate, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let to = moving_part("slice_update", out, &inputs[2], &op.axes, &inputs[1].shape)?;
    merge(Combine::Set, &to, &inputs[1]);
    Ok(())
}

/// The part of `t` with sizes `shape` whose start on `axes` an array gives.
fn moving_part(op: &str, t: &Tensor, starts: &Tensor, axes: &[usize], shape: &[usize]) -> Result<Tensor> {
    let mut start = vec![0; t.shape.len()];
    for (i, &axis) in axes.iter().enumerate() {
        let (value, n, size) = (integer(starts, i), t.shape[axis] as i128, shape[axis] as i128);
        let first = if value < 0 { value + n } else { value };
        if first < 0 || first + size > n {
            return Err(Error::index(format!(
                "[{op}] a window of size {size} does not fit dimension {axis} of size {n} from start {value}"
            )));
        }
        start[axis] = first as usize;
    }
    Ok(part(t, start, shape))
}

/// Element `i` of a tensor of integers with at most one axis.
fn integer(t: &Tensor, i: usize) -> i128 {
    let at = i as isize * t.strides.first().copied().unwrap_or(0);
    macro_rules! read {
        ($t:ty) => {
            // SAFETY: `i` is an index of the tensor, which holds this type.
            unsafe { t.ptr().cast::<$t>().offset(at).read() as i128 }
        };
    }
    match t.dtype {
        Dtype::Int8 => read!(i8),
        Dtype::Int16 => read!(i16),
        Dtype::Int32 => read!(i32),
        Dtype::Int64 => read!(i64),
        Dtype::Uint8 => read!(u8),
        Dtype::Uint16 => read!(u16),
        Dtype::Uint32 => read!(u32),
        _ => read!(u64),
    }
}
