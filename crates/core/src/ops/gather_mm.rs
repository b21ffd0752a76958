//! Products of picked matrices, of stretches along K, and of matrices with masked blocks.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::elementwise::conj;
use crate::ops::gather::expect_integers;
use crate::ops::matmul::{adjoint, expect_products, matrices, product_dtype};
use crate::ops::scatter::Combine;
use crate::ops::view::{permute, reshape_to};
use crate::ops::{
    Rule, add, arange, argsort, astype, broadcast_to, expect, greater, greater_equal, index_combine, less, logical_and,
    logical_or, matmul, multiply, searchsorted, select, slice, stack, sum, take, zeros_like,
};
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// `a[lhs] @ b[rhs]`: inputs a (..., M, K), b (..., K, N) and two index arrays of one shape, flat positions in the
/// batch axes of a and b. Gives the indices' shape + (M, N).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatherMM {
    /// A promise that the indices of b ascend; kernels may use it, results do not depend on it.
    pub sorted: bool,
}

impl Rule for GatherMM {
    fn name(&self) -> &'static str {
        "gather_mm"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 4)?;
        expect_products(self.name(), &inputs[..2])?;
        for indices in &inputs[2..] {
            expect_integers(self.name(), indices)?;
        }
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentedMM {
    /// A promise that the segments follow each other and cover K; the gradient uses it, results do not depend on it.
    pub partition: bool,
}

impl Rule for SegmentedMM {
    fn name(&self) -> &'static str {
        "segmented_mm"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 3)?;
        expect_products(self.name(), &inputs[..2])?;
        let (&[m, k], &[k2, n]) = (inputs[0].shape(), inputs[1].shape()) else {
            return Err(misfit(&inputs[0], &inputs[1]));
        };
        if k != k2 {
            return Err(misfit(&inputs[0], &inputs[1]));
        }
        let Some((2, lead)) = inputs[2].shape().split_last() else {
            let s = show(inputs[2].shape());
            return Err(Error::shape(format!("[segmented_mm] segments have shape (...,2), not {s}")));
        };
        expect_integers(self.name(), &inputs[2])?;
        let mut shape: Shape = lead.into();
        shape.extend([m, n]);
        Ok(smallvec![Aval::new(shape, inputs[0].dtype())])
    }
}

fn misfit(a: &Array, b: &Array) -> Error {
    let (a, b) = (show(a.shape()), show(b.shape()));
    Error::shape(format!("[segmented_mm] needs shapes (M,K) and (K,N), not {a} and {b}"))
}

