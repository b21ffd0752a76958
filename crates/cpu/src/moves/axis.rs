//! One index an element: reading and writing along an axis with an index array of the array's own shape.
//!
//! Moves one element and one index in, one element out.

use super::combine::{narrow_all, pick_fn, put_fn, wide_put_fn, widen_all};
use super::gather::FirstError;
use super::places::{Axis, Places, add_offsets};
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use lapis_core::ops::{Combine, GatherAxis, ScatterAxis};
use lapis_core::shape::{Strides, row_strides};

/// Indices turned into offsets at once.
const LOT: usize = 512;
/// Elements a task of the pool moves.
const GRAIN: usize = 16 << 10;

/// The strides of `t` with the indexed axis standing still.
fn still(t: &Tensor, axis: usize) -> Strides {
    let mut strides = t.strides.clone();
    strides[axis] = 0;
    strides
}

pub(super) fn gather(op: &GatherAxis, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (a, index) = (&inputs[0], &inputs[1]);
    let n = out.size();
    if n == 0 {
        return Ok(());
    }
    let axis = Axis { axis: op.axis, size: a.shape[op.axis], stride: a.strides[op.axis] };
    let loops = Loops::new(&out.shape, &[&out.strides, &index.strides, &still(a, op.axis)]);
    let inner = loops.shape.len() - 1;
    let (is, ss) = (loops.strides[1][inner], loops.strides[2][inner]);
    let pick = pick_fn(out.dtype.size());
    let (size, isize) = (out.dtype.size() as isize, index.dtype.size() as isize);
    let (to, from, by) = (SendPtr(out.ptr()), SendPtr(a.ptr()), SendPtr(index.ptr()));
    let failed = FirstError::default();
    pool::for_each_chunk(n, GRAIN, &|range| {
        let mut lot = [0isize; LOT];
        let mut result = Ok(());
        loops.rows_of([1, 2], range.start, range.len(), |first, [i, s], len| {
            for at in (0..len).step_by(LOT) {
                let step = at as isize;
                let offsets = &mut lot[..LOT.min(len - at)];
                offsets.fill(0);
                if result.is_err() {
                    return;
                }
                // SAFETY: the nest stays inside all three arrays, checked offsets inside the axis.
                unsafe {
                    let indices = by.get().offset((i + step * is) * isize);
                    result = add_offsets("take_along_axis", index.dtype, indices, is, axis, offsets);
                    if result.is_ok() {
                        let to = to.get().add((range.start + first + at) * size as usize);
                        pick(to, offsets.as_ptr(), from.get().offset((s + step * ss) * size), ss, offsets.len());
                    }
                }
            }
        });
        failed.keep(range.start, result);
    });
    failed.into_result()
}

pub(super) fn scatter(op: &ScatterAxis, inputs: &[Tensor], out: &Tensor) -> Result<()> {
    let (index, update) = (&inputs[1], &inputs[2]);
    if index.size() == 0 {
        return Ok(());
    }
    let axis = Axis { axis: op.axis, size: out.shape[op.axis], stride: out.strides[op.axis] };
    let offsets = Places::new("put_along_axis", std::slice::from_ref(index), vec![axis]).all()?;
    if out.dtype.is_half() && matches!(op.combine, Combine::Sum | Combine::Prod) {
        let mut wide = vec![0f32; out.size()];
        widen_all(out.dtype, out.ptr(), &mut wide);
        let put = wide_put_fn(op.combine, out.dtype);
        write(op.axis, index, &offsets, update, out, wide.as_mut_ptr().cast(), 4, put);
        narrow_all(out.dtype, &wide, out.ptr());
    } else {
        let put = put_fn(op.combine, out.dtype);
        write(op.axis, index, &offsets, update, out, out.ptr(), out.dtype.size(), put);
    }
    Ok(())
}

/// Puts every update at its offset in the array at `to`, which has the geometry of `out` and elements of `size` bytes.
fn write(
    axis: usize,
    index: &Tensor,
    offsets: &[isize],
    update: &Tensor,
    out: &Tensor,
    to: *mut u8,
    size: usize,
    put: super::combine::PutFn,
) {
    let rows = row_strides(&index.shape);
    let target = still(out, axis);
    // Tasks share the longest of the other axes: they never meet in a place.
    let cut = (0..index.shape.len()).filter(|&i| i != axis).max_by_key(|&i| index.shape[i]);
    let len = cut.map_or(1, |i| index.shape[i]);
    let grain = (GRAIN / (offsets.len() / len).max(1)).max(1);
    let (to, from) = (SendPtr(to), SendPtr(update.ptr()));
    pool::for_each_chunk(len, grain, &|range| {
        let mut shape = index.shape.clone();
        let (mut o, mut d, mut s) = (0, 0, 0);
        if let Some(i) = cut {
            shape[i] = range.len();
            let at = range.start as isize;
            (o, d, s) = (at * rows[i], at * target[i], at * update.strides[i]);
        }
        let loops = Loops::new(&shape, &[&rows, &target, &update.strides]);
        let inner = loops.shape.len() - 1;
        let strides = [loops.strides[0][inner], loops.strides[1][inner], loops.strides[2][inner]];
        let all = shape.iter().product();
        loops.rows_of([0, 1, 2], 0, all, |_, at, len| {
            let [os, ds, ss] = strides;
            let (o, d, s) = (o + at[0], d + at[1], s + at[2]);
            let to = to.get().wrapping_offset(d * size as isize);
            let from = from.get().wrapping_offset(s * update.dtype.size() as isize);
            // SAFETY: the nest stays inside offsets and updates, checked offsets inside the target.
            unsafe {
                if os == 1 {
                    put(to, ds, offsets.as_ptr().offset(o), from, ss, len);
                } else {
                    for i in 0..len as isize {
                        let from = from.offset(i * ss * update.dtype.size() as isize);
                        let to = to.offset(i * ds * size as isize);
                        put(to, 0, offsets.as_ptr().offset(o + i * os), from, 0, 1);
                    }
                }
            }
        });
    });
}
