//! LU factors with partial pivoting of one matrix.
//!
//! Small matrices and singular ones take plain loops, which leave a column without a pivot as it is, as LAPACK does;
//! others go to faer, which is blocked and vectorised.

use crate::host::Scalar;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::lu::partial_pivoting::{factor, inverse, solve};
use faer::perm::PermRef;
use faer::{Mat, MatMut, MatRef, Par, Spec};

/// Sizes up to this take the plain loops.
const SMALL: usize = 24;

/// `a[perm] = L U`.
pub(crate) struct Lu<T> {
    /// U, and below its diagonal L, whose own diagonal is 1.
    pub(crate) packed: Mat<T>,
    /// The row of `a` that is row i of `L U`.
    pub(crate) perm: Vec<usize>,
}

impl<T: Scalar> Lu<T> {
    pub(crate) fn new(a: MatRef<'_, T>) -> Lu<T> {
        let (m, n) = (a.nrows(), a.ncols());
        if m.min(n) > SMALL {
            let mut packed = a.to_owned();
            let (mut perm, mut back) = (vec![0usize; m], vec![0usize; m]);
            let mut memory = MemBuffer::new(factor::lu_in_place_scratch::<usize, T>(m, n, Par::Seq, Spec::default()));
            let stack = MemStack::new(&mut memory);
            factor::lu_in_place(packed.as_mut(), &mut perm, &mut back, Par::Seq, stack, Spec::default());
            if (0..m.min(n)).all(|i| packed[(i, i)] != T::ZERO && packed[(i, i)].finite()) {
                return Lu { packed, perm };
            }
        }
        plain(a.to_owned())
    }

    /// Whether some pivot of a square matrix is zero.
    pub(crate) fn is_singular(&self) -> bool {
        self.diagonal().any(|d| d == T::ZERO)
    }

    /// The diagonal of U.
    pub(crate) fn diagonal(&self) -> impl Iterator<Item = T> + '_ {
        (0..self.packed.nrows().min(self.packed.ncols())).map(|i| self.packed[(i, i)])
    }

    /// The row that row i was exchanged with, for every step i.
    pub(crate) fn pivots(&self) -> Vec<usize> {
        let m = self.perm.len();
        let (mut rows, mut place): (Vec<usize>, Vec<usize>) = ((0..m).collect(), (0..m).collect());
        let steps = m.min(self.packed.ncols());
        let mut out = Vec::with_capacity(steps);
        for i in 0..steps {
            let j = place[self.perm[i]];
            let (x, y) = (rows[i], rows[j]);
            rows.swap(i, j);
            (place[x], place[y]) = (j, i);
            out.push(j);
        }
        out
    }

    /// Whether the permutation is odd.
    pub(crate) fn is_odd(&self) -> bool {
        self.pivots().iter().enumerate().filter(|&(i, &p)| i != p).count() % 2 == 1
    }

    fn inverse_perm(&self) -> Vec<usize> {
        let mut back = vec![0; self.perm.len()];
        for (i, &p) in self.perm.iter().enumerate() {
            back[p] = i;
        }
        back
    }

    /// Where each row of `a` is found in `L U`.
    pub(crate) fn rows(&self) -> Vec<usize> {
        self.inverse_perm()
    }

    /// Solves `a x = b` in place for square, regular `a`.
    pub(crate) fn solve(&self, mut b: MatMut<'_, T>) {
        let (n, k) = (b.nrows(), b.ncols());
        if n <= SMALL {
            let lu = &self.packed;
            let mut x = vec![T::ZERO; n];
            for j in 0..k {
                for i in 0..n {
                    let mut sum = b[(self.perm[i], j)];
                    for (l, &known) in x[..i].iter().enumerate() {
                        sum -= lu[(i, l)] * known;
                    }
                    x[i] = sum;
                }
                for i in (0..n).rev() {
                    let mut sum = x[i];
                    for l in i + 1..n {
                        sum -= lu[(i, l)] * x[l];
                    }
                    x[i] = sum / lu[(i, i)];
                }
                for i in 0..n {
                    b[(i, j)] = x[i];
                }
            }
            return;
        }
        let back = self.inverse_perm();
        let perm = PermRef::new_checked(&self.perm, &back, n);
        let mut memory = MemBuffer::new(solve::solve_in_place_scratch::<usize, T>(n, k, Par::Seq));
        let lu = self.packed.as_ref();
        solve::solve_in_place(lu, lu, perm, b, Par::Seq, MemStack::new(&mut memory));
    }

    /// The inverse of square, regular `a`.
    pub(crate) fn inverse(&self) -> Mat<T> {
        let n = self.perm.len();
        if n <= SMALL {
            let mut out = Mat::identity(n, n);
            self.solve(out.as_mut());
            return out;
        }
        let back = self.inverse_perm();
        let perm = PermRef::new_checked(&self.perm, &back, n);
        let mut memory = MemBuffer::new(inverse::inverse_scratch::<usize, T>(n, Par::Seq));
        let mut out = Mat::zeros(n, n);
        let lu = self.packed.as_ref();
        inverse::inverse(out.as_mut(), lu, lu, perm, Par::Seq, MemStack::new(&mut memory));
        out
    }
}

/// Column by column, updating what is to the right.
fn plain<T: Scalar>(mut a: Mat<T>) -> Lu<T> {
    let (m, n) = (a.nrows(), a.ncols());
    let mut perm: Vec<usize> = (0..m).collect();
    for k in 0..m.min(n) {
        let mut pivot = k;
        for i in k + 1..m {
            if a[(i, k)].magnitude() > a[(pivot, k)].magnitude() {
                pivot = i;
            }
        }
        if pivot != k {
            perm.swap(pivot, k);
            for j in 0..n {
                let (x, y) = (a[(k, j)], a[(pivot, j)]);
                (a[(k, j)], a[(pivot, j)]) = (y, x);
            }
        }
        let head = a[(k, k)];
        if head == T::ZERO {
            continue;
        }
        for i in k + 1..m {
            a[(i, k)] /= head;
        }
        for j in k + 1..n {
            let factor = a[(k, j)];
            for i in k + 1..m {
                a[(i, j)] = a[(i, j)] - a[(i, k)] * factor;
            }
        }
    }
    Lu { packed: a, perm }
}
