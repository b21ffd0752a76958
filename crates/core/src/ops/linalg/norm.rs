//! Norms of vectors and matrices.

use super::singular_values;
use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::view::{permute, reshape_to};
use crate::ops::{abs, astype, max, min, not_equal, power, sqrt, square, sum};
use crate::shape::{self, Axes, Shape, show};
use smallvec::SmallVec;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// The 2-norm of all elements.
    Default,
    /// The p-norm of vectors (0 counts, infinities are largest and smallest magnitude); of matrices 1, -1 (column
    /// sums), 2, -2 (singular values), and the infinities (row sums).
    P(f64),
    /// Root of the sum of squares of a matrix.
    Frobenius,
    /// Sum of the singular values of a matrix.
    Nuclear,
}

impl Norm {
    /// The norm called `fro`, `f` or `nuc`.
    ///
    /// # Errors
    /// Other names.
    pub fn from_name(name: &str) -> Result<Norm> {
        match name {
            "fro" | "f" => Ok(Norm::Frobenius),
            "nuc" => Ok(Norm::Nuclear),
            _ => Err(Error::value(format!("[linalg.norm] ord is a number, \"fro\" or \"nuc\", not {name:?}"))),
        }
    }
}

impl From<()> for Norm {
    fn from(_: ()) -> Norm {
        Norm::Default
    }
}
impl From<i32> for Norm {
    fn from(p: i32) -> Norm {
        Norm::P(f64::from(p))
    }
}
impl From<f64> for Norm {
    fn from(p: f64) -> Norm {
        Norm::P(p)
    }
}

/// Norms over one axis (vectors) or two (matrices), or of everything (`mx.linalg.norm`). `ord`: `()` for the 2-norm of
/// the elements, a number, or a [`Norm`]. `axes`: `()` for all, which needs 1 or 2 dimensions unless `ord` is `()`.
/// Integers give float32, complex numbers the real norm.
///
/// # Errors
/// Axes out of range or named twice; an `ord` that vectors or matrices do not have.
pub fn norm(a: &Array, ord: impl Into<Norm>, axes: impl Into<Axes>, keepdims: bool) -> Result<Array> {
    let (op, ord, axes) = ("linalg.norm", ord.into(), axes.into());
    let chosen: SmallVec<[usize; 4]> = match &axes {
        Axes::All => (0..a.ndim()).collect(),
        Axes::List(list) => {
            shape::axes(op, &axes, a.ndim())?;
            list.iter().map(|&i| shape::axis(op, i, a.ndim())).collect::<Result<_>>()?
        }
    };
    let too_many = (ord != Norm::Default || axes != Axes::All) && !matches!(chosen.len(), 1 | 2);
    if too_many {
        let (n, s) = (chosen.len(), show(a.shape()));
        return Err(Error::value(format!("[{op}] {ord:?} over {n} axes of shape {s}: needs 1 or 2 axes")));
    }
    let dtype = if a.dtype().is_complex() { Dtype::Float32 } else { a.dtype().to_inexact() };
    let wide = astype(a, if a.dtype().is_inexact() { a.dtype() } else { dtype })?;
    let wide = if dtype.is_half() { astype(&wide, Dtype::Float32)? } else { wide };
    let value = match (ord, chosen.as_slice()) {
        (Norm::Default, axes) => two(&wide, axes)?,
        (Norm::P(p), &[axis]) => vector(&wide, p, axis)?,
        (Norm::Frobenius, &[_, _]) => two(&wide, &chosen)?,
        (Norm::P(p), &[row, column]) => matrix(op, &wide, p, row, column)?,
        (Norm::Nuclear, &[row, column]) => kept(&sum(&spectrum(&wide, row, column)?, -1, false)?, a, row, column)?,
        _ => return Err(Error::value(format!("[{op}] {ord:?} is a norm of matrices; one axis was given"))),
    };
    let value = astype(&value, dtype)?;
    if keepdims { Ok(value) } else { crate::ops::view::drop_axes(&value, &chosen) }
}

fn list(axes: &[usize]) -> Axes {
    Axes::List(axes.iter().map(|&i| i as i32).collect())
}

fn two(a: &Array, axes: &[usize]) -> Result<Array> {
    let a = if a.dtype().is_complex() { abs(a)? } else { a.clone() };
    sqrt(&sum(&square(&a)?, list(axes), true)?)
}

fn vector(a: &Array, p: f64, axis: usize) -> Result<Array> {
    let axis = list(&[axis]);
    let size = abs(a)?;
    if p == 0.0 {
        return sum(&astype(&not_equal(&size, 0)?, size.dtype())?, axis, true);
    }
    if p == 1.0 {
        return sum(&size, axis, true);
    }
    if p == 2.0 {
        return sqrt(&sum(&square(&size)?, axis, true)?);
    }
    if p.is_infinite() {
        return if p > 0.0 { max(&size, axis, true) } else { min(&size, axis, true) };
    }
    power(&sum(&power(&size, p)?, axis, true)?, 1.0 / p)
}

fn matrix(op: &str, a: &Array, p: f64, row: usize, column: usize) -> Result<Array> {
    let extreme = |a: &Array, axis: Axes| if p > 0.0 { max(a, axis, true) } else { min(a, axis, true) };
    if p.abs() == 1.0 {
        return extreme(&sum(&abs(a)?, list(&[row]), true)?, list(&[column]));
    }
    if p.is_infinite() {
        return extreme(&sum(&abs(a)?, list(&[column]), true)?, list(&[row]));
    }
    if p.abs() == 2.0 {
        let value = extreme(&spectrum(a, row, column)?, Axes::from(-1))?;
        return kept(&crate::ops::squeeze(&value, -1)?, a, row, column);
    }
    Err(Error::value(format!("[{op}] matrices have no norm of ord {p}: 1, -1, 2, -2, inf, -inf")))
}

/// Singular values of the matrices over two axes, on the last axis.
fn spectrum(a: &Array, row: usize, column: usize) -> Result<Array> {
    let order = (0..a.ndim()).filter(|&i| i != row && i != column).chain([row, column]).collect();
    singular_values(&permute(a, order)?)
}

/// Puts the two axes back, with size 1.
fn kept(value: &Array, like: &Array, row: usize, column: usize) -> Result<Array> {
    let shape: Shape =
        like.shape().iter().enumerate().map(|(i, &d)| if i == row || i == column { 1 } else { d }).collect();
    reshape_to(value, shape)
}
