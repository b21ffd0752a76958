//! Cholesky, LU and QR factors, one matrix at a time.

use crate::host::{Batch, Scalar, batch, fill, matrix, output, parts, values};
use crate::lu::Lu;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::householder;
use faer::linalg::qr::no_pivoting::factor as qr_factor;
use faer::{Conj, Mat, Par, Spec};
use lapis_core::buffer::Tensor;
use lapis_core::error::Result;
use std::cmp::Ordering;

/// `linalg.cholesky`
pub(crate) fn cholesky<T: Scalar>(name: &str, upper: bool, a: &Tensor, out: &mut Tensor) -> Result<()> {
    let (batch, n, _) = batch(name, a);
    let all = values::<T>(a);
    batch.each(parts(output::<T>(out)?, batch.count()), |i, to| {
        let a = matrix(&all, i, n, n);
        // The lower factor, from the conjugate transpose of the upper triangle where that one counts.
        let entry = |r: usize, c: usize| if upper { a[(c, r)].conjugate() } else { a[(r, c)] };
        let mut l = Mat::<T>::from_fn(n, n, |r, c| if r >= c { entry(r, c) } else { T::ZERO });
        let mut memory = MemBuffer::new(llt::cholesky_in_place_scratch::<T>(n, Par::Seq, Spec::default()));
        let stack = MemStack::new(&mut memory);
        llt::cholesky_in_place(l.as_mut(), Default::default(), Par::Seq, stack, Spec::default())
            .map_err(|_| "is not positive definite")?;
        fill(to, n, |r, c| match (upper, r.cmp(&c)) {
            (false, std::cmp::Ordering::Less) | (true, std::cmp::Ordering::Greater) => T::ZERO,
            (false, _) => l[(r, c)],
            (true, _) => l[(c, r)].conjugate(),
        });
        Ok(())
    })
}

/// `linalg.lu_factor`
pub(crate) fn lu_factor<T: Scalar>(name: &str, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (batch, m, n) = batch(name, a);
    let all = values::<T>(a);
    let [packed, pivots, rows] = outputs else { return Ok(()) };
    let count = batch.count();
    let packed = parts(output::<T>(packed)?, count).into_iter();
    let (pivots, rows) = (parts(output::<u32>(pivots)?, count), parts(output::<u32>(rows)?, count));
    batch.each(packed.zip(pivots).zip(rows).collect(), |i, ((packed, pivots), rows)| {
        let lu = Lu::new(matrix(&all, i, m, n));
        fill(packed, n, |r, c| lu.packed[(r, c)]);
        pivots.iter_mut().zip(lu.pivots()).for_each(|(to, p)| *to = p as u32);
        rows.iter_mut().zip(lu.rows()).for_each(|(to, p)| *to = p as u32);
        Ok(())
    })
}

/// `linalg.qr`
pub(crate) fn qr<T: Scalar>(name: &str, a: &Tensor, outputs: &mut [Tensor]) -> Result<()> {
    let (Batch { lead, work, .. }, m, n) = batch(name, a);
    let batch = Batch { name, lead, work: 2 * work };
    let all = values::<T>(a);
    let [q, r] = outputs else { return Ok(()) };
    let k = m.min(n);
    let (q, r) = (parts(output::<T>(q)?, batch.count()), parts(output::<T>(r)?, batch.count()));
    batch.each(q.into_iter().zip(r).collect(), |i, (q, r)| {
        if k == 0 {
            return Ok(());
        }
        let mut packed = matrix(&all, i, m, n).to_owned();
        let block = qr_factor::recommended_block_size::<T>(m, n);
        let mut tau = Mat::<T>::zeros(block, k);
        let need = qr_factor::qr_in_place_scratch::<T>(m, n, block, Par::Seq, Spec::default());
        let mut memory = MemBuffer::new(need);
        let stack = MemStack::new(&mut memory);
        qr_factor::qr_in_place(packed.as_mut(), tau.as_mut(), Par::Seq, stack, Spec::default());
        // The diagonal of LAPACK's R is real.
        let turn = |j: usize| -> T {
            let d = packed[(j, j)];
            let size = d.magnitude();
            if d == d.conjugate() || size == 0.0 {
                return T::ONE;
            }
            let along = T::ONE.scaled(size);
            let sign = if (d + along).magnitude() < (d - along).magnitude() { -1.0 } else { 1.0 };
            d.conjugate().scaled(sign / size)
        };
        let turns: Vec<T> = (0..k).map(turn).collect();
        let entry = |i: usize, j: usize| packed[(i, j)] * turns[i];
        fill(r, n, |i, j| match i.cmp(&j) {
            Ordering::Less => entry(i, j),
            Ordering::Equal => (entry(i, i) + entry(i, i).conjugate()).scaled(0.5),
            Ordering::Greater => T::ZERO,
        });

        let mut basis = Mat::<T>::identity(m, k);
        let need = householder::apply_block_householder_sequence_on_the_left_in_place_scratch::<T>(m, block, k);
        let mut memory = MemBuffer::new(need);
        householder::apply_block_householder_sequence_on_the_left_in_place_with_conj(
            packed.as_ref().subcols(0, k),
            tau.as_ref(),
            Conj::No,
            basis.as_mut(),
            Par::Seq,
            MemStack::new(&mut memory),
        );
        fill(q, k, |i, j| basis[(i, j)] * turns[j].conjugate());
        Ok(())
    })
}
