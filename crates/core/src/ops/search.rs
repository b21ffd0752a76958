//! Where elements are and which there are: results whose shape depends on values, so that their input is evaluated.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::{Operand, arange, argsort, astype, concatenate, cumsum, full, index_update, less, minimum, not_equal};
use crate::ops::{reshape, searchsorted, select, slice, subtract, take, zeros};
use smallvec::SmallVec;

/// The indices of the elements that are not zero, in row-major order: one int64 array for each axis (one-argument
/// `where`). Evaluates `a`.
///
/// # Errors
/// Faults found while evaluating.
pub fn nonzero(a: &Array) -> Result<Vec<Array>> {
    let mask = astype(a, Dtype::Bool)?.to_bytes()?;
    let shape = a.shape();
    let count = mask.iter().filter(|&&b| b != 0).count();
    let list = |_: &usize| {
        let mut list: Vec<i64> = Vec::new();
        let reserved = list.try_reserve_exact(count);
        reserved.map(|()| list).map_err(|_| Error::memory(format!("[nonzero] no memory for {count} indices")))
    };
    let mut indices: Vec<Vec<i64>> = shape.iter().map(list).collect::<Result<_>>()?;
    let Some((&width, outer)) = shape.split_last() else { return Ok(Vec::new()) };
    // Outer indices change once a row.
    let mut at: SmallVec<[i64; 4]> = SmallVec::from_elem(0, outer.len());
    for row in mask.chunks_exact(width.max(1)) {
        let inner = &mut indices[outer.len()];
        let before = inner.len();
        inner.extend((0i64..).zip(row).filter(|&(_, &b)| b != 0).map(|(i, _)| i));
        let found = inner.len() - before;
        for (list, &index) in indices.iter_mut().zip(&at) {
            list.resize(list.len() + found, index);
        }
        for axis in (0..outer.len()).rev() {
            at[axis] += 1;
            if at[axis] < outer[axis] as i64 {
                break;
            }
            at[axis] = 0;
        }
    }
    indices.into_iter().map(|list| Array::try_from_vec(list, &[count])).collect()
}

/// The distinct values of an array; see [`unique`]. All parts are lazy: those that are not read cost nothing.
pub struct Unique {
    /// The values, ascending; dtype of the array.
    pub values: Array,
    /// Position of the first occurrence of each in the flattened array, uint32.
    pub indices: Array,
    /// For each element of the array the position of its value in `values`, uint32; shape of the array.
    pub inverse: Array,
    /// How often each occurs, int32; 0 for padding.
    pub counts: Array,
}

/// The distinct values of the flattened array, ascending (`mx.unique`); every NaN is a value of its own, at the end.
///
/// With a `size` there are as many: the first ones, or padding with `fill` (the smallest value by default), whose
/// index is that of the smallest value. Without a size the array is evaluated to count them.
///
/// # Errors
/// An empty array with a size and without `fill`; faults found while evaluating.
pub fn unique(a: &Array, size: impl Into<Option<usize>>, fill: Option<&dyn Operand>) -> Result<Unique> {
    let flat = reshape(a, &[-1])?;
    let n = flat.size();
    let size = size.into();
    let fill = fill.map(|f| f.arg().materialize(a.dtype(), f.arg().shape())).transpose()?;
    if n == 0 {
        let size = size.unwrap_or(0);
        let values = match &fill {
            _ if size == 0 => flat,
            Some(fill) => full(&[size], fill, None)?,
            None => return Err(Error::value(format!("[unique] {size} values of an empty array need a fill value"))),
        };
        let (indices, inverse) = (zeros::<u32>(&[size])?, zeros::<u32>(a.shape())?);
        return Ok(Unique { values, indices, inverse, counts: zeros::<i32>(&[size])? });
    }
    let order = argsort(&flat, Some(0))?;
    let sorted = take(&flat, &order, 0)?;
    let (tail, head) = (slice(&sorted, &[(Some(1), None, 1)])?, slice(&sorted, &[(None, Some(-1), 1)])?);
    let is_new = concatenate(&[zeros::<bool>(&[1])?, not_equal(&tail, &head)?], 0)?;
    // The number of the value that stands at each sorted place.
    let rank = cumsum(&is_new, Some(0), false, true, Some(Dtype::Uint32))?;
    let size = match size {
        Some(size) => size,
        None => take(&rank, &Array::from_vec(vec![-1], &[1]), 0)?.item::<u32>()? as usize + 1,
    };
    let numbers = arange(0, size, 1, Some(Dtype::Uint32))?;
    let first = searchsorted(&rank, &numbers, false)?;
    let after = searchsorted(&rank, &numbers, true)?;
    let exists = less(&first, n)?;
    let first = select(&exists, &first, 0)?;
    let values = take(&sorted, &first, 0)?;
    let counts = astype(&subtract(&after, &select(&exists, &first, n)?)?, Dtype::Int32)?;
    let clipped = minimum(&rank, size.saturating_sub(1))?;
    let inverse = index_update(&zeros::<u32>(&[n])?, &order, &clipped)?;
    Ok(Unique {
        values: if let Some(fill) = &fill { select(&exists, &values, fill)? } else { values },
        indices: take(&order, &first, 0)?,
        inverse: reshape(&inverse, a.shape())?,
        counts,
    })
}

impl Array {
    /// The indices of the elements that are not zero; see [`nonzero`].
    #[track_caller]
    pub fn nonzero(&self) -> Vec<Array> {
        crate::or_panic(nonzero(self))
    }
}
