//! Singular values, eigenvalues and their vectors, one matrix at a time.

use crate::host::{Batch, Checked, Fault, NOT_FINITE, Scalar, batch, fill, matrix, output, parts, values};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::svd::{self as faer_svd, ComputeSvdVectors};
use faer::{Mat, MatRef, Par, Spec};
use lapis_core::buffer::Tensor;
use lapis_core::dtype::c64;
use lapis_core::error::Result;
use lapis_core::ops::linalg::Vectors;

const NO_CONVERGENCE: Fault = "has a spectrum that the iteration does not reach";

/// An element type that has a general eigenvalue solver.
pub(crate) trait Spectral: Scalar {
    /// Eigenvalues, and right eigenvectors if wanted (else empty), as complex64.
    fn eigen(a: MatRef<'_, Self>, vectors: bool) -> Checked<(Vec<c64>, Mat<c64>)>;
}

fn check<T: Scalar>(values: &[T]) -> Checked<()> {
    if values.iter().all(|v| v.finite()) { Ok(()) } else { Err(NOT_FINITE) }
}

/// `linalg.svd`
pub(crate) fn svd<T: Scalar>(name: &str, vectors: Vectors, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (Batch { lead, work, .. }, m, n) = batch(name, a);
    let batch = Batch { name, lead, work: 8 * work };
    let count = batch.count();
    let all = values::<T>(a);
    let k = m.min(n);
    let (left, right) = if vectors == Vectors::Full { (m, n) } else { (k, k) };
    let one = |i: usize, u: &mut [T], s: &mut [T::Magnitude], v: &mut [T]| -> Checked<()> {
        check(&all[i * m * n..(i + 1) * m * n])?;
        if k == 0 {
            fill(u, left, |i, j| if i == j { T::ONE } else { T::ZERO });
            fill(v, n, |i, j| if i == j { T::ONE } else { T::ZERO });
            return Ok(());
        }
        let wanted = match vectors {
            Vectors::No => ComputeSvdVectors::No,
            Vectors::Thin => ComputeSvdVectors::Thin,
            Vectors::Full => ComputeSvdVectors::Full,
        };
        let some = vectors != Vectors::No;
        let (mut um, mut vm) =
            if some { (Mat::<T>::zeros(m, left), Mat::<T>::zeros(n, right)) } else { (Mat::new(), Mat::new()) };
        let mut sm = Diag::<T>::zeros(k);
        let need = faer_svd::svd_scratch::<T>(m, n, wanted, wanted, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(need);
        faer_svd::svd(
            matrix(&all, i, m, n),
            sm.as_mut(),
            some.then(|| um.as_mut()),
            some.then(|| vm.as_mut()),
            Par::Seq,
            MemStack::new(&mut memory),
            Spec::default(),
        )
        .map_err(|_| NO_CONVERGENCE)?;
        fill(s, k, |_, j| sm[j].real_part());
        fill(u, left, |i, j| um[(i, j)]);
        fill(v, n, |i, j| vm[(j, i)].conjugate());
        Ok(())
    };
    match outputs {
        [s] => batch.each(parts(output::<T::Magnitude>(s)?, count), |i, s| one(i, &mut [], s, &mut [])),
        [u, s, v] => {
            let (u, s) = (parts(output::<T>(u)?, count), parts(output::<T::Magnitude>(s)?, count));
            let items = u.into_iter().zip(s).zip(parts(output::<T>(v)?, count)).collect();
            batch.each(items, |i, ((u, s), v)| one(i, u, s, v))
        }
        _ => Ok(()),
    }
}

/// `linalg.eigh`, `linalg.eigvalsh`
pub(crate) fn eigh<T: Scalar>(name: &str, upper: bool, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (Batch { lead, work, .. }, n, _) = batch(name, a);
    let batch = Batch { name, lead, work: 8 * work };
    let count = batch.count();
    let all = values::<T>(a);
    let one = |i: usize, w: &mut [T::Magnitude], v: Option<&mut [T]>| -> Checked<()> {
        let a = matrix(&all, i, n, n);
        let entry = |r: usize, c: usize| if upper { a[(c, r)].conjugate() } else { a[(r, c)] };
        let lower = Mat::<T>::from_fn(n, n, |r, c| if r >= c { entry(r, c) } else { T::ZERO });
        if (0..n).any(|c| (c..n).any(|r| !lower[(r, c)].finite())) {
            return Err(NOT_FINITE);
        }
        let wanted = if v.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
        let mut values = Diag::<T>::zeros(n);
        let mut basis = Mat::<T>::zeros(n, n);
        let need = evd::self_adjoint_evd_scratch::<T>(n, wanted, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(need);
        let to = v.is_some().then(|| basis.as_mut());
        let stack = MemStack::new(&mut memory);
        evd::self_adjoint_evd(lower.as_ref(), values.as_mut(), to, Par::Seq, stack, Spec::default())
            .map_err(|_| NO_CONVERGENCE)?;
        fill(w, n, |_, j| values[j].real_part());
        if let Some(v) = v {
            fill(v, n, |i, j| basis[(i, j)]);
        }
        Ok(())
    };
    match outputs {
        [w] => batch.each(parts(output::<T::Magnitude>(w)?, count), |i, w| one(i, w, None)),
        [w, v] => {
            let w = parts(output::<T::Magnitude>(w)?, count).into_iter();
            batch.each(w.zip(parts(output::<T>(v)?, count)).collect(), |i, (w, v)| one(i, w, Some(v)))
        }
        _ => Ok(()),
    }
}

/// `linalg.eig`, `linalg.eigvals`
pub(crate) fn eig<T: Spectral>(name: &str, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (Batch { lead, work, .. }, n, _) = batch(name, a);
    let batch = Batch { name, lead, work: 16 * work };
    let count = batch.count();
    let all = values::<T>(a);
    let one = |i: usize, w: &mut [c64], v: Option<&mut [c64]>| -> Checked<()> {
        check(&all[i * n * n..(i + 1) * n * n])?;
        let (values, mut vectors) = T::eigen(matrix(&all, i, n, n), v.is_some())?;
        w.copy_from_slice(&values);
        if let Some(v) = v {
            (0..n).for_each(|j| normalize(&mut vectors, j));
            fill(v, n, |i, j| vectors[(i, j)]);
        }
        Ok(())
    };
    match outputs {
        [w] => batch.each(parts(output::<c64>(w)?, count), |i, w| one(i, w, None)),
        [w, v] => {
            let w = parts(output::<c64>(w)?, count).into_iter();
            batch.each(w.zip(parts(output::<c64>(v)?, count)).collect(), |i, (w, v)| one(i, w, Some(v)))
        }
        _ => Ok(()),
    }
}

/// Scales column `j` to length 1 and turns it so that its largest entry is real, as LAPACK does.
fn normalize(v: &mut Mat<c64>, j: usize) {
    let column: Vec<c64> = (0..v.nrows()).map(|i| v[(i, j)]).collect();
    let length = column.iter().map(|z| z.magnitude().powi(2)).sum::<f64>().sqrt();
    let Some(largest) = column.into_iter().max_by(|x, y| x.magnitude().total_cmp(&y.magnitude())) else { return };
    let size = largest.magnitude();
    if size == 0.0 {
        return;
    }
    let turn = largest.conjugate().scaled(f64::from(largest.re).signum() / size);
    for i in 0..v.nrows() {
        v[(i, j)] = (v[(i, j)] * turn).scaled(1.0 / length);
    }
}

macro_rules! real_eigen {
    ($($t:ty),*) => {$(
        impl Spectral for $t {
            fn eigen(a: MatRef<'_, $t>, vectors: bool) -> Checked<(Vec<c64>, Mat<c64>)> {
                let n = a.nrows();
                let (mut re, mut im) = (Diag::<$t>::zeros(n), Diag::<$t>::zeros(n));
                let mut basis = Mat::<$t>::zeros(n, n);
                let wanted = if vectors { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
                let need = evd::evd_scratch::<$t>(n, ComputeEigenvectors::No, wanted, Par::Seq, Spec::default());
                let mut memory = MemBuffer::new(need);
                let right = vectors.then(|| basis.as_mut());
                let stack = MemStack::new(&mut memory);
                evd::evd_real(a, re.as_mut(), im.as_mut(), None, right, Par::Seq, stack, Spec::default())
                    .map_err(|_| NO_CONVERGENCE)?;
                let values = (0..n).map(|i| c64::new(re[i] as f32, im[i] as f32)).collect();
                // A pair of conjugate eigenvalues shares two columns: real part, imaginary part.
                let mut out = Mat::<c64>::zeros(if vectors { n } else { 0 }, if vectors { n } else { 0 });
                let mut j = 0;
                while vectors && j < n {
                    let pair = im[j] != 0.0 && j + 1 < n;
                    for i in 0..n {
                        let (x, y) = (basis[(i, j)] as f32, if pair { basis[(i, j + 1)] as f32 } else { 0.0 });
                        out[(i, j)] = c64::new(x, y);
                        if pair {
                            out[(i, j + 1)] = c64::new(x, -y);
                        }
                    }
                    j += if pair { 2 } else { 1 };
                }
                Ok((values, out))
            }
        }
    )*};
}
real_eigen!(f32, f64);

impl Spectral for c64 {
    fn eigen(a: MatRef<'_, c64>, vectors: bool) -> Checked<(Vec<c64>, Mat<c64>)> {
        let n = a.nrows();
        let mut values = Diag::<c64>::zeros(n);
        let mut basis = Mat::<c64>::zeros(n, n);
        let wanted = if vectors { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
        let need = evd::evd_scratch::<c64>(n, ComputeEigenvectors::No, wanted, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(need);
        let right = vectors.then(|| basis.as_mut());
        let stack = MemStack::new(&mut memory);
        evd::evd_cplx(a, values.as_mut(), None, right, Par::Seq, stack, Spec::default()).map_err(|_| NO_CONVERGENCE)?;
        Ok(((0..n).map(|i| values[i]).collect(), basis))
    }
}
