//! Eigenvalues, singular values, and the pseudoinverse made of them.

use super::{
    adjoint, as_column, as_row, batch_of_lanes, batched, block, diagonal_matrix, diagonal_of, expect_matrices, gaps,
    given, hermitian, joined, reciprocal_or_zero, solve, square, total, widened,
};
use crate::array::Array;
use crate::dtype::{Dtype, finfo};
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::{
    Rule, add, astype, conjugate, eye, greater, imag, matmul, multiply, negative, reciprocal, select, subtract,
    zeros_like,
};
use crate::transforms::{Grads, Lane, Site, Transform, custom_function};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// Which singular vectors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Vectors {
    /// None.
    No,
    /// As many as there are singular values.
    Thin,
    /// A whole basis on either side.
    Full,
}

/// Singular values, descending, and vectors: (u, s, vᴴ), or (s) alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        expect_matrices(self.name(), inputs, 1)?;
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        expect_matrices(self.name(), inputs, 1)?;
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eig {
    /// Whether vectors are wanted.
    pub vectors: bool,
}

impl Rule for Eig {
    fn name(&self) -> &'static str {
        if self.vectors { "linalg.eig" } else { "linalg.eigvals" }
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect_matrices(self.name(), inputs, 1)?;
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

pub(super) fn svd_thin(a: &Array) -> Result<(Array, Array, Array)> {
    svd_with(a, Vectors::Thin)
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
    let product = custom_function(|x| Ok(vec![pseudoinverse(&x[0])?]))
        .vjp(|x, g, p| Ok(vec![of_pseudoinverse(&x[0], &p[0], &g[0])?]))
        .call(&[wide])?;
    astype(&product[0], a.dtype())
}

fn pseudoinverse(a: &Array) -> Result<Array> {
    let (_, [m, n]) = matrices("linalg.pinv", a)?;
    let (u, s, vh) = svd_thin(a)?;
    let cutoff = multiply(s.max(-1, true), 10.0 * m.max(n) as f64 * finfo(a.dtype())?.eps)?;
    let inverse = select(&greater(&s, &cutoff)?, &reciprocal(&s)?, &zeros_like(&s, None)?)?;
    matmul(&multiply(&adjoint(&vh)?, &as_row(&inverse)?)?, &adjoint(&u)?)
}

/// `-PᴴP̄Pᴴ + (I - AP)P̄ᴴPPᴴ + PᴴPP̄ᴴ(I - PA)`: right for any rank that stays, and for equal singular values.
fn of_pseudoinverse(a: &Array, p: &Array, g: &Array) -> Result<Array> {
    let (_, [m, n]) = matrices("linalg.pinv", a)?;
    let (ph, gh) = (adjoint(p)?, adjoint(g)?);
    let one = |n: usize| eye(n, None, 0, Some(a.dtype()));
    let inner = negative(&matmul(&ph, &matmul(g, &ph)?)?)?;
    let left = matmul(&subtract(one(m)?, matmul(a, p)?)?, &matmul(&gh, &matmul(p, &ph)?)?)?;
    let right = matmul(&matmul(&matmul(&ph, p)?, &gh)?, &subtract(one(n)?, matmul(p, a)?)?)?;
    add(add(inner, left)?, right)
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

// ------------------------------------------------------------------ transforms

impl Transform for Svd {
    /// Values alone: `U diag(s̄) Vᴴ`. With vectors, and 1 over the differences of squared values as F, also
    /// `U (F∘(UᴴŪ - ŪᴴU) Σ + Σ F∘(VᴴV̄ - V̄ᴴV)) Vᴴ`, and what moves vectors out of their span. F is 0 where values are equal:
    /// there, functions that do not depend on the choice of vectors have no such part.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let a = &at.inputs[0];
        if self.vectors == Vectors::No {
            let (u, _, vh) = svd_thin(a)?;
            return Ok(smallvec![Some(matmul(&multiply(&u, as_row(&at.cotangent(0)?)?)?, &vh)?)]);
        }
        let (_, [m, n]) = matrices(self.name(), a)?;
        let k = m.min(n);
        let (s, h) = (&at.outputs[1], |a: &Array| adjoint(a));
        let (u, vh) = (block(&at.outputs[0], 0..m, 0..k)?, block(&at.outputs[2], 0..k, 0..n)?);
        let v = h(&vh)?;
        // What turns a vector of the rest turns the others the opposite way.
        let mut of_u = given(at, 0).map(|g| block(g, 0..m, 0..k)).transpose()?;
        if let (Some(g), Some(sum)) = (given(at, 0), &of_u)
            && at.outputs[0].shape()[s.ndim()] > k
        {
            let rest = block(&at.outputs[0], 0..m, k..m)?;
            let turned = matmul(&rest, &matmul(&h(&block(g, 0..m, k..m)?)?, &u)?)?;
            of_u = Some(subtract(sum, turned)?);
        }
        let mut of_vh = given(at, 2).map(|g| block(g, 0..k, 0..n)).transpose()?;
        if let (Some(g), Some(sum)) = (given(at, 2), &of_vh)
            && at.outputs[2].shape()[s.ndim() - 1] > k
        {
            let rest = block(&at.outputs[2], k..n, 0..n)?;
            let turned = matmul(&h(&matmul(&block(g, k..n, 0..n)?, &v)?)?, &rest)?;
            of_vh = Some(subtract(sum, turned)?);
        }
        let (row, column) = (as_row(s)?, as_column(s)?);
        let f = gaps(&multiply(s, s)?)?;
        let turning = |x: &Array| -> Result<Array> { multiply(&f, subtract(x, h(x)?)?) };
        let mut inner = vec![given(at, 1).map(diagonal_matrix).transpose()?];
        let mut outer = Vec::new();
        if let Some(g) = &of_u {
            let x = matmul(&h(&u)?, g)?;
            inner.push(Some(multiply(turning(&x)?, &row)?));
            if a.dtype().is_complex() {
                let phase = multiply(imag(&diagonal_of(&x)?)?, reciprocal_or_zero(s)?)?;
                inner.push(Some(multiply(diagonal_matrix(&phase)?, crate::dtype::c64::new(0.0, 1.0))?));
            }
            if m > k {
                let outside = multiply(subtract(g, matmul(&u, &x)?)?, reciprocal_or_zero(&row)?)?;
                outer.push(Some(matmul(&outside, &vh)?));
            }
        }
        if let Some(g) = &of_vh {
            let y = h(&matmul(g, &v)?)?;
            inner.push(Some(multiply(&column, turning(&y)?)?));
            if n > k {
                let outside = multiply(reciprocal_or_zero(&column)?, subtract(g, matmul(&h(&y)?, &vh)?)?)?;
                outer.push(Some(matmul(&u, &outside)?));
            }
        }
        if let Some(inner) = total(inner)? {
            let inner = astype(&inner, a.dtype())?;
            outer.push(Some(matmul(&u, &matmul(&inner, &vh)?)?));
        }
        Ok(smallvec![total(outer)?])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

impl Transform for Eigh {
    /// `V (diag(w̄) + F∘(VᴴV̄)) Vᴴ` with 1 over the differences of eigenvalues as F, 0 where they are equal: the gradient
    /// among Hermitian matrices.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let a = &at.inputs[0];
        let v = match self.vectors {
            true => at.outputs[1].clone(),
            false => Array::apply(Eigh { vectors: true, ..self.clone() }, smallvec![a.clone()])?[1].clone(),
        };
        let mut inner = given(at, 0).map(diagonal_matrix).transpose()?;
        if self.vectors
            && let Some(g) = given(at, 1)
        {
            let turned = multiply(gaps(&at.outputs[0])?, matmul(&adjoint(&v)?, g)?)?;
            inner = total([inner, Some(turned)])?;
        }
        let Some(inner) = inner else { return Ok(at.none()) };
        let inner = astype(&inner, a.dtype())?;
        Ok(smallvec![Some(hermitian(&matmul(&v, &matmul(&inner, &adjoint(&v)?)?)?)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

impl Transform for Eig {
    /// `V⁻ᴴ (diag(w̄) + conj(F)∘(VᴴV̄ - VᴴV Re diag(VᴴV̄))) Vᴴ`: as for Hermitian matrices, with vectors that stay of length 1.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let a = &at.inputs[0];
        let v = match self.vectors {
            true => at.outputs[1].clone(),
            false => Array::apply(Eig { vectors: true }, smallvec![a.clone()])?[1].clone(),
        };
        let vh = adjoint(&v)?;
        let mut inner = given(at, 0).map(diagonal_matrix).transpose()?;
        if self.vectors
            && let Some(g) = given(at, 1)
        {
            let x = matmul(&vh, g)?;
            let along = crate::ops::real(&diagonal_of(&x)?)?;
            let across = subtract(&x, multiply(matmul(&vh, &v)?, as_row(&along)?)?)?;
            inner = total([inner, Some(multiply(conjugate(&gaps(&at.outputs[0])?)?, across)?)])?;
        }
        let Some(inner) = inner else { return Ok(at.none()) };
        let g = solve(&vh, &matmul(&inner, &vh)?)?;
        Ok(smallvec![Some(astype(&g, a.dtype())?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}
