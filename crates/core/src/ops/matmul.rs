//! Matrix products: `matmul`, and `addmm` with its scaled addend.
//!
//! The ops know batches of matrices only: 1-D operands, broadcast batches and dtypes are settled by the functions,
//! with views that cost nothing. The products with picked operands are in `gather_mm`.

use crate::array::Array;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::node::{Aval, Avals};
use crate::ops::view::reshape_to;
use crate::ops::{Rule, astype, broadcast_to, expect, multiply};
use crate::scalar::Real;
use crate::shape::{self, Shape, show};
use crate::transforms::{Grads, Lane, Site, Transform};
use serde::{Deserialize, Serialize};
use smallvec::smallvec;

/// `(..., M, K)` times `(..., K, N)` with equal batch axes and dtypes. Half precision sums in f32 and rounds once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Matmul;

impl Rule for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 2)?;
        expect_products(self.name(), inputs)?;
        Ok(smallvec![product(self.name(), &inputs[0], &inputs[1])?])
    }
}

/// `alpha * a @ b + beta * c`: inputs c, a, b; c has the shape of the product. One rounding at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddMM {
    /// Factor of the product.
    pub alpha: Real,
    /// Factor of c.
    pub beta: Real,
}

impl Rule for AddMM {
    fn name(&self) -> &'static str {
        "addmm"
    }
    fn infer(&self, inputs: &[Array]) -> Result<Avals> {
        expect::count(self.name(), inputs, 3)?;
        expect_products(self.name(), inputs)?;
        let out = product(self.name(), &inputs[1], &inputs[2])?;
        if inputs[0].shape() != out.shape.as_slice() {
            let (c, ab) = (show(inputs[0].shape()), show(&out.shape));
            return Err(Error::shape(format!("[addmm] c has shape {c}, the product {ab}")));
        }
        Ok(smallvec![out])
    }
}

/// Shape and dtype of the product of two batches of matrices.
fn product(op: &str, a: &Array, b: &Array) -> Result<Aval> {
    let ((lead_a, [m, k]), (lead_b, [k2, n])) = (matrices(op, a)?, matrices(op, b)?);
    if k != k2 || lead_a != lead_b {
        return Err(mismatch(op, a, b));
    }
    let mut shape: Shape = lead_a.into();
    shape.extend([m, n]);
    Ok(Aval::new(shape, a.dtype()))
}

/// Checks that the arrays hold floating or complex numbers of one type.
pub(crate) fn expect_products(op: &str, arrays: &[Array]) -> Result<()> {
    expect::dtype(op, &arrays[0], arrays[0].dtype().is_inexact())?;
    expect::alike(op, arrays)
}

fn mismatch(op: &str, a: &Array, b: &Array) -> Error {
    let (a, b) = (show(a.shape()), show(b.shape()));
    Error::shape(format!("[{op}] the last axis of shape {a} must match the second to last axis of shape {b}"))
}

/// Batch axes and matrix axes of an array.
pub(crate) fn matrices<'a>(op: &str, a: &'a Array) -> Result<(&'a [usize], [usize; 2])> {
    match a.shape() {
        [lead @ .., m, n] => Ok((lead, [*m, *n])),
        s => Err(Error::shape(format!("[{op}] needs at least 2 dimensions; the shape is {}", show(s)))),
    }
}

/// The dtype that products of these arrays have: an inexact one.
pub(crate) fn product_dtype(op: &str, arrays: &[&Array]) -> Result<Dtype> {
    let dtype = arrays.iter().map(|a| a.dtype()).reduce(Dtype::promote).unwrap_or(Dtype::Float32);
    if !dtype.is_inexact() {
        let given: Vec<_> = arrays.iter().map(|a| a.dtype().name()).collect();
        let given = given.join(" and ");
        return Err(Error::dtype(format!("[{op}] only floating and complex types are multiplied, not {given}")));
    }
    Ok(dtype)
}

/// A product brought to the form of the ops.
struct Operands {
    a: Array,
    b: Array,
    /// The shape of the result while a and b had all their axes.
    full: Shape,
    /// The shape the caller expects.
    shape: Shape,
}

