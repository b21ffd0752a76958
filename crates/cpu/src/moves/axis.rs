//! One index an element: reading and writing along an axis with an index array of the array's own shape.
//!
//! Moves one element and one index in, one element out.

use super::combine::{PutFn, narrow_all, pick_fn, put_fn, wide_put_fn};
use super::gather::FirstError;
use super::places::{Axis, LOT, Places, add_offsets};
use super::widened;
use crate::geometry::Loops;
use crate::pool::{self, SendPtr};
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use lapis_core::ops::{Combine, GatherAxis, ScatterAxis};
use lapis_core::shape::{Strides, row_strides};

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
    // Nothing is written before every index is known to be good.
    Places::new(NAME, std::slice::from_ref(index), vec![axis]).check()?;
    if out.dtype.is_half() && matches!(op.combine, Combine::Sum | Combine::Prod) {
        let wide = widened(out)?;
        write(axis, index, update, &wide, wide_put_fn(op.combine, out.dtype));
        narrow_all(out.dtype, wide.ptr().cast(), out.ptr(), out.size());
    } else {
        write(axis, index, update, out, put_fn(op.combine, out.dtype));
    }
    Ok(())
}

const NAME: &str = "put_along_axis";

/// Puts every update where its index says in `out`. The indices have been checked.
fn write(axis: Axis, index: &Tensor, update: &Tensor, out: &Tensor, put: PutFn) {
    let rows = row_strides(&index.shape);
    let target = still(out, axis.axis);
    // Tasks share the longest of the other axes: they never meet in a place.
    let cut = (0..index.shape.len()).filter(|&i| i != axis.axis).max_by_key(|&i| index.shape[i]);
    let len = cut.map_or(1, |i| index.shape[i]);
    let grain = (GRAIN / (index.size() / len).max(1)).max(1);
    let (to, from, by) = (SendPtr(out.ptr()), SendPtr(update.ptr()), SendPtr(index.ptr()));
    pool::for_each_chunk(len, grain, &|range| {
        let mut shape = index.shape.clone();
        let mut base = [0; 3];
        if let Some(i) = cut {
            shape[i] = range.len();
            base = [index.strides[i], target[i], update.strides[i]].map(|s| s * range.start as isize);
        }
        let loops = Loops::new(&shape, &[&rows, &index.strides, &target, &update.strides]);
        let inner = loops.shape.len() - 1;
        let [is, ds, ss] = [1, 2, 3].map(|k: usize| loops.strides[k][inner]);
        let mut lot = [0isize; LOT];
        loops.rows_of([1, 2, 3], 0, shape.iter().product(), |_, first, len| {
            for at in (0..len).step_by(LOT) {
                let offsets = &mut lot[..LOT.min(len - at)];
                offsets.fill(0);
                let place =
                    |k: usize, step: isize, size: usize| (base[k] + first[k] + at as isize * step) * size as isize;
                // SAFETY: the nest stays inside indices and updates, checked offsets inside the target.
                unsafe {
                    let indices = by.get().offset(place(0, is, index.dtype.size()));
                    if add_offsets(NAME, index.dtype, indices, is, axis, offsets).is_ok() {
                        let from = from.get().offset(place(2, ss, update.dtype.size()));
                        put(
                            to.get().offset(place(1, ds, out.dtype.size())),
                            ds,
                            offsets.as_ptr(),
                            from,
                            ss,
                            offsets.len(),
                        );
                    }
                }
            }
        });
    });
}
