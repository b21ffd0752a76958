//! Where elements are: results whose shape depends on values, so that their input is evaluated.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::astype;
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
    let mut indices: Vec<Vec<i64>> = shape.iter().map(|_| Vec::with_capacity(count)).collect();
    let Some((&width, outer)) = shape.split_last() else { return Ok(Vec::new()) };
    // Outer indices change once a row.
    let mut at: SmallVec<[i64; 4]> = SmallVec::from_elem(0, outer.len());
    for row in mask.chunks_exact(width.max(1)) {
        for (i, _) in row.iter().enumerate().filter(|&(_, &b)| b != 0) {
            for (list, &index) in indices.iter_mut().zip(&at) {
                list.push(index);
            }
            indices[outer.len()].push(i as i64);
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

impl Array {
    /// The indices of the elements that are not zero; see [`nonzero`].
    #[track_caller]
    pub fn nonzero(&self) -> Vec<Array> {
        crate::or_panic(nonzero(self))
    }
}
