//! Triangular and orthogonal factors: Cholesky, LU, QR.

use super::{adjoint, batched, joined, square, tri_inv, widened};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::{Rule, add, astype, eye, matmul, slice, tril, triu};
use smallvec::smallvec;

/// The Cholesky factor of Hermitian positive definite matrices; reads one triangle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cholesky {
    /// `a = UᴴU` from the upper triangle, else `a = LLᴴ` from the lower.
    pub upper: bool,
}

impl Rule for Cholesky {
    fn name(&self) -> &'static str {
        "linalg.cholesky"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

/// The triangular `L` with `a = LLᴴ`, or with `upper` the `U` with `a = UᴴU` (`mx.linalg.cholesky`). Reads the lower
/// (upper) triangle only.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a matrix that is not positive definite, by batch index.
pub fn cholesky(a: &Array, upper: bool) -> Result<Array> {
    square("linalg.cholesky", a)?;
    let factor = Array::apply1(Cholesky { upper }, smallvec![widened("linalg.cholesky", a)?])?;
    astype(&factor, a.dtype())
}

/// The inverse of the matrix whose Cholesky factor is `a` (`mx.linalg.cholesky_inv`).
///
/// # Errors
/// Shapes and dtypes. At evaluation: a zero on the diagonal, by batch index.
pub fn cholesky_inv(a: &Array, upper: bool) -> Result<Array> {
    square("linalg.cholesky_inv", a)?;
    let inverse = tri_inv(&widened("linalg.cholesky_inv", a)?, upper)?;
    let other = adjoint(&inverse)?;
    let product = if upper { matmul(&inverse, &other)? } else { matmul(&other, &inverse)? };
    astype(&product, a.dtype())
}

/// LU factors with partial pivoting: (packed, pivots, rows) for `a` of shape (..., m, n). Packed holds U and, below
/// its diagonal, L; row i was exchanged with row `pivots[i]`; `rows[i]` is where row i of `a` is found in `L U`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LuFactor;

impl Rule for LuFactor {
    fn name(&self) -> &'static str {
        "linalg.lu_factor"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let a = &inputs[0];
        let (_, [m, n]) = matrices(self.name(), a)?;
        Ok(smallvec![
            Aval::new(a.shape(), a.dtype()),
            batched(a, &[m.min(n)], Dtype::Uint32),
            batched(a, &[m], Dtype::Uint32)
        ])
    }
}

/// LU factors in one matrix, and the exchanges of rows (`mx.linalg.lu_factor`): (packed, pivots), where packed has the
/// shape of `a` and row i was exchanged with row `pivots[i]`, in ascending order of i.
///
/// # Errors
/// Shapes and dtypes.
pub fn lu_factor(a: &Array) -> Result<(Array, Array)> {
    matrices("linalg.lu_factor", a)?;
    let outs = Array::apply(LuFactor, smallvec![widened("linalg.lu_factor", a)?])?;
    Ok((astype(&outs[0], a.dtype())?, outs[1].clone()))
}

/// (p, L, U) with `a = L[p, :] U` (`mx.linalg.lu`): row indices (uint32), unit lower triangle, upper triangle.
///
/// # Errors
/// Shapes and dtypes.
pub fn lu(a: &Array) -> Result<(Array, Array, Array)> {
    let (lead, [m, n]) = matrices("linalg.lu", a)?;
    let outs = Array::apply(LuFactor, smallvec![widened("linalg.lu", a)?])?;
    let k = m.min(n);
    let whole = (None, None, 1);
    let cut = |rows: usize, columns: usize| -> Result<Array> {
        let mut ranges: Vec<_> = lead.iter().map(|_| whole).collect();
        ranges.extend([(None, Some(rows as i64), 1), (None, Some(columns as i64), 1)]);
        slice(&outs[0], &ranges)
    };
    let lower = add(tril(&cut(m, k)?, -1)?, eye(m, k, 0, Some(outs[0].dtype()))?)?;
    let upper = triu(&cut(k, n)?, 0)?;
    Ok((outs[2].clone(), astype(&lower, a.dtype())?, astype(&upper, a.dtype())?))
}

/// Reduced QR factors: (..., m, k) and (..., k, n), k the smaller of m and n.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Qr;

impl Rule for Qr {
    fn name(&self) -> &'static str {
        "linalg.qr"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let a = &inputs[0];
        let (lead, [m, n]) = matrices(self.name(), a)?;
        let k = m.min(n);
        Ok(smallvec![Aval::new(joined(lead, &[m, k]), a.dtype()), Aval::new(joined(lead, &[k, n]), a.dtype())])
    }
}

/// (Q, R) with `a = QR` (`mx.linalg.qr`): Q (..., m, k) with orthonormal columns, R (..., k, n) upper triangular, k the
/// smaller of m and n. Signs as LAPACK's Householder form: the diagonal of R may be negative.
///
/// # Errors
/// Shapes and dtypes.
pub fn qr(a: &Array) -> Result<(Array, Array)> {
    matrices("linalg.qr", a)?;
    let outs = Array::apply(Qr, smallvec![widened("linalg.qr", a)?])?;
    Ok((astype(&outs[0], a.dtype())?, astype(&outs[1], a.dtype())?))
}
