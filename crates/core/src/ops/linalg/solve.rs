//! Inverses, linear systems, determinants.

use super::{batched, computes_in, joined, square, widened};
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::matmul::matrices;
use crate::ops::view::{drop_axes, reshape_to};
use crate::ops::{Rule, astype, broadcast_to};
use crate::shape::{self, show};
use smallvec::smallvec;

/// The inverse of square matrices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Inv;

impl Rule for Inv {
    fn name(&self) -> &'static str {
        "linalg.inv"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

/// The inverse of triangular matrices; reads one triangle, the other is zero in the result.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TriInv {
    /// Which triangle.
    pub upper: bool,
}

impl Rule for TriInv {
    fn name(&self) -> &'static str {
        "linalg.tri_inv"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[0].shape(), inputs[0].dtype())])
    }
}

/// The solution of `a x = b`: a (..., n, n), b (..., n, k), equal batches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Solve;

impl Rule for Solve {
    fn name(&self) -> &'static str {
        "linalg.solve"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[1].shape(), inputs[1].dtype())])
    }
}

/// As [`Solve`] for triangular `a`, of which one triangle is read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SolveTriangular {
    /// Which triangle.
    pub upper: bool,
}

impl Rule for SolveTriangular {
    fn name(&self) -> &'static str {
        "linalg.solve_triangular"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![Aval::new(inputs[1].shape(), inputs[1].dtype())])
    }
}

/// The determinant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Det;

impl Rule for Det {
    fn name(&self) -> &'static str {
        "linalg.det"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        Ok(smallvec![batched(&inputs[0], &[], inputs[0].dtype())])
    }
}

/// Sign and logarithm of the absolute value of the determinant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlogDet;

impl Rule for SlogDet {
    fn name(&self) -> &'static str {
        "linalg.slogdet"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
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
/// Shapes and dtypes. At evaluation: a zero on the diagonal, by batch index.
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
/// Shapes and dtypes. At evaluation: a zero on the diagonal, by batch index.
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