/// `a[:, s:e] @ b[s:e, :]` for every pair (s, e) of `segments` (`mx.segmented_mm`): a (M, K), b (K, N), segments
/// (..., 2) of integers give (..., M, N). An empty segment gives zeros.
///
/// # Errors
/// Shapes and dtypes that do not fit. At evaluation: a segment that reaches outside 0..K.
pub fn segmented_mm(a: &Array, b: &Array, segments: &Array) -> Result<Array> {
    let dtype = product_dtype("segmented_mm", &[a, b])?;
    let op = SegmentedMM { partition: false };
    Array::apply1(op, smallvec![astype(a, dtype)?, astype(b, dtype)?, segments.clone()])
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

// ------------------------------------------------------------------ transforms

fn count(lead: &[usize]) -> usize {
    lead.iter().product()
}

/// 0, 1, 2, ... as int64.
fn places(n: usize) -> Result<Array> {
    arange(0, n, 1, Some(Dtype::Int64))
}

/// Batches of matrices with one batch axis.
fn flat(a: &Array) -> Result<Array> {
    let (lead, [m, n]) = matrices("gather_mm", a)?;
    reshape_to(a, smallvec![count(lead), m, n])
}

/// The matrices (T, M, K) as one of (K, T * M).
fn side_by_side(a: &Array) -> Result<Array> {
    let (lead, [m, k]) = matrices("gather_mm", a)?;
    permute(&reshape_to(a, smallvec![count(lead) * m, k])?, smallvec![1, 0])
}

/// `index + first`, or `outside` where the index is not one of 0 to `last`: what is wrong in a lane stays wrong.
fn shifted(index: &Array, first: &Array, last: usize, outside: usize) -> Result<Array> {
    let wrong = logical_or(&less(index, 0)?, &greater(index, last as i64)?)?;
    select(&wrong, outside as i64, &add(index, first)?)
}

impl GatherMM {
    /// The gradient of `b`: for each of its matrices the products of the picks that met it, as one product over the
    /// stretch where they stand once they are sorted.
    fn of_right(&self, g: &Array, at: &Site<'_>) -> Result<Array> {
        let (a, b) = (&at.inputs[0], &at.inputs[1]);
        let total = at.inputs[2].size();
        let flat_index = |i: usize| reshape_to(&astype(&at.inputs[i], Dtype::Int64)?, smallvec![total]);
        let (mut lhs, mut rhs) = (flat_index(2)?, flat_index(3)?);
        let mut g = flat(g)?;
        if !self.sorted {
            let order = argsort(&rhs, None)?;
            (lhs, rhs, g) = (take(&lhs, &order, 0)?, take(&rhs, &order, 0)?, take(&g, &order, 0)?);
        }
        let picked = take(&flat(a)?, &lhs, 0)?;
        let (lead, [m, _]) = (matrices("gather_mm", b)?.0, matrices("gather_mm", a)?.1);
        let each = places(count(lead))?;
        let bounds = [searchsorted(&rhs, &each, false)?, searchsorted(&rhs, &each, true)?];
        let segments = multiply(&astype(&stack(&bounds, 1)?, Dtype::Int64)?, m as i64)?;
        let rows = reshape_to(&g, smallvec![total * m, g.shape()[2]])?;
        let inputs = smallvec![conj(&side_by_side(&picked)?)?, rows, segments];
        reshape_to(&Array::apply1(SegmentedMM { partition: true }, inputs)?, b.shape().into())
    }

    /// The gradient of `a`: the product of each pick, added up.
    fn of_left(&self, g: &Array, at: &Site<'_>) -> Result<Array> {
        let (a, b, lhs, rhs) = (&at.inputs[0], &at.inputs[1], &at.inputs[2], &at.inputs[3]);
        let own = reshape_to(&places(lhs.size())?, lhs.shape().into())?;
        let each = Array::apply1(self.clone(), smallvec![g.clone(), adjoint(b)?, own, rhs.clone()])?;
        let zeros = zeros_like(&flat(a)?, None)?;
        let index = reshape_to(&astype(lhs, Dtype::Int64)?, smallvec![lhs.size()])?;
        reshape_to(&index_combine(&zeros, &index, &flat(&each)?, Combine::Sum)?, a.shape().into())
    }
}

impl Transform for GatherMM {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        let left = at.wanted[0].then(|| self.of_left(&g, at)).transpose()?;
        let right = at.wanted[1].then(|| self.of_right(&g, at)).transpose()?;
        Ok(smallvec![left, right, None, None])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        // Positions count through the matrices of all lanes.
        let index = |of: &Lane, into: &Lane| -> Result<Array> {
            let index = of.spread(size)?;
            if !into.mapped {
                return Ok(index);
            }
            let each = count(matrices("gather_mm", &into.array)?.0) / size.max(1);
            let mut shape: Shape = SmallVec::from_elem(1, index.ndim());
            shape[0] = size;
            let first = reshape_to(&multiply(&places(size)?, each as i64)?, shape)?;
            shifted(&astype(&index, Dtype::Int64)?, &first, each.saturating_sub(1), each * size)
        };
        let (lhs, rhs) = (index(&lanes[2], &lanes[0])?, index(&lanes[3], &lanes[1])?);
        let op = GatherMM { sorted: self.sorted && lanes[1].mapped };
        Ok(vec![Array::apply1(op, smallvec![lanes[0].array.clone(), lanes[1].array.clone(), lhs, rhs])?])
    }
}

