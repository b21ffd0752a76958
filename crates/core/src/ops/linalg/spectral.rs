//! Eigenvalues, singular values, and the pseudoinverse made of them.

use super::{adjoint, batched, joined, square, widened};
use crate::array::Array;
use crate::dtype::{Dtype, finfo};
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::view::reshape_to;
use crate::ops::{Rule, astype, greater, matmul, multiply, reciprocal, select, zeros_like};
use smallvec::smallvec;

/// Which singular vectors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vectors {
    /// None.
    No,
    /// As many as there are singular values.
    Thin,
    /// A whole basis on either side.
    Full,
}

/// Singular values, descending, and vectors: (u, s, vᴴ), or (s) alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Svd {
    /// Which vectors.
    pub vectors: Vectors,
}

/// The real dtype beside `dtype`.
fn real(dtype: Dtype) -> Dtype {
    if dtype.is_complex() { Dtype::Float32 } else { dtype }
}

impl Rule for Svd {
    fn name(&self) -> &'static str {
        "linalg.svd"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let a = &inputs[0];
        let (lead, [m, n]) = matrices(self.name(), a)?;
        let k = m.min(n);
        let s = Aval::new(joined(lead, &[k]), real(a.dtype()));
        let (left, right) = match self.vectors {
            Vectors::No => return Ok(smallvec![s]),
            Vectors::Thin => (k, k),
            Vectors::Full => (m, n),
        };
        let (u, v) = (joined(lead, &[m, left]), joined(lead, &[right, n]));
        Ok(smallvec![Aval::new(u, a.dtype()), s, Aval::new(v, a.dtype())])
    }
}

/// Eigenvalues of Hermitian matrices, ascending, and vectors: (w, v) or (w) alone; reads one triangle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Eigh {
    /// Which triangle is read.
    pub upper: bool,
    /// Whether vectors are wanted.
    pub vectors: bool,
}

impl Rule for Eigh {
    fn name(&self) -> &'static str {
        if self.vectors { "linalg.eigh" } else { "linalg.eigvalsh" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let a = &inputs[0];
        let n = square(self.name(), a)?;
        let mut outs: Avals = smallvec![batched(a, &[n], real(a.dtype()))];
        if self.vectors {
            outs.push(Aval::new(a.shape(), a.dtype()));
        }
        Ok(outs)
    }
}

/// Eigenvalues of general matrices and right eigenvectors, complex64: (w, v) or (w) alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Eig {
    /// Whether vectors are wanted.
    pub vectors: bool,
}

impl Rule for Eig {
    fn name(&self) -> &'static str {
        if self.vectors { "linalg.eig" } else { "linalg.eigvals" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        let a = &inputs[0];
        let n = square(self.name(), a)?;
        let mut outs: Avals = smallvec![batched(a, &[n], Dtype::Complex64)];
        if self.vectors {
            outs.push(Aval::new(a.shape(), Dtype::Complex64));
        }
        Ok(outs)
    }
}

/// (u, s, vᴴ) with `a = u diag(s) vᴴ` (`mx.linalg.svd`): u (..., m, m) and vᴴ (..., n, n) unitary, s descending, of the
/// smaller size, real.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a matrix that holds NaN or infinity, by batch index.
pub fn svd(a: &Array) -> Result<(Array, Array, Array)> {
    svd_with(a, Vectors::Full)
}

fn svd_with(a: &Array, vectors: Vectors) -> Result<(Array, Array, Array)> {
    matrices("linalg.svd", a)?;
    let outs = Array::apply(Svd { vectors }, smallvec![widened("linalg.svd", a)?])?;
    let dtype = a.dtype();
    Ok((astype(&outs[0], dtype)?, astype(&outs[1], real(dtype))?, astype(&outs[2], dtype)?))
}

