//! Inverses, systems, determinants, one matrix at a time.

use crate::host::{Batch, Checked, Fault, Scalar, batch, fill, matrix, output, parts, values};
use crate::lu::Lu;
use faer::linalg::{triangular_inverse, triangular_solve};
use faer::{Mat, MatMut, MatRef, Par};
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;

const SINGULAR: Fault = "is singular";

fn regular<T: Scalar>(a: MatRef<'_, T>) -> Checked<Lu<T>> {
    let lu = Lu::new(a);
    if lu.is_singular() { Err(SINGULAR) } else { Ok(lu) }
}

fn has_zero_on_diagonal<T: Scalar>(a: MatRef<'_, T>) -> bool {
    (0..a.nrows()).any(|i| a[(i, i)] == T::ZERO)
}

/// `linalg.inv`
pub(crate) fn inv<T: Scalar>(name: &str, a: &Tensor, out: &mut Tensor) -> Result<()> {
    let (batch, n, _) = batch(name, a);
    let all = values::<T>(a);
    batch.each(parts(output::<T>(out)?, batch.count()), |i, to| {
        let inverse = regular(matrix(&all, i, n, n))?.inverse();
        fill(to, n, |i, j| inverse[(i, j)]);
        Ok(())
    })
}

/// `linalg.tri_inv`
pub(crate) fn tri_inv<T: Scalar>(name: &str, upper: bool, a: &Tensor, out: &mut Tensor) -> Result<()> {
    let (batch, n, _) = batch(name, a);
    let all = values::<T>(a);
    batch.each(parts(output::<T>(out)?, batch.count()), |i, to| {
        let a = matrix(&all, i, n, n);
        if has_zero_on_diagonal(a) {
            return Err(SINGULAR);
        }
        let mut inverse = Mat::<T>::zeros(n, n);
        if upper {
            triangular_inverse::invert_upper_triangular(inverse.as_mut(), a, Par::Seq);
        } else {
            triangular_inverse::invert_lower_triangular(inverse.as_mut(), a, Par::Seq);
        }
        fill(to, n, |i, j| if (j < i) == upper && i != j { T::ZERO } else { inverse[(i, j)] });
        Ok(())
    })
}

/// The systems of `a x = b`: `f` turns the right side, which is in `out` already, into the solution.
fn systems<T: Scalar>(
    name: &str,
    inputs: &[Tensor],
    out: &mut Tensor,
    f: impl Fn(MatRef<'_, T>, MatMut<'_, T>) -> Checked<()> + Sync,
) -> Result<()> {
    let (Batch { lead, work, .. }, n, _) = batch(name, &inputs[0]);
    let k = inputs[1].shape[inputs[1].shape.len() - 1];
    let batch = Batch { name, lead, work: work + 2 * n * n * k };
    let (all, right) = (values::<T>(&inputs[0]), values::<T>(&inputs[1]));
    batch.each(parts(output::<T>(out)?, batch.count()), |i, to| {
        to.copy_from_slice(&right[i * n * k..(i + 1) * n * k]);
        f(matrix(&all, i, n, n), MatMut::from_row_major_slice_mut(to, n, k))
    })
}

/// `linalg.solve`
pub(crate) fn solve<T: Scalar>(name: &str, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    systems::<T>(name, inputs, out, |a, b| {
        regular(a)?.solve(b);
        Ok(())
    })
}

/// `linalg.solve_triangular`
pub(crate) fn solve_triangular<T: Scalar>(name: &str, upper: bool, inputs: &[Tensor], out: &mut Tensor) -> Result<()> {
    systems::<T>(name, inputs, out, |a, b| {
        if has_zero_on_diagonal(a) {
            return Err(SINGULAR);
        }
        if upper {
            triangular_solve::solve_upper_triangular_in_place(a, b, Par::Seq);
        } else {
            triangular_solve::solve_lower_triangular_in_place(a, b, Par::Seq);
        }
        Ok(())
    })
}

/// `linalg.det`
pub(crate) fn det<T: Scalar>(name: &str, a: &Tensor, out: &mut Tensor) -> Result<()> {
    let (batch, n, _) = batch(name, a);
    let all = values::<T>(a);
    batch.each(output::<T>(out)?.iter_mut().collect(), |i, to| {
        let lu = Lu::new(matrix(&all, i, n, n));
        let product = lu.diagonal().fold(T::ONE, |p, d| p * d);
        *to = if lu.is_odd() { -product } else { product };
        Ok(())
    })
}

/// `linalg.slogdet`
pub(crate) fn slogdet<T: Scalar>(name: &str, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (batch, n, _) = batch(name, a);
    let all = values::<T>(a);
    let [signs, logs] = outputs else { return Ok(()) };
    let items = output::<T>(signs)?.iter_mut().zip(output::<T::Magnitude>(logs)?).collect();
    batch.each(items, |i, (sign, log)| {
        let lu = Lu::new(matrix(&all, i, n, n));
        let mut s = if lu.is_odd() { -T::ONE } else { T::ONE };
        let mut l = 0.0;
        for d in lu.diagonal() {
            let size = d.magnitude();
            l += size.ln();
            s = if size == 0.0 { T::ZERO } else { s * d.scaled(1.0 / size) };
        }
        (*sign, *log) = (s, T::from_f64(l));
        Ok(())
    })
}
