//! Products made of other ops: inner, outer, tensordot, vecdot, kron.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::ops::matmul::product_dtype;
use crate::ops::view::{permute, reshape_to};
use crate::ops::{astype, conjugate, matmul, multiply, sum};
use crate::shape::{self, Shape, show};
use smallvec::{SmallVec, smallvec};

/// Sums over the last axes of both (`mx.inner`): shape `a.shape[..-1] + b.shape[..-1]`; a 0-d operand multiplies.
///
/// # Errors
/// As [`tensordot`].
pub fn inner(a: &Array, b: &Array) -> Result<Array> {
    if a.ndim() == 0 || b.ndim() == 0 {
        return multiply(a, b);
    }
    if a.shape().last() != b.shape().last() {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[inner] the last axes of shapes {a} and {b} differ")));
    }
    contract("inner", a, b, &[a.ndim() - 1], &[b.ndim() - 1])
}

/// Every element of `a` times every element of `b`, both flattened (`mx.outer`): shape (size of a, size of b).
///
/// # Errors
/// Overflow of the shape.
pub fn outer(a: &Array, b: &Array) -> Result<Array> {
    shape::elements("outer", &[a.size(), b.size()])?;
    multiply(reshape_to(a, smallvec![a.size(), 1])?, reshape_to(b, smallvec![1, b.size()])?)
}

/// Axes to sum over in [`tensordot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contraction {
    /// The last axes of a with the first of b.
    Count(usize),
    /// These axes of a with these of b.
    Pairs(Vec<i32>, Vec<i32>),
}

impl From<usize> for Contraction {
    fn from(n: usize) -> Contraction {
        Contraction::Count(n)
    }
}
impl From<(&[i32], &[i32])> for Contraction {
    fn from((a, b): (&[i32], &[i32])) -> Contraction {
        Contraction::Pairs(a.into(), b.into())
    }
}
impl<const N: usize, const M: usize> From<([i32; N], [i32; M])> for Contraction {
    fn from((a, b): ([i32; N], [i32; M])) -> Contraction {
        Contraction::Pairs(a.into(), b.into())
    }
}

/// Sums of products over pairs of axes (`mx.tensordot`): the other axes of a, then those of b, remain. `axes`: a
/// number of axes, or two lists.
///
/// # Errors
/// A dtype error unless the promoted dtype is floating or complex; axes out of range or named twice; sizes that
/// differ.
pub fn tensordot(a: &Array, b: &Array, axes: impl Into<Contraction>) -> Result<Array> {
    let (of_a, of_b): (Vec<usize>, Vec<usize>) = match axes.into() {
        Contraction::Count(n) if n <= a.ndim().min(b.ndim()) => ((a.ndim() - n..a.ndim()).collect(), (0..n).collect()),
        Contraction::Count(n) => {
            let (a, b) = (show(a.shape()), show(b.shape()));
            return Err(Error::axis(format!("[tensordot] {n} axes to sum over in shapes {a} and {b}")));
        }
        Contraction::Pairs(x, y) if x.len() != y.len() => {
            return Err(Error::axis(format!("[tensordot] {} axes of a but {} of b", x.len(), y.len())));
        }
        Contraction::Pairs(x, y) => (distinct(&x, a.ndim())?, distinct(&y, b.ndim())?),
    };
    if of_a.iter().zip(&of_b).any(|(&i, &j)| a.shape()[i] != b.shape()[j]) {
        let (a, b) = (show(a.shape()), show(b.shape()));
        let text = format!("[tensordot] shapes {a} and {b} differ in size on the axes {of_a:?} and {of_b:?}");
        return Err(Error::shape(text));
    }
    contract("tensordot", a, b, &of_a, &of_b)
}

fn distinct(axes: &[i32], ndim: usize) -> Result<Vec<usize>> {
    let mut out = Vec::new();
    for &axis in axes {
        let axis = shape::axis("tensordot", axis, ndim)?;
        if out.contains(&axis) {
            return Err(Error::axis(format!("[tensordot] axis {axis} is named twice in {axes:?}")));
        }
        out.push(axis);
    }
    Ok(out)
}