impl SegmentedMM {
    /// Gradients where every k is in one segment: rows of `a` and `b` meet the matrix of theirs.
    fn by_owner(g: &Array, at: &Site<'_>) -> Result<[Array; 2]> {
        let (a, b, segments) = (&at.inputs[0], &at.inputs[1], &at.inputs[2]);
        let (g, k) = (flat(g)?, b.shape()[0]);
        let bounds = reshape_to(segments, smallvec![g.shape()[0], 2])?;
        let ends = slice(&bounds, &[(None, None, 1), (Some(1), None, 1)])?;
        let ends = reshape_to(&ends, smallvec![g.shape()[0]])?;
        let owner = searchsorted(&astype(&ends, Dtype::Int64)?, &places(k)?, true)?;
        let meet = |rows: &Array, g: &Array| -> Result<Array> {
            let n = rows.shape()[1];
            let inputs = smallvec![reshape_to(rows, smallvec![k, 1, n])?, g.clone(), places(k)?, owner.clone()];
            let out = Array::apply1(GatherMM { sorted: true }, inputs)?;
            reshape_to(&out, smallvec![k, g.shape()[2]])
        };
        let of_a = permute(&meet(&conj(b)?, &permute(&g, smallvec![0, 2, 1])?)?, smallvec![1, 0])?;
        Ok([of_a, meet(&adjoint(a)?, &g)?])
    }

    /// Gradients where segments may overlap or leave gaps: whole products, of which each segment keeps its own.
    fn by_mask(g: &Array, at: &Site<'_>) -> Result<[Array; 2]> {
        let (a, b, segments) = (&at.inputs[0], &at.inputs[1], &at.inputs[2]);
        let (g, k) = (flat(g)?, b.shape()[0]);
        let bounds = astype(&reshape_to(segments, smallvec![g.shape()[0], 2])?, Dtype::Int64)?;
        let bound = |i: i64| slice(&bounds, &[(None, None, 1), (Some(i), Some(i + 1), 1)]);
        let at = places(k)?;
        let inside = logical_and(&greater_equal(&at, &bound(0)?)?, &greater(&bound(1)?, &at)?)?;
        let kept = |product: Array, shape: Shape| -> Result<Array> {
            sum(&select(&reshape_to(&inside, shape)?, &product, 0)?, 0, false)
        };
        let s = g.shape()[0];
        let of_a = kept(matmul(&g, &adjoint(b)?)?, smallvec![s, 1, k])?;
        Ok([of_a, kept(matmul(&adjoint(a)?, &g)?, smallvec![s, k, 1])?])
    }
}

impl Transform for SegmentedMM {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        let [a, b] = if self.partition { Self::by_owner(&g, at)? } else { Self::by_mask(&g, at)? };
        Ok(smallvec![Some(a), Some(b), None])
    }

    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (a, b, segments) = (&lanes[0].array, &lanes[1].array, &lanes[2]);
        let (m, k, n) = (lanes[0].shape()[0], lanes[0].shape()[1], lanes[1].shape()[1]);
        if lanes[0].mapped || lanes[1].mapped {
            // Lanes after each other along K.
            let (a, b) = (lanes[0].spread(size)?, lanes[1].spread(size)?);
            let wide = reshape_to(&permute(&a, smallvec![1, 0, 2])?, smallvec![m, size * k])?;
            let tall = reshape_to(&b, smallvec![size * k, n])?;
            let mut shape: Shape = SmallVec::from_elem(1, segments.shape().len() + 1);
            shape[0] = size;
            let first = reshape_to(&multiply(&places(size)?, k as i64)?, shape)?;
            let moved = shifted(&astype(&segments.spread(size)?, Dtype::Int64)?, &first, k, size * k + 1)?;
            return Ok(vec![Array::apply1(self.clone(), smallvec![wide, tall, moved])?]);
        }
        let op = SegmentedMM { partition: false };
        Ok(vec![Array::apply1(op, smallvec![a.clone(), b.clone(), segments.array.clone()])?])
    }
}
