//! Inverses, linear systems, determinants.

use super::spectral::svd_thin;
use super::{
    adjoint, as_column, as_row, batch_of_lanes, batched, computes_in, diagonal_of, expect_matrices, given,
    infer_square, joined, square, total, widened,
};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::elementwise::conj;
use crate::ops::matmul::matrices;
use crate::ops::reduce::others;
use crate::ops::view::{drop_axes, permute, reshape_to};
use crate::ops::{
    Op, Rule, add, astype, broadcast_to, conjugate, equal, expect, eye, imag, matmul, multiply, negative, ones_like,
    select, stop_gradient, subtract, sum, tril, triu,
};
use crate::shape::{self, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// The inverse of square matrices.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inv;

impl Rule for Inv {
    fn name(&self) -> &'static str {
        "linalg.inv"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_square(self.name(), inputs)
    }
}

/// The inverse of triangular matrices; reads one triangle, the other is zero in the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriInv {
    /// Which triangle.
    pub upper: bool,
}

impl Rule for TriInv {
    fn name(&self) -> &'static str {
        "linalg.tri_inv"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_square(self.name(), inputs)
    }
}

fn infer_solution(op: &str, inputs: &[Array]) -> Result<Avals> {
    expect_matrices(op, inputs, 2)?;
    let n = square(op, &inputs[0])?;
    let ((lead, _), (lead_b, [rows, _])) = (matrices(op, &inputs[0])?, matrices(op, &inputs[1])?);
    expect::fit(op, lead == lead_b && rows == n, inputs)?;
    Ok(smallvec![Aval::new(inputs[1].shape(), inputs[1].dtype())])
}

/// The solution of `a x = b`: a (..., n, n), b (..., n, k), equal batches.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Solve;

impl Rule for Solve {
    fn name(&self) -> &'static str {
        "linalg.solve"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_solution(self.name(), inputs)
    }
}

/// As [`Solve`] for triangular `a`, of which one triangle is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SolveTriangular {
    /// Which triangle.
    pub upper: bool,
}

impl Rule for SolveTriangular {
    fn name(&self) -> &'static str {
        "linalg.solve_triangular"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_solution(self.name(), inputs)
    }
}

/// The determinant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Det;

impl Rule for Det {
    fn name(&self) -> &'static str {
        "linalg.det"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_square(self.name(), inputs)?;
        Ok(smallvec![batched(&inputs[0], &[], inputs[0].dtype())])
    }
}

/// Sign and logarithm of the absolute value of the determinant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlogDet;

impl Rule for SlogDet {
    fn name(&self) -> &'static str {
        "linalg.slogdet"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        infer_square(self.name(), inputs)?;
        let a = &inputs[0];
        let real = if a.dtype().is_complex() { Dtype::Float32 } else { a.dtype() };
        Ok(smallvec![batched(a, &[], a.dtype()), batched(a, &[], real)])
    }
}

/// The inverse of square matrices (`mx.linalg.inv`).
///
/// # Errors
/// Shapes and dtypes. At evaluation: a singular matrix, by batch index.
pub fn inv(a: &Array) -> Result<Array> {
    square("linalg.inv", a)?;
    astype(&Array::apply1(Inv, smallvec![widened("linalg.inv", a)?])?, a.dtype())
}

/// The inverse of triangular matrices (`mx.linalg.tri_inv`); the other triangle is not read.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a zero on the by batch index.
pub fn tri_inv(a: &Array, upper: bool) -> Result<Array> {
    square("linalg.tri_inv", a)?;
    astype(&Array::apply1(TriInv { upper }, smallvec![widened("linalg.tri_inv", a)?])?, a.dtype())
}

/// The `x` with `a x = b` (`mx.linalg.solve`): a (..., n, n), b (n) or (..., n, k); batches broadcast, a 1-D `b` is one
/// vector for every matrix. The result has the promoted dtype.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a singular matrix, by batch index.
pub fn solve(a: &Array, b: &Array) -> Result<Array> {
    system("linalg.solve", a, b, |inputs| Array::apply1(Solve, inputs))
}