/// The singular values alone, descending (`mx.linalg.svd` with `compute_uv=False`).
///
/// # Errors
/// As [`svd`].
pub fn singular_values(a: &Array) -> Result<Array> {
    matrices("linalg.svd", a)?;
    let s = Array::apply1(Svd { vectors: Vectors::No }, smallvec![widened("linalg.svd", a)?])?;
    astype(&s, real(a.dtype()))
}

/// The Moore-Penrose pseudoinverse (`mx.linalg.pinv`): singular values up to `10 * max(m, n) * eps` times the largest
/// count as zero.
///
/// # Errors
/// As [`svd`].
pub fn pinv(a: &Array) -> Result<Array> {
    let (lead, [m, n]) = matrices("linalg.pinv", a)?;
    if m.min(n) == 0 {
        return crate::ops::full(&joined(lead, &[n, m]), 0, Some(a.dtype()));
    }
    let wide = widened("linalg.pinv", a)?;
    let (u, s, vh) = svd_with(&wide, Vectors::Thin)?;
    let cutoff = multiply(s.max(-1, true), 10.0 * m.max(n) as f64 * finfo(wide.dtype())?.eps)?;
    let inverse = select(&greater(&s, &cutoff)?, &reciprocal(&s)?, &zeros_like(&s, None)?)?;
    let row = reshape_to(&inverse, joined(lead, &[1, m.min(n)]))?;
    let product = matmul(&multiply(&adjoint(&vh)?, &row)?, &adjoint(&u)?)?;
    astype(&product, a.dtype())
}

fn triangle(op: &str, uplo: &str) -> Result<bool> {
    match uplo {
        "L" | "l" => Ok(false),
        "U" | "u" => Ok(true),
        _ => Err(Error::value(format!("[{op}] UPLO is \"L\" or \"U\", not {uplo:?}"))),
    }
}

/// (w, v) with `a v = v diag(w)` for Hermitian matrices (`mx.linalg.eigh`): w ascending and real, eigenvectors in the
/// columns of v, orthonormal. `uplo` says which triangle is read: `"L"` or `"U"`.
///
/// # Errors
/// Shapes, dtypes, another `uplo`. At evaluation: a matrix that holds NaN or infinity, by batch index.
pub fn eigh(a: &Array, uplo: &str) -> Result<(Array, Array)> {
    let upper = triangle("linalg.eigh", uplo)?;
    square("linalg.eigh", a)?;
    let outs = Array::apply(Eigh { upper, vectors: true }, smallvec![widened("linalg.eigh", a)?])?;
    Ok((astype(&outs[0], real(a.dtype()))?, astype(&outs[1], a.dtype())?))
}

/// The eigenvalues of Hermitian matrices, ascending (`mx.linalg.eigvalsh`); see [`eigh`].
///
/// # Errors
/// As [`eigh`].
pub fn eigvalsh(a: &Array, uplo: &str) -> Result<Array> {
    let upper = triangle("linalg.eigvalsh", uplo)?;
    square("linalg.eigvalsh", a)?;
    let w = Array::apply1(Eigh { upper, vectors: false }, smallvec![widened("linalg.eigvalsh", a)?])?;
    astype(&w, real(a.dtype()))
}

/// (w, v) with `a v = v diag(w)` (`mx.linalg.eig`), both complex64: eigenvalues in no promised order, right
/// eigenvectors of length 1 in the columns of v.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a matrix that holds NaN or infinity, by batch index.
pub fn eig(a: &Array) -> Result<(Array, Array)> {
    square("linalg.eig", a)?;
    let outs = Array::apply(Eig { vectors: true }, smallvec![widened("linalg.eig", a)?])?;
    Ok((outs[0].clone(), outs[1].clone()))
}

/// The eigenvalues, complex64, in no promised order (`mx.linalg.eigvals`).
///
/// # Errors
/// As [`eig`].
pub fn eigvals(a: &Array) -> Result<Array> {
    square("linalg.eigvals", a)?;
    Array::apply1(Eig { vectors: false }, smallvec![widened("linalg.eigvals", a)?])
}
