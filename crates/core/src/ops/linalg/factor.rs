//! Triangular and orthogonal factors: Cholesky, LU, QR.

use super::{
    adjoint, batch_of_lanes, batched, block, expect_matrices, given, hermitian, infer_square, joined, square, total,
    tri_inv, widened,
};
use super::{diagonal_matrix, diagonal_of, diagonal_part, solve_triangular};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::{
    Rule, add, astype, broadcast_to, concatenate, expand_dims, eye, matmul, multiply, negative, real, subtract,
    take_along_axis, tril, triu,
};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// The Cholesky factor of Hermitian positive definite matrices; reads one triangle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cholesky {
    /// `a = UᴴU` from the upper triangle, else `a = LLᴴ` from the lower.
    pub upper: bool,
}

impl Rule for Cholesky {
    fn name(&self) -> &'static str {
        "linalg.cholesky"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_square(self.name(), inputs)
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
/// Shapes and dtypes. At evaluation: a zero on the by batch index.
pub fn cholesky_inv(a: &Array, upper: bool) -> Result<Array> {
    square("linalg.cholesky_inv", a)?;
    let inverse = tri_inv(&widened("linalg.cholesky_inv", a)?, upper)?;
    let other = adjoint(&inverse)?;
    let product = if upper { matmul(&inverse, &other)? } else { matmul(&other, &inverse)? };
    astype(&product, a.dtype())
}

/// LU factors with partial pivoting: (packed, pivots, rows) for `a` of shape (..., m, n). Packed holds U and, below
/// its L; row i was exchanged with row `pivots[i]`; `rows[i]` is where row i of `a` is found in `L U`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LuFactor;

impl Rule for LuFactor {
    fn name(&self) -> &'static str {
        "linalg.lu_factor"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect_matrices(self.name(), inputs, 1)?;
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
    let (_, [m, n]) = matrices("linalg.lu", a)?;
    let outs = Array::apply(LuFactor, smallvec![widened("linalg.lu", a)?])?;
    let k = m.min(n);
    let lower = add(tril(&block(&outs[0], 0..m, 0..k)?, -1)?, eye(m, k, 0, Some(outs[0].dtype()))?)?;
    let upper = triu(&block(&outs[0], 0..k, 0..n)?, 0)?;
    Ok((outs[2].clone(), astype(&lower, a.dtype())?, astype(&upper, a.dtype())?))
}

/// Reduced QR factors: (..., m, k) and (..., k, n), k the smaller of m and n.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Qr;

impl Rule for Qr {
    fn name(&self) -> &'static str {
        "linalg.qr"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect_matrices(self.name(), inputs, 1)?;
        let a = &inputs[0];
        let (lead, [m, n]) = matrices(self.name(), a)?;
        let k = m.min(n);
        Ok(smallvec![Aval::new(joined(lead, &[m, k]), a.dtype()), Aval::new(joined(lead, &[k, n]), a.dtype())])
    }
}

/// (Q, R) with `a = QR` (`mx.linalg.qr`): Q (..., m, k) with orthonormal columns, R (..., k, n) upper triangular, k the
/// smaller of m and n. Signs as LAPACK's Householder form: the diagonal of R may be negative; of complex matrices it is
/// real too, of either sign.
///
/// # Errors
/// Shapes and dtypes.
pub fn qr(a: &Array) -> Result<(Array, Array)> {
    matrices("linalg.qr", a)?;
    let outs = Array::apply(Qr, smallvec![widened("linalg.qr", a)?])?;
    Ok((astype(&outs[0], a.dtype())?, astype(&outs[1], a.dtype())?))
}

// ------------------------------------------------------------------ transforms

/// `x r⁻ᴴ` for upper triangular `r`.
fn over_adjoint(x: &Array, r: &Array) -> Result<Array> {
    adjoint(&solve_triangular(r, &adjoint(x)?, true)?)
}