/// As [`solve`] for triangular `a` (`mx.linalg.solve_triangular`), whose other triangle is not read.
///
/// # Errors
/// Shapes and dtypes. At evaluation: a zero on the by batch index.
pub fn solve_triangular(a: &Array, b: &Array, upper: bool) -> Result<Array> {
    system("linalg.solve_triangular", a, b, |inputs| Array::apply1(SolveTriangular { upper }, inputs))
}

fn system(op: &str, a: &Array, b: &Array, apply: impl Fn(crate::node::Inputs) -> Result<Array>) -> Result<Array> {
    let n = square(op, a)?;
    let dtype = a.dtype().promote(b.dtype());
    let wide = computes_in(op, dtype)?;
    let column = b.ndim() == 1;
    let b2 = if column { reshape_to(b, smallvec![b.size(), 1])? } else { b.clone() };
    let (lead_b, [rows, k]) = matrices(op, &b2)?;
    if rows != n {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[{op}] matrices of shape {a} and a right side of shape {b} do not fit")));
    }
    let lead = shape::broadcast(op, &a.shape()[..a.ndim() - 2], lead_b)?;
    let a = broadcast_to(&astype(a, wide)?, &joined(&lead, &[n, n]))?;
    let b = broadcast_to(&astype(&b2, wide)?, &joined(&lead, &[n, k]))?;
    let x = astype(&apply(smallvec![a, b])?, dtype)?;
    if column { drop_axes(&x, &[lead.len() + 1]) } else { Ok(x) }
}

/// Determinants (`mx.linalg.det`): shape (...). Integers give float32.
///
/// # Errors
/// Shapes.
pub fn det(a: &Array) -> Result<Array> {
    square("linalg.det", a)?;
    let dtype = a.dtype().to_inexact();
    let a = astype(a, dtype)?;
    astype(&Array::apply1(Det, smallvec![widened("linalg.det", &a)?])?, dtype)
}

/// (sign, logarithm of the absolute value) of determinants (`mx.linalg.slogdet`), each of shape (...): sign 0 and
/// logarithm -inf for singular matrices. Integers give float32; the sign of complex matrices is `det / |det|`.
///
/// # Errors
/// Shapes.
pub fn slogdet(a: &Array) -> Result<(Array, Array)> {
    square("linalg.slogdet", a)?;
    let dtype = a.dtype().to_inexact();
    let a = astype(a, dtype)?;
    let outs = Array::apply(SlogDet, smallvec![widened("linalg.slogdet", &a)?])?;
    let real = if dtype.is_complex() { Dtype::Float32 } else { dtype };
    Ok((astype(&outs[0], dtype)?, astype(&outs[1], real)?))
}

// ------------------------------------------------------------------ transforms

/// `-Bᴴ B̄ Bᴴ` for `B = A⁻¹`.
fn of_inverse(at: &Site<'_>) -> Result<Array> {
    let back = adjoint(&at.outputs[0])?;
    negative(&matmul(&back, &matmul(&at.cotangent(0)?, &back)?)?)
}