fn contract(op: &str, a: &Array, b: &Array, of_a: &[usize], of_b: &[usize]) -> Result<Array> {
    let dtype = product_dtype(op, &[a, b])?;
    let free =
        |x: &Array, used: &[usize]| -> SmallVec<[usize; 4]> { (0..x.ndim()).filter(|i| !used.contains(i)).collect() };
    let (free_a, free_b) = (free(a, of_a), free(b, of_b));
    let size = |x: &Array, axes: &[usize]| axes.iter().map(|&i| x.shape()[i]).product::<usize>();
    let shape: Shape = free_a.iter().map(|&i| a.shape()[i]).chain(free_b.iter().map(|&i| b.shape()[i])).collect();
    let (m, k, n) = (size(a, &free_a), size(a, of_a), size(b, &free_b));
    let left = permute(&astype(a, dtype)?, free_a.into_iter().chain(of_a.iter().copied()).collect())?;
    let right = permute(&astype(b, dtype)?, of_b.iter().copied().chain(free_b).collect())?;
    let product = matmul(&reshape_to(&left, smallvec![m, k])?, &reshape_to(&right, smallvec![k, n])?)?;
    reshape_to(&product, shape)
}

/// Sums of `conj(a) * b` along one axis (`mx.vecdot`); the other axes broadcast. Small integers widen as in
/// [`sum`]; half precision sums in f32.
///
/// # Errors
/// An axis out of range of either; sizes that differ on the axis; shapes that do not broadcast.
pub fn vecdot(a: &Array, b: &Array, axis: i32) -> Result<Array> {
    let (i, j) = (shape::axis("vecdot", axis, a.ndim())?, shape::axis("vecdot", axis, b.ndim())?);
    if a.shape()[i] != b.shape()[j] {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[vecdot] shapes {a} and {b} differ in size on axis {axis}")));
    }
    shape::broadcast("vecdot", a.shape(), b.shape())?;
    let last = |x: &Array, i: usize| permute(x, (0..x.ndim()).filter(|&d| d != i).chain([i]).collect());
    dot_last(&conjugate(&last(a, i)?)?, &last(b, j)?)
}

/// Sums of products along the last axis, in one fused pass; half precision is widened inside it.
pub(crate) fn dot_last(a: &Array, b: &Array) -> Result<Array> {
    let dtype = a.dtype().promote(b.dtype());
    let wide = if dtype.is_half() { Dtype::Float32 } else { dtype };
    let total = sum(&multiply(astype(a, wide)?, astype(b, wide)?)?, -1, false)?;
    if dtype.is_half() { astype(&total, dtype) } else { Ok(total) }
}

/// Kronecker product (`mx.kron`): every element of `a` times the whole of `b`, as blocks; the shorter shape gets
/// leading axes of size 1.
///
/// # Errors
/// Overflow of the shape.
pub fn kron(a: &Array, b: &Array) -> Result<Array> {
    let ndim = a.ndim().max(b.ndim());
    let padded =
        |x: &Array| -> Shape { std::iter::repeat_n(1, ndim - x.ndim()).chain(x.shape().iter().copied()).collect() };
    let (sa, sb) = (padded(a), padded(b));
    let shape: Shape = sa.iter().zip(&sb).map(|(&x, &y)| x.saturating_mul(y)).collect();
    shape::elements("kron", &shape)?;
    let of_a = sa.iter().flat_map(|&d| [d, 1]).collect();
    let of_b = sb.iter().flat_map(|&d| [1, d]).collect();
    reshape_to(&multiply(reshape_to(a, of_a)?, reshape_to(b, of_b)?)?, shape)
}

impl Array {
    /// Sums over the last axes of both; see [`inner`].
    ///
    /// # Panics
    /// On the errors of the function of the same name.
    #[track_caller]
    pub fn inner(&self, other: &Array) -> Array {
        crate::or_panic(inner(self, other))
    }
}
