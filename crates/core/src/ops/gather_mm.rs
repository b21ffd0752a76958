//! Products of picked matrices, of stretches along K, and of matrices with masked blocks.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::matmul::{matrices, product_dtype};
use crate::ops::view::reshape_to;
use crate::ops::{Rule, arange, astype, broadcast_to, matmul, multiply, select, slice};
use crate::shape::{self, Shape, show};
use smallvec::{SmallVec, smallvec};

/// `a[lhs] @ b[rhs]`: inputs a (..., M, K), b (..., K, N) and two index arrays of one shape, flat positions in the
/// batch axes of a and b. Gives the indices' shape + (M, N).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherMM {
    /// A promise that the indices of b ascend; kernels may use it, results do not depend on it.
    pub sorted: bool,
}

impl Rule for GatherMM {
    fn name(&self) -> &'static str {
        "gather_mm"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let ((_, [m, k]), (_, [k2, n])) = (matrices(self.name(), &inputs[0])?, matrices(self.name(), &inputs[1])?);
        if k != k2 || inputs[2].shape() != inputs[3].shape() {
            let shapes: Vec<_> = inputs.iter().map(|a| show(a.shape())).collect();
            return Err(Error::shape(format!("[gather_mm] shapes {} do not fit", shapes.join(", "))));
        }
        let mut shape: Shape = inputs[2].shape().into();
        shape.extend([m, n]);
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

/// Matrix products of picked matrices (`mx.gather_mm`): entry i of the result is `a[lhs_indices[i]] @
/// b[rhs_indices[i]]`, where indices are flat positions in the batch axes. Missing indices are 0, 1, 2, ... in batch
/// shape; the two index arrays broadcast, to the leading axes of the result. 1-D operands as in [`matmul()`].
/// `sorted_indices` promises that `rhs_indices` ascend, which saves time.
///
/// # Errors
/// Dtypes that are not floating or complex, indices that are not integers, shapes that do not fit. At evaluation: an
/// index out of range.
pub fn gather_mm(
    a: &Array,
    b: &Array,
    lhs_indices: Option<&Array>,
    rhs_indices: Option<&Array>,
    sorted_indices: bool,
) -> Result<Array> {
    if lhs_indices.is_none() && rhs_indices.is_none() {
        return matmul(a, b);
    }
    let dtype = product_dtype("gather_mm", &[a, b])?;
    if a.ndim() == 0 || b.ndim() == 0 {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[gather_mm] shapes {a} and {b}: needs at least 1 dimension")));
    }
    let (row, column) = (a.ndim() == 1, b.ndim() == 1);
    let a2 = if row { reshape_to(a, smallvec![1, a.size()])? } else { a.clone() };
    let b2 = if column { reshape_to(b, smallvec![b.size(), 1])? } else { b.clone() };
    let ((lead_a, [_, k]), (lead_b, [k2, _])) = (matrices("gather_mm", &a2)?, matrices("gather_mm", &b2)?);
    if k != k2 {
        let (a, b) = (show(a.shape()), show(b.shape()));
        let text = format!("[gather_mm] the last axis of shape {a} must match the second to last axis of shape {b}");
        return Err(Error::shape(text));
    }
    let lhs = indices("gather_mm", lhs_indices, lead_a)?;
    let rhs = indices("gather_mm", rhs_indices, lead_b)?;
    let lead = shape::broadcast("gather_mm", lhs.shape(), rhs.shape())?;
    let (lhs, rhs) = (broadcast_to(&lhs, &lead)?, broadcast_to(&rhs, &lead)?);
    let op = GatherMM { sorted: sorted_indices };
    let out = Array::apply1(op, smallvec![astype(&a2, dtype)?, astype(&b2, dtype)?, lhs, rhs])?;
    let drop: SmallVec<[usize; 2]> =
        [(row, lead.len()), (column, lead.len() + 1)].iter().filter(|d| d.0).map(|d| d.1).collect();
    super::view::drop_axes(&out, &drop)
}

fn indices(op: &str, given: Option<&Array>, lead: &[usize]) -> Result<Array> {
    match given {
        Some(i) if !i.dtype().is_integer() => {
            Err(Error::dtype(format!("[{op}] indices are integers, not {}", i.dtype())))
        }
        Some(i) => Ok(i.clone()),
        None => {
            let count = lead.iter().product::<usize>();
            reshape_to(&arange(0, count, 1, Some(Dtype::Int64))?, lead.into())
        }
    }
}

/// Products over stretches of K: inputs a (M, K), b (K, N), segments (..., 2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SegmentedMM;

impl Rule for SegmentedMM {
    fn name(&self) -> &'static str {
        "segmented_mm"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let ((_, [m, _]), (_, [_, n])) = (matrices(self.name(), &inputs[0])?, matrices(self.name(), &inputs[1])?);
        let mut shape: Shape = inputs[2].shape()[..inputs[2].ndim() - 1].into();
        shape.extend([m, n]);
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

/// `a[:, s:e] @ b[s:e, :]` for every pair (s, e) of `segments` (`mx.segmented_mm`): a (M, K), b (K, N), segments
/// (..., 2) of integers give (..., M, N). An empty segment gives zeros.
///
/// # Errors
/// Shapes and dtypes that do not fit. At evaluation: a segment that reaches outside 0..K.
pub fn segmented_mm(a: &Array, b: &Array, segments: &Array) -> Result<Array> {
    let dtype = product_dtype("segmented_mm", &[a, b])?;
    if a.ndim() != 2 || b.ndim() != 2 || a.shape()[1] != b.shape()[0] {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[segmented_mm] needs shapes (M,K) and (K,N), not {a} and {b}")));
    }
    if segments.shape().last() != Some(&2) {
        let s = show(segments.shape());
        return Err(Error::shape(format!("[segmented_mm] segments have shape (...,2), not {s}")));
    }
    if !segments.dtype().is_integer() {
        return Err(Error::dtype(format!("[segmented_mm] segments are integers, not {}", segments.dtype())));
    }
    Array::apply1(SegmentedMM, smallvec![astype(a, dtype)?, astype(b, dtype)?, segments.clone()])
}

/// Matrix product of matrices whose blocks of `block_size` squared are masked (`mx.block_masked_mm`): masks have
/// shape (..., blocks of rows, blocks of columns) of their matrix, sizes rounded up; bool masks select, others
/// multiply. Without masks this is [`matmul()`].
///
/// # Errors
/// A block size other than 32 or 64; masks that do not broadcast; else as [`matmul()`].
pub fn block_masked_mm(
    a: &Array,
    b: &Array,
    block_size: usize,
    mask_out: Option<&Array>,
    mask_lhs: Option<&Array>,
    mask_rhs: Option<&Array>,
) -> Result<Array> {
    if !matches!(block_size, 32 | 64) {
        return Err(Error::value(format!("[block_masked_mm] the block size is 32 or 64, not {block_size}")));
    }
    let dtype = product_dtype("block_masked_mm", &[a, b])?;
    let a = masked(&astype(a, dtype)?, mask_lhs, block_size)?;
    let b = masked(&astype(b, dtype)?, mask_rhs, block_size)?;
    masked(&matmul(&a, &b)?, mask_out, block_size)
}

/// `x` with its blocks selected or multiplied by the entries of `mask`.
fn masked(x: &Array, mask: Option<&Array>, block: usize) -> Result<Array> {
    let Some(mask) = mask else { return Ok(x.clone()) };
    let (lead, [m, n]) = matrices("block_masked_mm", x)?;
    let (rows, columns) = (m.div_ceil(block), n.div_ceil(block));
    let shape_of = |tail: &[usize]| -> Shape { lead.iter().chain(tail).copied().collect() };
    let blocks = shape_of(&[rows, columns]);
    if shape::broadcast("block_masked_mm", mask.shape(), &blocks)? != blocks {
        let (given, wanted) = (show(mask.shape()), show(&blocks));
        let text = format!("[block_masked_mm] a mask of shape {given} does not broadcast to {wanted} blocks");
        return Err(Error::shape(text));
    }
    let mask = reshape_to(&broadcast_to(mask, &blocks)?, shape_of(&[rows, 1, columns, 1]))?;
    let mask = broadcast_to(&mask, &shape_of(&[rows, block, columns, block]))?;
    let mask = reshape_to(&mask, shape_of(&[rows * block, columns * block]))?;
    let whole = (None, None, 1);
    let mut cut: Vec<_> = lead.iter().map(|_| whole).collect();
    cut.extend([(None, Some(m as i64), 1), (None, Some(n as i64), 1)]);
    let mask = slice(&mask, &cut)?;
    if mask.dtype() == Dtype::Bool { select(&mask, x, 0) } else { multiply(x, astype(&mask, x.dtype())?) }
}
