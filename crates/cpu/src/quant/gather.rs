//! Gathered products, as mixtures of experts need them: matrix `lhs[i]` of a stack of activations with matrix `rhs[i]`
//! of a stack of weights.
//!
//! Pairs are sorted by weight matrix first, so that each is streamed once however many rows want it. The results are
//! those of one product a pair, bit for bit.

use super::activations::Rows;
use super::format::check_len;
use super::qmm::{Arithmetic, Target, check_product, products};
use super::tasks::{Job, Pair};
use super::weights::Weights;
use crate::isa::Isa;
use lapis_core::dtype::Dtype;
use lapis_core::error::{Error, Result};

/// For each `i`: `m` rows of `x` from `lhs[i] * m` on, times matrix `rhs[i]` of `w`, to rows `i * m..` of `out`.
///
/// `x` is a stack of matrices of `m` rows; `out` is contiguous, `[lhs.len() * m, n]`. As [`super::qmm`] otherwise.
///
/// # Errors
/// Sizes or dtypes that do not fit, an index outside its stack.
pub fn gather_qmm(
    isa: Isa,
    x: &Rows,
    m: usize,
    w: &Weights,
    lhs: &[u32],
    rhs: &[u32],
    transpose: bool,
    arithmetic: Arithmetic,
    out_dtype: Dtype,
    out: &mut [u8],
) -> Result<()> {
    let op = "gather_qmm";
    let n = check_product(op, x, w, transpose, out_dtype)?;
    let grouped = Grouped::new(op, x.rows(), m, w.stack, lhs, rhs)?;
    check_len(op, "the result", out.len(), lhs.len() * m * n * out_dtype.size())?;
    products(isa, x, &mut [Target { w, out }], transpose, arithmetic, &grouped.jobs(), None, out_dtype);
    Ok(())
}

/// Row pairs, sorted by the matrix they meet.
pub(super) struct Grouped {
    pairs: Vec<Pair>,
    /// Where each matrix's pairs end.
    ends: Vec<usize>,
}

impl Grouped {
    /// Checks the indices and sorts; the order of pairs with the same matrix is kept.
    pub(super) fn new(op: &str, x_rows: usize, m: usize, stack: usize, lhs: &[u32], rhs: &[u32]) -> Result<Grouped> {
        if lhs.len() != rhs.len() {
            let (l, r) = (lhs.len(), rhs.len());
            return Err(Error::shape(format!("[{op}] {l} indices on the left, {r} on the right")));
        }
        let check = |what: &str, indices: &[u32], count: usize| match indices.iter().find(|&&i| i as usize >= count) {
            Some(i) => Err(Error::index(format!("[{op}] {what} index {i} with {count} matrices"))),
            None => Ok(()),
        };
        check("left", lhs, x_rows.checked_div(m).unwrap_or(0))?;
        check("right", rhs, stack)?;
        let mut starts = vec![0; stack + 1];
        for &matrix in rhs {
            starts[matrix as usize + 1] += m;
        }
        for i in 1..=stack {
            starts[i] += starts[i - 1];
        }
        let mut pairs = vec![Pair { x: 0, out: 0 }; rhs.len() * m];
        for (i, (&left, &matrix)) in lhs.iter().zip(rhs).enumerate() {
            let at = &mut starts[matrix as usize];
            for r in 0..m {
                pairs[*at + r] = Pair { x: left as usize * m + r, out: i * m + r };
            }
            *at += m;
        }
        // Every start has moved to its end.
        starts.pop();
        Ok(Grouped { pairs, ends: starts })
    }

    /// One job for each matrix that is wanted.
    pub(super) fn jobs(&self) -> Vec<Job<'_>> {
        let mut first = 0;
        let mut jobs = Vec::new();
        for (matrix, &end) in self.ends.iter().enumerate() {
            if end > first {
                jobs.push(Job { matrix, pairs: &self.pairs[first..end] });
            }
            first = end;
        }
        jobs
    }
}
