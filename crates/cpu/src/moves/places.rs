//! Index arrays turned into offsets, every index checked.

use crate::geometry::Loops;
use lapis_core::buffer::Tensor;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};
use lapis_core::shape::row_strides;

/// Indices turned into offsets at once where they are not kept.
pub(super) const LOT: usize = 512;

/// An indexed axis.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    /// Its number, for messages.
    pub(super) axis: usize,
    /// Its size.
    pub(super) size: usize,
    /// Distance of neighbours, in elements.
    pub(super) stride: isize,
}

/// Index arrays of one shape, read in row-major order.
pub(super) struct Places<'a> {
    op: &'static str,
    indices: &'a [Tensor],
    axes: Vec<Axis>,
    loops: Loops,
    /// How many places the arrays name.
    pub(super) len: usize,
}

impl<'a> Places<'a> {
    /// `axes` parallel to `indices`, of which there is at least one.
    pub(super) fn new(op: &'static str, indices: &'a [Tensor], axes: Vec<Axis>) -> Places<'a> {
        let shape = &indices[0].shape;
        let rows = row_strides(shape);
        let mut operands: Vec<&[isize]> = vec![&rows];
        operands.extend(indices.iter().map(|t| t.strides.as_slice()));
        Places { op, indices, axes, loops: Loops::new(shape, &operands), len: indices[0].size() }
    }

    /// The offsets, in elements, of the places from `start` on.
    ///
    /// # Errors
    /// An index error for the first index out of range.
    pub(super) fn offsets(&self, start: usize, out: &mut [isize]) -> Result<()> {
        out.fill(0);
        let inner = self.loops.shape.len() - 1;
        for (k, (index, &axis)) in self.indices.iter().zip(&self.axes).enumerate() {
            let step = self.loops.strides[k + 1][inner];
            let mut result = Ok(());
            self.loops.rows_of([k + 1], start, out.len(), |first, [at], len| {
                if result.is_ok() {
                    let from = index.ptr().wrapping_offset(at * index.dtype.size() as isize);
                    // SAFETY: the nest stays inside the index array.
                    result =
                        unsafe { add_offsets(self.op, index.dtype, from, step, axis, &mut out[first..first + len]) };
                }
            });
            result?;
        }
        Ok(())
    }

    /// Whether every index is good.
    ///
    /// # Errors
    /// As [`Places::offsets`].
    pub(super) fn check(&self) -> Result<()> {
        let mut lot = [0; LOT];
        (0..self.len).step_by(LOT).try_for_each(|at| self.offsets(at, &mut lot[..LOT.min(self.len - at)]))
    }

    /// All offsets, as [`Places::offsets`].
    pub(super) fn all(&self) -> Result<Vec<isize>> {
        let mut out = super::room(self.len)?;
        out.resize(self.len, 0);
        if self.len > 0 {
            self.offsets(0, &mut out)?;
        }
        Ok(out)
    }
}

/// Adds `index * stride` for `out.len()` indices at distance `step`; negative indices count from the end.
///
/// # Safety
/// As many elements of `dtype` can be read from `from` on.
///
/// # Errors
/// An index error for the first index out of range.
pub(super) unsafe fn add_offsets(
    op: &str,
    dtype: Dtype,
    from: *const u8,
    step: isize,
    axis: Axis,
    out: &mut [isize],
) -> Result<()> {
    macro_rules! read {
        ($t:ty) => {{
            let from = from.cast::<$t>();
            // SAFETY: the caller vouches for every element.
            let read = |i: usize| unsafe { from.offset(i as isize * step).read() };
            add(|i| read(i) as i64, axis, out).map(|i| read(i) as i128)
        }};
    }
    let bad = match dtype {
        Dtype::Int8 => read!(i8),
        Dtype::Int16 => read!(i16),
        Dtype::Int32 => read!(i32),
        Dtype::Int64 => read!(i64),
        Dtype::Uint8 => read!(u8),
        Dtype::Uint16 => read!(u16),
        Dtype::Uint32 => read!(u32),
        _ => {
            let from = from.cast::<u64>();
            // SAFETY: the caller vouches for every element.
            let read = |i: usize| unsafe { from.offset(i as isize * step).read() };
            // Values beyond 63 bits lie below every axis when read as signed: none wraps into range.
            add(|i| i64::try_from(read(i)).unwrap_or(i64::MIN), axis, out).map(|i| read(i) as i128)
        }
    };
    match bad {
        None => Ok(()),
        Some(value) => Err(Error::index(format!(
            "[{op}] index {value} is out of range for axis {} of size {}",
            axis.axis, axis.size
        ))),
    }
}

/// Adds offsets; gives the position of the first index out of range.
#[inline(always)]
fn add(index: impl Fn(usize) -> i64, axis: Axis, out: &mut [isize]) -> Option<usize> {
    let n = axis.size as i64;
    let mut bad = false;
    for (i, o) in out.iter_mut().enumerate() {
        let v = index(i);
        let v = if v < 0 { v.wrapping_add(n) } else { v };
        bad |= v as u64 >= n as u64;
        *o = o.wrapping_add((v as isize).wrapping_mul(axis.stride));
    }
    let is_bad = |&i: &usize| {
        let v = index(i);
        v >= n || v < -n
    };
    if bad { (0..out.len()).find(is_bad) } else { None }
}