fn prepare(op: &str, a: &Array, b: &Array, dtype: Dtype) -> Result<Operands> {
    if a.ndim() == 0 || b.ndim() == 0 {
        let (a, b) = (show(a.shape()), show(b.shape()));
        return Err(Error::shape(format!("[{op}] shapes {a} and {b}: needs at least 1 dimension, use multiply")));
    }
    let (row, column) = (a.ndim() == 1, b.ndim() == 1);
    let (n, k) = (if column { 1 } else { b.shape()[b.ndim() - 1] }, a.shape()[a.ndim() - 1]);
    if b.shape()[if column { 0 } else { b.ndim() - 2 }] != k {
        return Err(mismatch(op, a, b));
    }
    let mut a = astype(a, dtype)?;
    let mut b = astype(b, dtype)?;
    if row {
        a = reshape_to(&a, smallvec![1, k])?;
    }
    if column {
        b = reshape_to(&b, smallvec![k, 1])?;
    }
    let m = a.shape()[a.ndim() - 2];
    let lead = shape::broadcast(op, &a.shape()[..a.ndim() - 2], &b.shape()[..b.ndim() - 2])?;
    let with = |rows: usize, columns: usize| -> Shape { lead.iter().copied().chain([rows, columns]).collect() };
    let full = with(m, n);
    shape::elements(op, &full)?;
    let mut out = full.clone();
    if column {
        out.pop();
    }
    if row {
        out.remove(lead.len());
    }
    if b.ndim() == 2 && a.ndim() > 2 {
        // One tall product instead of many.
        let rows = a.shape()[..a.ndim() - 1].iter().product();
        a = reshape_to(&a, smallvec![rows, k])?;
    } else {
        a = broadcast_to(&a, &with(m, k))?;
        b = broadcast_to(&b, &with(k, n))?;
    }
    Ok(Operands { a, b, full, shape: out })
}

/// Matrix product (`mx.matmul`): 1-D operands are a row on the left, a column on the right; leading axes are batches
/// and broadcast. The result has the promoted dtype.
///
/// # Errors
/// A dtype error unless the promoted dtype is floating or complex; a shape error for 0-d operands, inner sizes that
/// differ and batches that do not broadcast.
pub fn matmul(a: &Array, b: &Array) -> Result<Array> {
    let dtype = product_dtype("matmul", &[a, b])?;
    let Operands { a, b, shape, .. } = prepare("matmul", a, b, dtype)?;
    reshape_to(&Array::apply1(Matmul, smallvec![a, b])?, shape)
}

/// `alpha * a @ b + beta * c` in one pass (`mx.addmm`); c broadcasts to the shape of the product.
///
/// # Errors
/// As [`matmul()`]; a shape error when c does not broadcast.
pub fn addmm(c: &Array, a: &Array, b: &Array, alpha: f64, beta: f64) -> Result<Array> {
    let dtype = product_dtype("addmm", &[c, a, b])?;
    let Operands { a, b, full, shape } = prepare("addmm", a, b, dtype)?;
    if shape::broadcast("addmm", c.shape(), &shape)? != shape {
        let (c, ab) = (show(c.shape()), show(&shape));
        return Err(Error::shape(format!("[addmm] c of shape {c} does not broadcast to the product's shape {ab}")));
    }
    let c = reshape_to(&broadcast_to(&astype(c, dtype)?, &shape)?, full)?;
    let rows = a.shape()[..a.ndim() - 1].iter().copied();
    let folded = rows.chain([b.shape()[b.ndim() - 1]]).collect();
    let op = AddMM { alpha: Real(alpha), beta: Real(beta) };
    reshape_to(&Array::apply1(op, smallvec![reshape_to(&c, folded)?, a, b])?, shape)
}

impl Array {
    /// Matrix product; see [`matmul()`].
    ///
    /// # Panics
    /// On the errors of the function of the same name.
    #[track_caller]
    pub fn matmul(&self, other: &Array) -> Array {
        crate::or_panic(matmul(self, other))
    }
}

/// The conjugate transpose of batches of matrices.
pub(crate) fn adjoint(a: &Array) -> Result<Array> {
    let a = super::matrix_transpose(a)?;
    if a.dtype().is_complex() { super::conjugate(&a) } else { Ok(a) }
}

/// Gradients of a and b, where they are wanted, from that of their product.
pub(crate) fn product_grads(g: &Array, a: &Array, b: &Array, wanted: &[bool]) -> Result<[Option<Array>; 2]> {
    let of_a = wanted[0].then(|| matmul(g, &adjoint(b)?)).transpose()?;
    let of_b = wanted[1].then(|| matmul(&adjoint(a)?, g)).transpose()?;
    Ok([of_a, of_b])
}

impl Transform for Matmul {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let grads = product_grads(&at.cotangent(0)?, &at.inputs[0], &at.inputs[1], at.wanted)?;
        Ok(grads.into_iter().collect())
    }
    fn vmap(&self, lanes: &[Lane], _: usize) -> Result<Vec<Array>> {
        // Batch axes broadcast.
        Ok(vec![matmul(&lanes[0].array, &lanes[1].array)?])
    }
}

impl Transform for AddMM {
    fn vjp(&self, at: &Site<'_>) -> Result<Grads> {
        let g = at.cotangent(0)?;
        let [a, b] = product_grads(&multiply(&g, self.alpha.0)?, &at.inputs[1], &at.inputs[2], &at.wanted[1..])?;
        Ok(smallvec![Some(multiply(&g, self.beta.0)?), a, b])
    }
    fn vmap(&self, lanes: &[Lane], size: usize) -> Result<Vec<Array>> {
        let (c, a) = (lanes[0].spread(size)?, lanes[1].spread(size)?);
        Ok(vec![addmm(&c, &a, &lanes[2].array, self.alpha.0, self.beta.0)?])
    }
}
