//! Linear algebra: factorizations, solves, spectra, norms (`mx.linalg`). Leading axes are batches.
//!
//! The ops compute in float32, float64 or complex64; the functions widen half precision to float32 and round the
//! results back. Kernels are in the crate `lapis-linalg`.

mod cross;
mod factor;
mod norm;
mod solve;
mod spectral;

pub use cross::cross;
pub use factor::{Cholesky, LuFactor, Qr, cholesky, cholesky_inv, lu, lu_factor, qr};
pub use norm::{Norm, norm};
pub use solve::{
    Det, Inv, SlogDet, Solve, SolveTriangular, TriInv, det, inv, slogdet, solve, solve_triangular, tri_inv,
};
pub use spectral::{Eig, Eigh, Svd, Vectors, eig, eigh, eigvals, eigvalsh, pinv, singular_values, svd};

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::view::{permute, reshape_to};
use crate::ops::{Op, add, astype, equal, expect, multiply, reciprocal, select, slice};
use crate::shape::{Shape, show};
use crate::transforms::{Lane, Site};
use smallvec::smallvec;
use std::ops::Range;

/// The dtype the ops compute in for arrays of `dtype`.
fn computes_in(op: &str, dtype: Dtype) -> Result<Dtype> {
    match dtype {
        Dtype::Float32 | Dtype::Float64 | Dtype::Complex64 => Ok(dtype),
        Dtype::Float16 | Dtype::Bfloat16 => Ok(Dtype::Float32),
        _ => Err(Error::dtype(format!("[{op}] takes floating and complex types, not {dtype}; cast it with astype"))),
    }
}

/// `a` in the dtype the ops compute in.
fn widened(op: &str, a: &Array) -> Result<Array> {
    astype(a, computes_in(op, a.dtype())?)
}

/// Checks that there are `count` inputs of one type that the ops compute in, all matrices.
fn expect_matrices(op: &str, inputs: &[Array], count: usize) -> Result<()> {
    expect::count(op, inputs, count)?;
    expect::alike(op, inputs)?;
    expect::dtype(op, &inputs[0], computes_in(op, inputs[0].dtype())? == inputs[0].dtype())?;
    inputs.iter().try_for_each(|a| matrices(op, a).map(|_| ()))
}

/// Inference of an op that gives square matrices like its only input.
fn infer_square(op: &str, inputs: &[Array]) -> Result<Avals> {
    expect_matrices(op, inputs, 1)?;
    square(op, &inputs[0])?;
    Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
}

/// Checks that the last two axes are there and equal; gives their size.
fn square(op: &str, a: &Array) -> Result<usize> {
    let (_, [m, n]) = matrices(op, a)?;
    if m != n {
        return Err(Error::shape(format!("[{op}] needs square matrices; the shape is {}", show(a.shape()))));
    }
    Ok(n)
}

/// `lead` followed by `tail`.
fn joined(lead: &[usize], tail: &[usize]) -> Shape {
    lead.iter().chain(tail).copied().collect()
}

/// An output with the batch axes of `a`, whose last two axes become `tail`.
fn batched(a: &Array, tail: &[usize], dtype: Dtype) -> Aval {
    Aval::new(joined(&a.shape()[..a.ndim() - 2], tail), dtype)
}

/// Conjugate transpose of the last two axes.
fn adjoint(a: &Array) -> Result<Array> {
    let n = a.ndim();
    let a = if a.dtype().is_complex() { crate::ops::conjugate(a)? } else { a.clone() };
    permute(&a, (0..n - 2).chain([n - 1, n - 2]).collect())
}

// ------------------------------------------------------------------ what the rules under transforms share

/// An op of one input over a mapped axis: one more batch axis.
fn batch_of_lanes(op: impl Into<Op>, lanes: &[Lane]) -> Result<Vec<Array>> {
    Ok(Array::apply(op, smallvec![lanes[0].array.clone()])?.into_vec())
}

/// Rows and columns of matrices.
fn block(a: &Array, rows: Range<usize>, columns: Range<usize>) -> Result<Array> {
    let (lead, [m, n]) = matrices("slice", a)?;
    if rows == (0..m) && columns == (0..n) {
        return Ok(a.clone());
    }
    let range = |r: Range<usize>| (Some(r.start as i64), Some(r.end as i64), 1);
    let mut ranges = vec![(None, None, 1); lead.len()];
    ranges.extend([range(rows), range(columns)]);
    slice(a, &ranges)
}

/// Vectors (..., k) as rows (..., 1, k): what multiplies columns.
fn as_row(v: &Array) -> Result<Array> {
    let mut shape: Shape = v.shape().into();
    shape.insert(v.ndim() - 1, 1);
    reshape_to(v, shape)
}

/// Vectors (..., k) as columns (..., k, 1): what multiplies rows.
fn as_column(v: &Array) -> Result<Array> {
    let mut shape: Shape = v.shape().into();
    shape.push(1);
    reshape_to(v, shape)
}

/// Vectors (..., k) on the diagonals of matrices.
fn diagonal_matrix(v: &Array) -> Result<Array> {
    let k = v.shape().last().copied().unwrap_or(0);
    multiply(as_row(v)?, crate::ops::eye(k, None, 0, Some(v.dtype()))?)
}

/// Square matrices with zeros beside the diagonal.
fn diagonal_part(a: &Array) -> Result<Array> {
    let n = a.shape()[a.ndim() - 1];
    select(&crate::ops::eye(n, None, 0, Some(Dtype::Bool))?, a, 0)
}

/// The diagonals of square matrices.
fn diagonal_of(a: &Array) -> Result<Array> {
    crate::ops::sum(&diagonal_part(a)?, -1, false)
}

/// Half of `a` plus its conjugate transpose.
fn hermitian(a: &Array) -> Result<Array> {
    multiply(add(a, adjoint(a)?)?, 0.5)
}

/// `1 / a`, and 0 where `a` is 0; so are its derivatives.
fn reciprocal_or_zero(a: &Array) -> Result<Array> {
    let zero = equal(a, 0)?;
    select(&zero, 0, &reciprocal(&select(&zero, 1, a)?)?)
}

/// `1 / (v_j - v_i)` at row i and column j, 0 where they are equal.
fn gaps(v: &Array) -> Result<Array> {
    reciprocal_or_zero(&crate::ops::subtract(as_row(v)?, as_column(v)?)?)
}

/// The cotangent of output `i`, if there is one.
fn given<'a>(at: &'a Site<'_>, i: usize) -> Option<&'a Array> {
    at.cotangents[i].as_ref()
}

/// The sum of what is there.
fn total(parts: impl IntoIterator<Item = Option<Array>>) -> Result<Option<Array>> {
    let mut sum: Option<Array> = None;
    for part in parts.into_iter().flatten() {
        sum = Some(match sum {
            Some(sum) => add(&sum, &part)?,
            None => part,
        });
    }
    Ok(sum)
}
