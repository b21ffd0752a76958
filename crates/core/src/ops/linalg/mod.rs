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
use crate::node::Aval;
use crate::ops::astype;
use crate::ops::matmul::matrices;
use crate::ops::view::permute;
use crate::shape::{Shape, show};

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