impl Transform for Inv {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(of_inverse(at)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

/// The triangle that an op reads.
fn triangle(a: &Array, upper: bool) -> Result<Array> {
    if upper { triu(a, 0) } else { tril(a, 0) }
}

impl Transform for TriInv {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        Ok(smallvec![Some(triangle(&of_inverse(at)?, self.upper)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

/// `-B̄ Xᴴ`, the gradient of A for `AX = B`.
fn of_matrix(of_b: &Array, x: &Array) -> Result<Array> {
    negative(&matmul(of_b, &adjoint(x)?)?)
}

/// Systems of all lanes: those that share a matrix are its right sides, and it is factored once.
fn systems(op: impl Into<Op>, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
    let (a, b) = (&lanes[0], &lanes[1]);
    if a.mapped {
        return Ok(vec![Array::apply1(op, smallvec![a.array.clone(), b.spread(size)?])?]);
    }
    let (last, columns) = (b.array.ndim() - 1, b.array.shape()[b.array.ndim() - 1]);
    let side_by_side = permute(&b.array, (1..last).chain([0, last]).collect())?;
    let mut shape: shape::Shape = side_by_side.shape().into();
    shape.truncate(last - 1);
    shape.push(size * columns);
    let x = Array::apply1(op, smallvec![a.array.clone(), reshape_to(&side_by_side, shape)?])?;
    let x = reshape_to(&x, side_by_side.shape().into())?;
    Ok(vec![permute(&x, [last - 1].into_iter().chain(0..last - 1).chain([last]).collect())?])
}

impl Transform for Solve {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let of_b = solve(&adjoint(&at.inputs[0])?, &at.cotangent(0)?)?;
        let of_a = at.wanted[0].then(|| of_matrix(&of_b, &at.outputs[0])).transpose()?;
        Ok(smallvec![of_a, Some(of_b)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        systems(self.clone(), lanes, size)
    }
}

impl Transform for SolveTriangular {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let of_b = solve_triangular(&adjoint(&at.inputs[0])?, &at.cotangent(0)?, !self.upper)?;
        let of_a = || triangle(&of_matrix(&of_b, &at.outputs[0])?, self.upper);
        let of_a = at.wanted[0].then(of_a).transpose()?;
        Ok(smallvec![of_a, Some(of_b)])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        systems(self.clone(), lanes, size)
    }
}

/// A number for each matrix, as matrices of one element.
fn per_matrix(a: &Array) -> Result<Array> {
    as_column(&reshape_to(a, joined(a.shape(), &[1]))?)
}

fn trace(a: &Array) -> Result<Array> {
    per_matrix(&sum(&diagonal_of(a)?, -1, false)?)
}

/// The conjugated derivative of the determinant `d` of `a`: the cofactors.
///
/// Up to three rows they are polynomials. Larger ones are `d A⁻ᴴ`, and where d is 0, with `A = UΣVᴴ`, U and Vᴴ around the
/// products of the other singular values.
fn cofactors(a: &Array, d: &Array) -> Result<Array> {
    let n = square("linalg.det", a)?;
    let one = eye(n, None, 0, Some(a.dtype()))?;
    match n {
        0 | 1 => return ones_like(a, None),
        2 => return adjoint(&subtract(multiply(trace(a)?, &one)?, a)?),
        3 => {
            let (squared, t) = (matmul(a, a)?, trace(a)?);
            let rest = multiply(subtract(multiply(&t, &t)?, trace(&squared)?)?, 0.5)?;
            let adjugate = add(subtract(&squared, multiply(&t, a)?)?, multiply(&rest, &one)?)?;
            return adjoint(&adjugate);
        }
        _ => {}
    }
    let singular = per_matrix(&equal(d, 0)?)?;
    let regular = multiply(per_matrix(&conj(d)?)?, adjoint(&inv(&select(&singular, &one, a)?)?)?)?;
    let (u, s, vh) = svd_thin(a)?;
    let phase = multiply(det(&u)?, det(&vh)?)?;
    // Of real matrices it is a sign.
    let phase = if a.dtype().is_complex() { conjugate(&phase)? } else { stop_gradient(&phase)? };
    let scaled = multiply(multiply(&u, as_row(&others(&s, &[s.ndim() - 1])?)?)?, per_matrix(&phase)?)?;
    select(&singular, &matmul(&scaled, &vh)?, &regular)
}

impl Transform for Det {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = per_matrix(&at.cotangent(0)?)?;
        Ok(smallvec![Some(multiply(&g, cofactors(&at.inputs[0], &at.outputs[0])?)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}

impl Transform for SlogDet {
    /// `A⁻ᴴ` times the logarithm's cotangent, and for complex matrices times how the sign turns.
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let a = &at.inputs[0];
        let turned = match given(at, 0) {
            Some(g) if a.dtype().is_complex() => {
                let angle = imag(&multiply(g, conj(&at.outputs[0])?)?)?;
                Some(multiply(angle, crate::dtype::c64::new(0.0, 1.0))?)
            }
            _ => None,
        };
        let Some(factor) = total([given(at, 1).cloned(), turned])? else { return Ok(at.none()) };
        Ok(smallvec![Some(multiply(per_matrix(&factor)?, adjoint(&inv(a)?)?)?)])
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        batch_of_lanes(self.clone(), lanes)
    }
}