impl Transform for Cholesky {
    /// With S the lower triangle of `LᴴL̄`, its diagonal halved: `Ā = ½ L⁻ᴴ (S + Sᴴ) L⁻¹`, the gradient among Hermitian
    /// matrices.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (mut l, mut g) = (at.outputs[0].clone(), at.cotangent(0)?);
        if self.upper {
            (l, g) = (adjoint(&l)?, adjoint(&g)?);
        }
        let product = matmul(&adjoint(&l)?, &g)?;
        let s = hermitian(&add(tril(&product, -1)?, multiply(diagonal_part(&product)?, 0.5)?)?)?;
        let left = |x: &Array| solve_triangular(&adjoint(&l)?, x, true);
        Ok(smallvec![Some(hermitian(&left(&adjoint(&left(&s)?)?)?)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

impl Transform for LuFactor {
    /// For square matrices, with P the exchange of rows: `PĀ = L⁻ᴴ (tril(LᴴL̄, -1) + triu(ŪUᴴ)) U⁻ᴴ`. Rows of L below the
    /// square and columns of U beside it are solutions of triangular systems.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let Some(g) = given(at, 0) else { return Ok(at.none()) };
        let packed = &at.outputs[0];
        let (_, [m, n]) = matrices(self.name(), packed)?;
        let k = m.min(n);
        let corner = block(packed, 0..k, 0..k)?;
        let (mut of_l, mut of_u) = (block(g, 0..k, 0..k)?, block(g, 0..k, 0..k)?);
        let l = add(tril(&corner, -1)?, eye(k, None, 0, Some(packed.dtype()))?)?;
        let u = triu(&corner, 0)?;
        (of_l, of_u) = (tril(&of_l, -1)?, triu(&of_u, 0)?);
        let mut rest = None;
        if m > k {
            let below = over_adjoint(&block(g, k..m, 0..k)?, &u)?;
            of_u = subtract(&of_u, matmul(&adjoint(&block(packed, k..m, 0..k)?)?, &below)?)?;
            rest = Some((below, -2));
        } else if n > k {
            let beside = solve_triangular(&adjoint(&l)?, &block(g, 0..k, k..n)?, true)?;
            of_l = subtract(&of_l, matmul(&beside, &adjoint(&block(packed, 0..k, k..n)?)?)?)?;
            rest = Some((beside, -1));
        }
        let lower = tril(&matmul(&adjoint(&l)?, &of_l)?, -1)?;
        let upper = triu(&matmul(&of_u, &adjoint(&u)?)?, 0)?;
        let inner = solve_triangular(&adjoint(&l)?, &add(&lower, &upper)?, true)?;
        let mut exchanged = over_adjoint(&inner, &u)?;
        if let Some((rest, axis)) = rest {
            exchanged = concatenate(&[exchanged, rest], axis)?;
        }
        let rows = broadcast_to(&expand_dims(&at.outputs[2], -1)?, packed.shape())?;
        Ok(smallvec![Some(take_along_axis(&exchanged, &rows, -2)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

impl Transform for Qr {
    /// With `M = RR̄ᴴ - Q̄ᴴQ` and its strict lower triangle copied upward: `Ā = (Q̄ + Q sym(M)) R⁻ᴴ`. Of wide matrices the
    /// columns beyond the square are `QR₂`.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let (q, r) = (&at.outputs[0], &at.outputs[1]);
        let (_, [m, n]) = matrices(self.name(), &at.inputs[0])?;
        let k = m.min(n);
        let mut of_q = given(at, 0).cloned();
        let of_r = given(at, 1);
        let mut beside = None;
        if n > k {
            let of_rest = block(&at.cotangent(1)?, 0..k, k..n)?;
            let rest = block(&at.inputs[0], 0..m, k..n)?;
            of_q = total([of_q, Some(matmul(&rest, &adjoint(&of_rest)?)?)])?;
            beside = Some(matmul(q, &of_rest)?);
        }
        let r = triu(&block(r, 0..k, 0..k)?, 0)?;
        let from_r = of_r.map(|g| matmul(&r, &adjoint(&triu(&block(g, 0..k, 0..k)?, 0)?)?)).transpose()?;
        let from_q = of_q.as_ref().map(|g| negative(&matmul(&adjoint(g)?, q)?)).transpose()?;
        let Some(product) = total([from_r, from_q])? else { return Ok(at.none()) };
        let strict = tril(&product, -1)?;
        let middle = real(&diagonal_of(&product)?)?;
        let sym = add(add(&strict, adjoint(&strict)?)?, diagonal_matrix(&middle)?)?;
        let Some(inner) = total([of_q, Some(matmul(q, &sym)?)])? else { return Ok(at.none()) };
        let mut g = over_adjoint(&inner, &r)?;
        if let Some(beside) = beside {
            g = concatenate(&[g, beside], -1)?;
        }
        Ok(smallvec![Some(g)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}
